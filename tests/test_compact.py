"""A student with fewer layers or smaller images than its teacher: what it is made of, what it learns, and who can read it."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

import train
from convert.__main__ import main as convert
from jaxreflow import SmolVLAPolicy, flow
from jaxreflow.data import features
from jaxreflow.data.feature_cache import FeatureCache
from jaxreflow.data.features import compute_features
from jaxreflow.errors import ConfigError
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.layer_choice import ALL_LAYERS, LayerChoice, choose_layers
from jaxreflow.model.params import PROJECTIONS, in_parts, split_params
from jaxreflow.model.types import Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.compact import compact_policy
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained
from jaxreflow.policy.weights import EXPERT, TEXT, expected_tensors
from jaxreflow.run.config import DatasetConfig, ReflowConfig, StudentConfig
from jaxreflow.run.programs import split_weights, weight_shapes
from jaxreflow.run.record.metrics import read_metrics
from jaxreflow.run.start import student_start
from jaxreflow.support.mesh import make_mesh
from jaxreflow.training.augmentation import ImageTransformsConfig
from jaxreflow.training.lora import LoraConfig
from jaxreflow.training.losses import Draws, Networks, reflow_loss
from tests.cached_policy import make_cached_policy
from tests.short_run import assert_same_state
from tests.tiny import VLM, tiny_model, tiny_policy
from tests.tiny_policy import make_batch, perturb

TEACHER = Path("tests/assets/teacher")
SELF_CROSS = ("self", "cross")
AUGMENTED = DatasetConfig(image_transforms=ImageTransformsConfig(enable=True))


@pytest.fixture(scope="module")
def teacher() -> SavedPolicy:
    """4 VLM layers, self and cross in turn; images of 96 pixels make 4 x 4 tokens."""
    return load_saved_policy(TEACHER)


@pytest.mark.parametrize(
    ("kinds", "count", "choice", "kept"),
    [
        (SELF_CROSS * 8, 8, "first", tuple(range(8))),
        (SELF_CROSS * 8, 8, "spaced", (0, 3, 4, 7, 8, 11, 12, 15)),
        (SELF_CROSS * 8, 3, "spaced", (0, 7, 14)),
        (SELF_CROSS * 8, 16, "spaced", tuple(range(16))),
        (("self", "cross", "cross") * 3, 4, "spaced", (0, 2, 5, 6)),
        (("cross",) * 6, 1, "spaced", (0,)),
        (("cross",) * 7, 3, "spaced", (0, 3, 6)),
    ],
)
def test_kept_layers_are_of_the_kinds_of_their_places(
    kinds: Any, count: int, choice: Any, kept: tuple[int, ...]
) -> None:
    assert choose_layers(kinds, count, choice) == kept
    assert [kinds[layer] for layer in kept] == list(kinds[:count])


@pytest.mark.parametrize("every", range(9))
def test_layers_are_found_at_even_distances_wherever_the_first_ones_are(every: int) -> None:
    for total in range(1, 17):
        kinds = ["self" if every and i % every == 0 else "cross" for i in range(total)]
        for count in range(1, total + 1):
            kept = choose_layers(kinds, count, "spaced")
            assert list(kept) == sorted(set(kept))
            assert [kinds[layer] for layer in kept] == kinds[:count]


@pytest.mark.parametrize(("choice", "kept"), [("first", (0, 1)), ("spaced", (0, 3))])
def test_a_compact_policy_is_a_smolvla_with_its_teachers_weights(
    teacher: SavedPolicy, tmp_path: Path, choice: Any, kept: tuple[int, int]
) -> None:
    student = compact_policy(teacher, image_size=48, vlm_layers=2, choice=choice)
    save_pretrained(tmp_path / "student", student, {}, num_steps=1)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (TEACHER, tmp_path / "student"))
    assert {name: after[name] for name in after if after[name] != before.get(name)} == {
        "resize_imgs_with_padding": [48, 48],
        "num_vlm_layers": 2,
        "num_steps": 1,
    }
    whole, own = (load_file(folder / "model.safetensors") for folder in (TEACHER, tmp_path / "student"))
    assert {key: x.shape for key, x in own.items()} == expected_tensors(student.config)
    for key, tensor in own.items():
        found = re.fullmatch(rf"({re.escape(TEXT)}|{re.escape(EXPERT)})layers\.(\d)\.(.+)", key)
        source = f"{found[1]}layers.{kept[int(found[2])]}.{found[3]}" if found else key
        assert tensor.tobytes() == whole[source].tobytes(), key
    loaded = load_saved_policy(tmp_path / "student")
    assert loaded.config == student.config
    same = jax.tree.map(np.array_equal, loaded.load_params(), student.load_params())
    assert jax.tree.all(same)


def test_a_policy_that_is_not_to_differ_is_itself(teacher: SavedPolicy) -> None:
    assert compact_policy(teacher) is teacher
    smaller = compact_policy(teacher, image_size=48)
    assert smaller.layers == ALL_LAYERS
    assert smaller.tensors is teacher.tensors


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"image_size": 50},
            r"--student.image-size 50: expected a multiple of 24 .*; the nearest is 48",
        ),
        ({"image_size": 7}, "the nearest is 24"),
        ({"image_size": 512}, "less than the whole policy's 96; the nearest is 72"),
        ({"image_size": 96}, "less than the whole policy's 96; the nearest is 72"),
        ({"vlm_layers": 5}, "--student.vlm-layers 5: expected less than the whole policy's 4; the nearest is 3"),
        ({"vlm_layers": 4}, "--student.vlm-layers 4: expected less than the whole policy's 4; the nearest is 3"),
    ],
)
def test_impossible_networks_are_refused_with_the_nearest(teacher: SavedPolicy, asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compact_policy(teacher, **asked)
    nearest = int(re.findall(r"the nearest is (\d+)", message)[0])
    compact_policy(teacher, **dict.fromkeys(asked, nearest))


def test_a_policy_that_does_not_resize_may_see_all_that_its_tower_does(teacher: SavedPolicy) -> None:
    free = dataclasses.replace(teacher, policy=dataclasses.replace(teacher.policy, resize_imgs_with_padding=None))
    largest = teacher.vlm.config.vision.image_size
    with pytest.raises(ConfigError, match=f"and at most {largest}; the nearest is {largest}"):
        compact_policy(free, image_size=2 * largest)
    assert compact_policy(free, image_size=largest).policy.resize_imgs_with_padding == (largest, largest)


def test_an_expert_of_its_own_length_divides_the_layers(teacher: SavedPolicy) -> None:
    policy = dataclasses.replace(teacher.policy, num_expert_layers=2, self_attn_every_n_layers=0)
    half = dataclasses.replace(teacher, policy=policy)
    with pytest.raises(ConfigError, match=r"vlm-layers 3: .* multiple of its 2 expert layers .*; the nearest is 2"):
        compact_policy(half, vlm_layers=3)
    assert compact_policy(half, vlm_layers=2).config.num_vlm_layers == 2
    policy = dataclasses.replace(policy, num_expert_layers=4)
    with pytest.raises(ConfigError, match=r"vlm-layers 2: .* multiple of its 4 .*; there is none: leave it out"):
        compact_policy(dataclasses.replace(teacher, policy=policy), vlm_layers=2)


@pytest.mark.slow
def test_the_loss_is_that_of_two_policies() -> None:
    """The student's velocity, of its own network, against the straight line to where its teacher's network leads the noise."""
    policy = tiny_policy()
    whole, params = tiny_model(policy)
    small = network_of(dataclasses.replace(policy, resize_imgs_with_padding=(16, 16), num_vlm_layers=2), VLM)
    layers = LayerChoice((0, 3), (0, 3))
    teacher, frozen = split_params(params, in_parts(["expert", "connector"]))
    trained = perturb(layers.view(teacher, small))
    batch, noise = make_batch(2, whole), flow.sample_noise(jax.random.key(0), (2, 2, 6, 7))
    draws = Draws(noise, jnp.array([[0.3, 1.0], [0.7, 0.1]]))
    loss = reflow_loss(Networks(whole, small, layers), teacher_steps=3)
    total, count = jax.jit(loss)(trained, frozen, teacher, batch, draws)

    def field(config: ModelConfig, params: Params) -> flow.Velocity:
        context = observe(params, batch.observation, config=config)
        memory = memorise(params, context, jnp.asarray(batch.observation.state), config=config)
        return lambda x, t: velocity(params, memory, x, t, config=config)

    own = unflatten_dict({**flatten_dict(layers.view(params, small)), **flatten_dict(trained)})
    mine, theirs = (tree["text_model"]["layers"] for tree in (own, params))
    assert mine["1"]["self_attn"]["k_proj"]["kernel"] is theirs["3"]["self_attn"]["k_proj"]["kernel"]
    endpoint = flow.euler(field(whole, params), noise, 3)
    t = draws.t[..., None, None]
    errors = jnp.square(field(small, own)(t * noise + (1 - t) * endpoint, draws.t) - (noise - endpoint))
    np.testing.assert_allclose(total / count, errors.mean(), rtol=1e-5)


@pytest.mark.parametrize(("lora", "trainable"), [(0, None), (2, None), (2, "expert+connector+language:lora")])
@pytest.mark.parametrize("student", [StudentConfig(), StudentConfig(image_size=48, vlm_layers=2, layers="spaced")])
def test_shapes_are_those_of_the_weights(
    teacher: SavedPolicy, student: StudentConfig, lora: int, trainable: str | None
) -> None:
    config = ReflowConfig(student=student, lora=LoraConfig(rank=lora), trainable=trainable)
    saved = student_start(student, teacher)
    found, expected = split_weights(config, saved, make_mesh()), weight_shapes(config, saved)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), weights) for weights in (found, expected)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        (None, {"expert", "connector", "text_model"}),
        ("expert", {"expert"}),
        ("expert+vision", {"expert", "vision_model"}),
    ],
)
def test_the_parts_that_are_named_are_trained(teacher: SavedPolicy, trainable: str | None, parts: set[str]) -> None:
    student = StudentConfig(image_size=48)
    weights = weight_shapes(ReflowConfig(student=student, trainable=trainable), student_start(student, teacher))
    assert set(weights.start) == parts | set(PROJECTIONS)
    assert "vision_model" in weights.frozen or "vision" in str(trainable)


def test_parts_are_trained_by_adapters_beside_others(teacher: SavedPolicy) -> None:
    config = ReflowConfig(trainable="expert+language:lora", lora=LoraConfig(rank=2))
    weights = weight_shapes(config, teacher)
    language = {path[-1] for path in flatten_dict(weights.start["text_model"])}
    assert language == {"lora_A", "lora_B"}
    assert "kernel" in {path[-1] for path in flatten_dict(weights.start["expert"])}
    assert weights.base is not None
    assert set(weights.base) == {"text_model"}
    one = ReflowConfig(trainable="expert:lora+connector", lora=LoraConfig(rank=2))
    assert "lora_A" not in {path[-1] for path in flatten_dict(weight_shapes(one, teacher).start["connector"])}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trainable": "expert+language:lora"}, "trains adapters, whose --lora.rank is missing: give it, such as 16"),
        (
            {"trainable": "as-policy", "lora": LoraConfig(rank=2)},
            "exclude each other: .*, such as expert\\+language:lora",
        ),
        ({"trainable": "expert+language", "lora": LoraConfig(rank=2)}, "exclude each other"),
        (
            {"trainable": "expert+language:lora", "lora": LoraConfig(rank=2, targets=("q_proj",))},
            "both say which layers have adapters: leave one of them out",
        ),
        (
            {"student": StudentConfig(image_size=48, features="small"), "dataset": AUGMENTED},
            "image-transforms.enable changes images, of which --student.features holds the tokens",
        ),
        (
            {"student": StudentConfig(features="s"), "dataset": DatasetConfig(root="gs://b/d", episodes=(0,))},
            "--student.features is checked against all files",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReflowConfig(**fields)


def test_a_choice_of_layers_needs_their_number() -> None:
    with pytest.raises(ConfigError, match=r"--student.layers spaced is about --student.vlm-layers, which is missing"):
        StudentConfig(layers="spaced", image_size=48)


@pytest.mark.parametrize("trainable", ["connector", "expert+tower", "expert+expert", "expert:full", ""])
def test_parts_that_are_none_are_refused(trainable: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--trainable .*: expected as-policy, or expert and, joined by \+, any of connector"
    ):
        ReflowConfig(trainable=trainable)


# ---- runs of a tiny policy on 18 frames: images of 32 pixels, two layers
SMALLER = ("--student.image-size", "16", "--student.vlm-layers", "1")
ONE_LAYER = ("--student.vlm-layers", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A dataset, a policy for it, and the caches of its image tokens at 32 and 16 pixels."""
    made = make_cached_policy(tmp_path_factory.mktemp("compact"), tmp_path_factory.mktemp("vlm"))
    made.caches = {"--dataset.features": made.folder / "cache", "--student.features": made.folder / "small"}
    compute_features(dataclasses.replace(made.config, out=str(made.folder / "small"), image_size=16))
    return made


def reflow(made: SimpleNamespace, run: Path, *options: str) -> int:
    where = ("--teacher.path", str(made.folder / "policy"), "--dataset.root", str(made.root), "--dataset.holdout", "0")
    size = ("--batch-size", "4", "--noises", "1", "--teacher-steps", "2", "--no-report", "--optimizer.lr", "1e-3")
    often = ("--steps", "2", "--log-every", "1", "--save-every", "1")
    return train.main(["reflow", *where, *size, *often, "--output-dir", str(run), *options])


@pytest.fixture(scope="module")
def run(made: SimpleNamespace) -> Path:
    assert reflow(made, made.folder / "run", *SMALLER) == 0
    return made.folder / "run"


@pytest.mark.slow
def test_a_run_resumes_exactly(run: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(run, tmp_path / "half", symlinks=True))
    newest = max(path for path in (half / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(newest)
    assert train.main(["reflow", "--output-dir", str(half), "--resume"]) == 0
    assert_same_state(half, run)


@pytest.mark.slow
def test_another_network_is_no_resumption(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["reflow", "--output-dir", str(run), "--resume", "--steps", "6", "--student.image-size", "32"]
    assert train.main(again) == 1
    assert "--student.image-size 16 -> 32" in capsys.readouterr().err


@pytest.mark.slow
def test_the_exported_student_acts_and_is_read_by_every_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = run / "checkpoints" / "last" / "pretrained_model"
    assert convert(["to-lerobot", str(run), str(tmp_path / "out"), "--ema"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    assert convert(["inspect", str(student)]) == 0
    assert convert(["doctor", str(student)]) == 0
    assert "16" in capsys.readouterr().out
    policy = SmolVLAPolicy.from_pretrained(student)
    assert policy.checkpoint.config.resize_imgs_with_padding == (16, 16)
    assert policy.checkpoint.config.num_vlm_layers == 1


@pytest.mark.slow
def test_adapters_beside_whole_parts_are_exported_and_converted_merged(made: SimpleNamespace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert reflow(made, run, *SMALLER, "--trainable", "expert+language:lora", "--lora.rank", "2") == 0
    assert convert(["to-lerobot", str(run), str(tmp_path / "out"), "--ema"]) == 0
    exported, found = (
        folder / "model.safetensors" for folder in (run / "checkpoints/last/pretrained_model", tmp_path / "out")
    )
    assert exported.read_bytes() == found.read_bytes()
    start, moved = (load_file(path) for path in (made.folder / "policy" / "model.safetensors", exported))
    changed = {key for key in moved if not np.array_equal(moved[key], start[key])}
    assert any(".text_model.layers.0.self_attn.k_proj" in key for key in changed)
    assert any(".lm_expert.layers.0." in key for key in changed)
    assert not any("layernorm" in key and ".text_model." in key for key in changed)


@pytest.mark.slow
def test_caches_of_both_stand_for_their_images(made: SimpleNamespace, tmp_path: Path) -> None:
    """Teacher's and student's tokens from caches, each alone and both: the losses are those of the images, but for rounding."""
    losses = []
    for number, options in enumerate(((), (*made.caches,), (*made.caches,)[:1], (*made.caches,)[1:])):
        given = [word for option in options for word in (option, str(made.caches[option]))]
        run = tmp_path / str(number)
        assert reflow(made, run, *SMALLER, "--trainable", "expert", *given) == 0
        losses.append([record["loss"] for record in read_metrics(run)])
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=2e-3)
        assert found != losses[0]


@pytest.mark.parametrize(
    ("options", "cache", "message"),
    [
        ((*SMALLER, "--trainable", "expert+vision"), "small", "--student.features: expected a frozen vision tower"),
        (ONE_LAYER, "small", "--student.features: the student sees as its teacher"),
        ((*SMALLER, "--trainable", "expert"), "cache", "made for something else: resize_imgs_with_padding"),
    ],
)
def test_a_cache_of_another_student_is_refused(
    made: SimpleNamespace,
    tmp_path: Path,
    options: tuple[str, ...],
    cache: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert reflow(made, tmp_path / "run", *options, "--student.features", str(made.folder / cache)) == 1
    assert message in capsys.readouterr().err


def test_the_advice_on_a_students_cache_makes_it(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    options = (*SMALLER, "--trainable", "expert", "--student.features", str(missing))
    assert reflow(made, tmp_path / "run", *options) == 1
    advice = re.search(r"run `python -m jaxreflow.data.features (.*)`", capsys.readouterr().err)
    assert advice
    assert features.main(shlex.split(advice[1])) == 0
    assert FeatureCache.open(missing).manifest.cameras == {"observation.images.front": (1, 24)}
