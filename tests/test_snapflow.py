"""The rival of docs/results.md: its loss by hand, and the ordinary SmolVLA that its one-step policy is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.recipe import snapflow
from benchmarks.recipe.snapflow import (
    ACTION_TIME_MLP_IN,
    MLP_IN,
    MLP_OUT,
    SnapFlowConfig,
    _predict,
    folded,
    matching_errors,
    snapflow_loss,
    step_errors,
    with_target_time,
)
from jaxreflow.errors import CheckpointError, ConfigError
from jaxreflow.model import memorise, observe, smolvla, velocity
from jaxreflow.model.layers import time_embedding
from jaxreflow.model.params import split_params
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.support.safetensors_file import TensorFile
from jaxreflow.training.losses import CONTEXT_PARAMS, Draws, finetune_loss
from tests.cached_policy import make_cached_policy
from tests.tiny import tiny_model
from tests.tiny_policy import make_batch

CONFIG, PARAMS = tiny_model()
ACTION_DIM = 4


@pytest.fixture(scope="module")
def parts():
    """Trained and frozen parameters, a batch, draws, and trained parameters whose MLP is not zero."""
    trained, frozen = split_params(PARAMS, lambda path: path[0] not in CONTEXT_PARAMS)
    batch = make_batch(4, CONFIG)
    shape = (4, 1, CONFIG.chunk_size, CONFIG.max_action_dim)
    draws = Draws(jax.random.normal(jax.random.key(1), shape), jax.random.uniform(jax.random.key(2), (4, 1)))
    start = with_target_time(trained, CONFIG, jax.random.key(3))
    moved = {**start, MLP_OUT: jax.tree.map(lambda x: x + 0.3, start[MLP_OUT])}
    return start, frozen, batch, draws, moved


def loss(trainable, frozen, batch, draws, **options) -> float:
    total, count = snapflow_loss(CONFIG, ACTION_DIM, **options)(trainable, frozen, {}, batch, draws)
    return float(total / count)


def test_without_steps_and_with_a_zero_mlp_it_is_flow_matching(parts) -> None:
    start, frozen, batch, draws, moved = parts
    expected = finetune_loss(CONFIG, action_dim=ACTION_DIM, reduction="lerobot-main")(start, frozen, {}, batch, draws)
    found = loss(start, frozen, batch, draws, alpha=1.0, weight=0.1)
    assert found == pytest.approx(float(expected[0] / expected[1]), rel=1e-5)
    assert found != pytest.approx(loss(moved, frozen, batch, draws, alpha=1.0, weight=0.1), rel=1e-3)


def test_a_step_learns_two_of_its_own_euler_steps() -> None:
    """With v = x t + s: from noise 2 at 1, v = 3; half a step leads to 0.5, where v = 0.75; the goal is 1.875."""
    errors = step_errors(lambda x, t, s: x * t[:, None, None] + s[:, None, None], jnp.full((1, 1, 1), 2.0))
    assert float(errors[0, 0, 0]) == pytest.approx((2.0 - (0.5 * (3.0 + (2 - 1.5) * 0.5 + 0.5))) ** 2)


def test_flow_matching_is_told_that_its_step_has_no_length() -> None:
    seen = []
    matching_errors(
        lambda x, t, s: seen.append((t, s)) or x, jnp.ones((2, 1, 1)), jnp.zeros((2, 1, 1)), jnp.array([0.2, 0.7])
    )
    np.testing.assert_array_equal(*seen[0])


def test_no_gradient_goes_through_the_goal() -> None:
    def predict(scale):
        return lambda x, t, s: scale * x * jnp.where(s == 0.0, 2.0, 1.0)[:, None, None]

    gradient = jax.grad(lambda scale: step_errors(predict(scale), jnp.ones((1, 1, 1))).sum())(1.0)
    # One step gives 2 scale; its goal, (1 + 1/2) / 2, is a constant.
    assert float(gradient) == pytest.approx(2 * (2.0 - 0.75) * 2.0)


def test_the_folded_policy_steps_to_zero_as_the_network_that_is_told_so(parts) -> None:
    _, frozen, batch, draws, moved = parts
    ordinary = {**frozen, **folded(moved, CONFIG)}
    context = observe(ordinary, batch.observation, config=CONFIG)
    memory = memorise(ordinary, context, jnp.asarray(batch.observation.state), config=CONFIG)
    noise, one, zero = draws.noise[:, 0], jnp.ones(4), jnp.zeros(4)
    params = {**frozen, **{name: part for name, part in moved.items() if not name.startswith("target")}}
    told = _predict(moved, params, memory, CONFIG, noise, one, zero)
    np.testing.assert_allclose(
        velocity(ordinary, memory, draws.noise, one[:, None], config=CONFIG)[:, 0], told, rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(ordinary[ACTION_TIME_MLP_IN]["bias"], params[ACTION_TIME_MLP_IN]["bias"])


def test_the_network_is_told_the_target_time_as_it_is_told_its_own(parts) -> None:
    """The MLP's output is added to the embedding of the time at which a step begins."""
    _, frozen, batch, draws, moved = parts
    params = {**frozen, **{name: part for name, part in moved.items() if not name.startswith("target")}}
    context = observe(params, batch.observation, config=CONFIG)
    memory = memorise(params, context, jnp.asarray(batch.observation.state), config=CONFIG)
    x_t, t, s = draws.noise[:, 0], draws.t[:, 0], jnp.array([0.0, 0.2, 0.4, 0.6])
    embedding = time_embedding(s, CONFIG.expert_hidden_size, CONFIG.min_period, CONFIG.max_period)
    hidden = jax.nn.silu(embedding @ moved[MLP_IN]["kernel"] + moved[MLP_IN]["bias"])
    told = hidden @ moved[MLP_OUT]["kernel"] + moved[MLP_OUT]["bias"]

    def added(time, width, low, high):
        return time_embedding(time, width, low, high) + told.reshape(*time.shape, width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smolvla, "time_embedding", added)
        expected = velocity(params, memory, x_t[:, None], t[:, None], config=CONFIG)[:, 0]
    found = _predict(moved, params, memory, CONFIG, x_t, t, s)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_lambda_weighs_the_steps_only(parts) -> None:
    start, frozen, batch, draws, _ = parts

    def total(weight: float) -> float:
        return float(snapflow_loss(CONFIG, ACTION_DIM, alpha=0.5, weight=weight)(start, frozen, {}, batch, draws)[0])

    alone = snapflow_loss(CONFIG, ACTION_DIM, alpha=0.0, weight=1.0)
    rest = Draws(draws.noise[2:], draws.t[2:])
    steps = float(alone(start, frozen, {}, jax.tree.map(lambda x: x[2:], batch), rest)[0])
    assert total(0.1) - total(0.0) == pytest.approx(0.1 * steps, rel=1e-3)
    assert total(1.0) - total(0.0) == pytest.approx(steps, rel=1e-3)


def test_half_of_the_observations_learn_each(parts) -> None:
    start, frozen, batch, draws, _ = parts
    both = snapflow_loss(CONFIG, ACTION_DIM, alpha=0.5, weight=0.1)(start, frozen, {}, batch, draws)
    valid = int((~batch.action_is_pad[:2]).sum()) * ACTION_DIM
    assert float(both[1]) == valid + 2 * CONFIG.chunk_size * ACTION_DIM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "--alpha must be from 0 to 1, found 1.5"),
        ({"weight": -1.0}, "--weight must be a number of at least 0, found -1.0"),
        ({"batch_size": 1}, "both kinds of observations among 1; raise --batch-size"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SnapFlowConfig("teacher", "data", Path("out"), **changes)


def _statistics(policy: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(policy.glob("*normalizer_processor.safetensors"))]


@pytest.mark.slow
def test_a_run_writes_a_one_step_policy_and_is_not_repeated(tmp_path: Path) -> None:
    made = make_cached_policy(tmp_path / "made", tmp_path / "vlm")
    teacher = made.folder / "policy"
    inputs = ["--teacher", str(teacher), "--dataset", str(made.root), "--features", str(made.cache.root)]
    wrong = ["--teacher", str(tmp_path / "nowhere"), *inputs[2:], "--out", str(tmp_path / "run")]
    with pytest.raises(CheckpointError, match="nowhere"):
        snapflow._main(wrong)
    run = [*inputs, "--batch-size", "4", "--updates", "2", "--out", str(tmp_path / "run")]
    assert snapflow._main(run) == 0
    student = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    assert SmolVLAPolicy.from_pretrained(str(student)).config.num_steps == 1
    before, after = (TensorFile(path / "model.safetensors") for path in (teacher, student))
    moved = {key for key in before.keys if not np.array_equal(before.read(key), after.read(key))}
    assert moved
    assert not any("vlm_with_expert.vlm." in key for key in moved)
    assert _statistics(student) == _statistics(teacher)
    written = (student / "model.safetensors").stat()
    assert snapflow._main(run) == 0
    with pytest.raises(ConfigError, match="settings of this run, found other weight; choose another --out"):
        snapflow._main([*run, "--weight", "5"])
    assert (student / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns
