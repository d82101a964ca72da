"""Adapters: what they change by hand, which layers they go to, and a run whose student is a plain checkpoint again."""

import dataclasses
import functools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import train
from benchmarks.workload import full_policy
from convert.__main__ import main as convert
from convert.orbax import TreeReader
from jaxreflow import flow
from jaxreflow.data.feature_match import check_vision_frozen
from jaxreflow.errors import ConfigError
from jaxreflow.model import init_params, memorise, observe, velocity
from jaxreflow.model.config import VLMConfig
from jaxreflow.model.params import ParamPath, merge_params, split_params, trainable_in_reflow
from jaxreflow.model.types import Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.policy.weights import parameter_table
from jaxreflow.run import programs, setup
from jaxreflow.run.config import FinetuneConfig, PolicySource, ReflowConfig
from jaxreflow.run.programs import Weights, make_update, split_weights, trained_paths
from jaxreflow.run.record.metrics import read_metrics
from jaxreflow.support.mesh import make_mesh
from jaxreflow.support.safetensors_file import TensorFile
from jaxreflow.training.lora import LoraConfig, adapted_kernels, adapter_shapes, init_adapters, merge_adapters
from jaxreflow.training.losses import Networks
from jaxreflow.training.step import TrainState, make_draw
from tests import test_update as small
from tests.checkpoint_edits import GOLDENS
from tests.short_run import assert_same_state, flags, make_teacher
from tests.tiny import VLM, tiny_policy
from tests.tiny_policy import make_batch, perturb

CONFIG = network_of(tiny_policy(), VLM)
FULL = network_of(full_policy(2), VLMConfig())
LORA = LoraConfig(rank=2, alpha=3.0)


def test_merged_kernel_by_hand() -> None:
    base = {"layer": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}}
    adapters = {"layer": {"lora_A": jnp.array([[1.0], [2.0]]), "lora_B": jnp.array([[10.0, 20.0]])}}
    merged = merge_adapters(base, adapters, scale=LoraConfig(rank=1, alpha=0.5).scale)
    np.testing.assert_array_equal(merged["layer"]["kernel"], [[6.0, 12.0], [13.0, 24.0]])
    assert LoraConfig(rank=4).scale == 1


def names(paths: frozenset[ParamPath]) -> set[str]:
    return {".".join(path[:-1]) for path in paths}


def test_default_targets_are_all_linear_layers_that_reflow_trains() -> None:
    linear = {e.path for e in parameter_table(CONFIG) if trainable_in_reflow(e.path) and e.path[-1] == "kernel"}
    assert adapted_kernels(LORA, CONFIG) == linear
    assert len(linear) == 4 * 7 + 5


@pytest.mark.parametrize(
    ("targets", "parameters"),
    [
        # LeRobot's own targets for SmolVLA under PEFT (`_get_default_peft_targets`), of which it counts as many.
        (("expert.*[qv]_proj", "state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_(in|out)"), 742_656),
        (LORA.targets, 3_513_600),
    ],
)
def test_number_of_parameters_at_full_size(targets: tuple[str, ...], parameters: int) -> None:
    shapes = adapter_shapes(LoraConfig(rank=16, targets=targets), FULL)
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("state_proj", {"state_proj"}),
        ("expert.layers.1.mlp", {f"expert.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}),
        (r"expert.*\.[qo]_proj", {f"expert.layers.{i}.self_attn.{name}_proj" for i in range(4) for name in "qo"}),
        ("connector", {"connector.proj"}),
        ("vision_model.layers.0.mlp.fc1", {"vision_model.layers.0.mlp.fc1"}),
    ],
)
def test_a_target_is_any_part_of_a_path(target: str, expected: set[str]) -> None:
    assert names(adapted_kernels(LoraConfig(rank=1, targets=(target,)), CONFIG)) == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_porj", "--lora.targets q_porj: expected linear layers of the policy, found nothing; nearest are q_proj, "),
        ("expert.norm", "found expert.norm, which is no linear layer; nearest are "),
        ("embed_tokens", "found text_model.embed_tokens, which is no linear layer"),
        ("patch_embedding", "found vision_model.patch_embedding, which is no linear layer"),
    ],
)
def test_targets_that_are_no_linear_layers_are_named(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted_kernels(LoraConfig(rank=1, targets=("state_proj", target)), CONFIG)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraConfig(rank=-1), "--lora.rank must not be negative, found -1"),
        (lambda: LoraConfig(rank=1, alpha=0.0), "--lora.alpha must be positive, found 0.0"),
        (lambda: LoraConfig(rank=1, targets=("(",)), r"--lora.targets \(: not a regular expression"),
        (lambda: LoraConfig(rank=1, targets=()), "--lora.targets names nothing"),
        (lambda: ReflowConfig(lora=LORA, trainable="as-policy"), "--trainable as-policy and --lora.rank 2 exclude"),
        (lambda: FinetuneConfig(lora=LORA, policy=PolicySource(new=True)), "--policy.new and --lora.rank exclude"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_adapters_start_as_pefts_and_change_nothing() -> None:
    lora = LoraConfig(rank=8, targets=("expert.layers.[01].self_attn",))
    adapters = flatten_dict(init_adapters(jax.random.key(0), lora, FULL))
    for path, x in adapters.items():
        assert x.dtype == jnp.float32
        if path[-1] == "lora_B":
            assert not x.any()
        else:  # PEFT: kaiming_uniform_(a=sqrt(5)) of the [rank, in] weight, so within 1 / sqrt(in)
            assert 0.95 < abs(x).max() * x.shape[0] ** 0.5 <= 1
            np.testing.assert_allclose(x.std() * (3 * x.shape[0]) ** 0.5, 1, atol=0.15)
    first = [x for path, x in adapters.items() if path[-2] == "q_proj" and path[-1] == "lora_A"]
    assert not np.array_equal(first[0], first[1])


@functools.cache
def random_params() -> Params:
    return perturb(jax.jit(init_params, static_argnums=1)(jax.random.key(0), small.CONFIG))


@pytest.mark.slow
def test_merged_weights_act_as_the_layers_with_their_adapters_beside_them() -> None:
    """Every linear layer that runs adds `scale (x A) B` to its output, or is left alone; in float32 to rounding."""
    config, batch, added = small.CONFIG, make_batch(2, small.CONFIG), []
    lora = dataclasses.replace(LORA, targets=(*LORA.targets, "text_model.*v_proj"))
    tokens = {key: np.random.default_rng(3).normal(size=(2, 4, 24)).astype("f4") for key in config.visual_keys}
    seen = dataclasses.replace(batch.observation, images={}, image_tokens=tokens)
    base, rest = split_params(random_params(), adapted_kernels(lora, config).__contains__)
    adapters = perturb(init_adapters(jax.random.key(1), lora, config))
    x, t = jnp.ones((2, 1, config.chunk_size, config.max_action_dim)), jnp.full((2, 1), 0.5)

    def act(params: Params) -> Any:
        memory = memorise(params, observe(params, seen, config=config), jnp.asarray(seen.state), config=config)
        return velocity(params, memory, x, t, config=config)

    def act_beside(base: Params, rest: Params, adapters: Params) -> Any:
        places, flat = {id(kernel): path[:-1] for path, kernel in flatten_dict(base).items()}, flatten_dict(adapters)

        def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                path = places.get(id(context.module.variables["params"]["kernel"]))
                if path is not None:
                    added.append(path)
                    out += lora.scale * (args[0] @ flat[*path, "lora_A"]) @ flat[*path, "lora_B"]
            return out

        with nn.intercept_methods(add):
            return act(merge_params(base, rest))

    expected = jax.jit(act_beside)(base, rest, adapters)
    whole = jax.jit(act)
    found = whole(merge_params(merge_adapters(base, adapters, scale=lora.scale), rest))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
    assert set(added) == {path[:-1] for path in flatten_dict(base)}
    assert float(abs(found - whole(merge_params(base, rest))).max()) > 0.1 * float(abs(found).max())


def test_the_kernels_stay_in_float32_and_the_teachers_in_the_compute_dtype() -> None:
    checkpoint = load_saved_policy(GOLDENS / "cross", dtype="bfloat16")
    weights = split_weights(ReflowConfig(lora=LORA, dtype="bfloat16"), checkpoint, make_mesh())
    assert weights.base is not None
    assert {x.dtype for x in jax.tree.leaves((weights.start, weights.base))} == {np.dtype("float32")}
    assert weights.teacher["expert"]["layers"]["0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert weights.frozen["text_model"]["embed_tokens"]["embedding"].dtype == jnp.bfloat16
    float32 = split_weights(ReflowConfig(lora=LORA), load_saved_policy(GOLDENS / "cross"), make_mesh())
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (float32.base, float32.teacher)), strict=True))


@pytest.mark.parametrize(
    ("target", "shared", "tower"), [("expert", True, False), ("text_model", False, False), ("fc1", False, True)]
)
def test_contexts_and_caches_follow_the_targets(target: str, shared: bool, tower: bool) -> None:
    adapters = init_adapters(jax.random.key(0), LoraConfig(rank=1, targets=(target,)), CONFIG)
    assert Networks(CONFIG, CONFIG).share_context(adapters) is shared
    if tower:
        with pytest.raises(ConfigError, match="expected a frozen vision tower"):
            check_vision_frozen(adapters, "--dataset.features")
    else:
        check_vision_frozen(adapters, "--dataset.features")


def test_the_loss_gets_the_merged_kernels_which_are_the_teachers_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first loss is that without adapters: it is computed of the same bits."""
    calls: list[Any] = []
    draw = make_draw(flow.beta_time, 1, small.CONFIG)

    def loss(*inputs: Any) -> tuple[jax.Array, jax.Array]:
        calls.append(inputs)
        return jnp.zeros(()), jnp.ones(())

    def make_train_step(loss: Any, *_: Any, **__: Any) -> Any:
        def step(state: TrainState, *inputs: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            *others, key = inputs
            loss(state.trainable, *others, draw(key, 2))
            return state, {}

        return step

    monkeypatch.setattr(programs, "make_train_step", make_train_step)
    monkeypatch.setattr(programs, "loss_and_draw", lambda *_: (loss, draw))
    config = ReflowConfig(lora=LORA)
    base, rest = split_params(random_params(), trained_paths(config, small.checkpoint()))
    weights = Weights(init_adapters(jax.random.key(2), LORA, small.CONFIG), rest, base, base)
    state, train_step, _ = make_update(config, small.checkpoint(), weights, make_mesh())
    batch = make_batch(2, small.CONFIG)
    train_step(state, batch)
    train_step(state.replace(trainable=perturb(state.trainable)), batch)
    for (student, frozen, teacher, *_), same in zip(calls, (True, False), strict=True):
        assert frozen is rest
        assert teacher is base
        assert jax.tree.structure(student) == jax.tree.structure(base)
        for a, b in zip(jax.tree.leaves(student), jax.tree.leaves(base), strict=True):
            assert np.array_equal(a, b) is same


STEPS = [
    "--steps",
    "4",
    "--noises",
    "1",
    "--teacher-steps",
    "1",
    "--ema-decay",
    "0.5",
    "--lora.rank",
    "2",
    "--lora.alpha",
    "4",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory)


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates of reflow with adapters, saved after two and four; the average is exported."""
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "use_compilation_cache", lambda: None)
        assert train.main(flags(teacher, out, *STEPS, "--dataset.episodes", "0", "1")) == 0
    return out


def last(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"


@pytest.mark.slow
def test_a_student_is_a_plain_checkpoint(teacher: Path, run: Path) -> None:
    """Keys, shapes, dtypes and fields are the teacher's; kernels of the targets moved, all else has the teacher's bits."""
    before, after = (TensorFile(path / "model.safetensors") for path in (teacher, last(run)))
    assert [(k, before.shape(k), before.dtype(k)) for k in before.keys] == [
        (k, after.shape(k), after.dtype(k)) for k in after.keys
    ]
    model = load_saved_policy(teacher).config
    kernels = adapted_kernels(LoraConfig(rank=2), model)
    moved = {key for key in before.keys if before.read(key).tobytes() != after.read(key).tobytes()}
    assert moved == {entry.key for entry in parameter_table(model) if entry.path in kernels}
    fields = [json.loads((path / "config.json").read_text()) for path in (teacher, last(run))]
    assert fields[1] == {**fields[0], "num_steps": 1}
    assert fields[1]["use_peft"] is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainable", "ema"])
def test_convert_merges_as_the_run_does(name: str, teacher: Path, run: Path, tmp_path: Path) -> None:
    assert convert(["to-lerobot", str(run), str(tmp_path / "out"), *(["--ema"] if name == "ema" else [])]) == 0
    state = TreeReader(run / "checkpoints" / "last" / "training_state" / "state", name)
    model = load_saved_policy(teacher).config
    start, found = (TensorFile(path / "model.safetensors") for path in (teacher, tmp_path / "out"))
    assert len(state.shapes) == 2 * len(adapted_kernels(LoraConfig(rank=2), model))
    for entry in parameter_table(model):
        if entry.path[-1] == "kernel" and (*entry.path[:-1], "lora_A") in state.shapes:
            first, second = (state.read((*entry.path[:-1], part)) for part in ("lora_A", "lora_B"))
            expected = start.read(entry.key).astype(np.float32).T + 2 * (first @ second)
            tolerance = 1e-2 if found.dtype(entry.key) == ml_dtypes.bfloat16 else 1e-6
            np.testing.assert_allclose(found.read(entry.key).astype(np.float32).T, expected, rtol=tolerance, atol=1e-6)
    exported = (last(run) / "model.safetensors").read_bytes()
    assert (exported == (tmp_path / "out" / "model.safetensors").read_bytes()) is (name == "ema")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 3}, r"action_in_proj/lora_A: expected \[32, 3\], found \[32, 2\]"),
        ({"targets": ["expert"]}, r"action_in_proj/lora_A: expected nothing"),
        ({"targets": [*LORA.targets, "connector"]}, "expected 40 adapters, .* found 38"),
        ({"targets": ["lm_expert"]}, "the run's settings of `lora` cannot be read .*--lora.targets lm_expert"),
        ({"rank": "two"}, "the run's settings of `lora` cannot be read"),
        ({"scale": 1}, "the run's settings of `lora` cannot be read"),
    ],
)
def test_adapters_that_do_not_fit_the_settings_are_refused(
    fields: dict[str, Any], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    path = other / "checkpoints" / "last" / "training_state" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["config"]["lora"] |= fields
    path.write_text(json.dumps(meta))
    assert convert(["to-lerobot", str(other), str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)
    again = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    shutil.rmtree(again / "checkpoints" / "000004")
    (again / "checkpoints" / "last").unlink()
    (again / "checkpoints" / "last").symlink_to("000002")
    assert train.main(["reflow", "--output-dir", str(again), "--resume"]) == 0
    assert_same_state(again, run)
    losses = [[r["loss"] for r in read_metrics(path) if "loss" in r] for path in (again, run)]
    assert losses[0] == losses[1]
