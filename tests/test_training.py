"""The update: how the batch is split must not show in it, and objectives differ in nothing but the loss."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreflow import flow
from jaxreflow.errors import TrainingError
from jaxreflow.model import init_params, memorise, observe, velocity
from jaxreflow.model.params import merge_params, split_params, trainable_in_reflow
from jaxreflow.model.types import Batch, Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.support.mesh import check_batch_size, make_mesh, shard_batch, sharded_copy
from jaxreflow.training import experimental
from jaxreflow.training.losses import Draws, Networks, finetune_loss, reflow_loss
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.training.step import TrainState, init_state, make_draw, make_eval_step, make_train_step
from tests.tiny import VLM, tiny_policy
from tests.tiny_policy import make_batch, perturb

CONFIG = network_of(tiny_policy(), VLM)
SETTINGS = OptimizerConfig(warmup_steps=0)
LOSSES = {
    "reflow": reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=2),
    "finetune": finetune_loss(CONFIG, action_dim=4, reduction="lerobot-main"),
    "mixed": experimental.mixed_reflow_loss(
        Networks(CONFIG, CONFIG), teacher_steps=2, real_noises=1, action_dim=4, objective=flow.pseudo_huber
    ),
}
reflow_sum = jax.jit(LOSSES["reflow"])


class Split(NamedTuple):
    """A student that has left its teacher, the frozen weights, and the teacher's own."""

    student: Params
    frozen: Params
    teacher: Params


@functools.cache
def weights() -> Split:
    params = perturb(jax.jit(init_params, static_argnums=1)(jax.random.key(0), CONFIG))
    teacher, frozen = split_params(params, trainable_in_reflow)
    return Split(perturb(teacher), frozen, teacher)


@functools.cache
def make_step(name: str, accumulation: int):
    """An update with two noises per observation and a moving average; compiled once for all tests."""
    draw = make_draw(experimental.TIME_LAWS["half-at-one"], 2, CONFIG)
    optimizer, schedule = make_optimizer(SETTINGS, 100), make_schedule(SETTINGS, 100)
    return make_train_step(
        LOSSES[name], optimizer, schedule, draw, make_mesh(), accumulation=accumulation, ema_decay=0.999
    )


def update(batch: Batch, name: str = "reflow", accumulation: int = 1) -> tuple[TrainState, dict[str, jax.Array]]:
    """The first update on `batch`."""
    student, frozen, teacher = weights()
    mesh = make_mesh()
    state = sharded_copy(init_state(student, make_optimizer(SETTINGS, 100), ema=True), mesh)
    return make_step(name, accumulation)(state, frozen, teacher, shard_batch(batch, mesh), jax.random.key(3))


@pytest.mark.slow
def test_accumulation_changes_neither_loss_nor_update() -> None:
    batch = make_batch(8, CONFIG)  # with padding spread unevenly, so that the mean of means would be wrong
    whole, metrics = update(batch, "finetune")
    parts, split_metrics = update(batch, "finetune", accumulation=4)
    # float32 sums in another order
    np.testing.assert_allclose(metrics["loss"], split_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], split_metrics["grad_norm"], rtol=1e-5)
    moments, split_moments = (optax.tree.get(state.opt_state, "mu") for state in (whole, parts))
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(split_moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * float(metrics["grad_norm"]))


@pytest.mark.slow
def test_loss_is_the_mean_over_noises() -> None:
    batch = make_batch(2, CONFIG)
    noise, t, _ = make_draw(experimental.TIME_LAWS["uniform"], 3, CONFIG)(jax.random.key(1), 2)
    assert noise.shape == (2, 3, CONFIG.chunk_size, CONFIG.max_action_dim)
    total, count = reflow_sum(*weights(), batch, Draws(noise, t))
    single = [reflow_sum(*weights(), batch, Draws(noise[:, i : i + 1], t[:, i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(total, sum(s for s, _ in single), rtol=1e-5)
    assert count == sum(n for _, n in single)


@pytest.mark.slow
def test_the_teacher_integrates_once_for_all_times_of_a_noise() -> None:
    batch = make_batch(2, CONFIG)
    noise, t, _ = make_draw(experimental.TIME_LAWS["uniform"], 3, CONFIG, times=2)(jax.random.key(1), 2)
    assert (noise.shape[:2], t.shape) == ((2, 3), (2, 6))
    seen = []

    def solver(field: flow.Velocity, x: jax.Array, num_steps: int) -> jax.Array:
        seen.append(x.shape[1])
        return flow.euler(field, x, num_steps)

    total, count = reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=2, solver=solver)(
        *weights(), batch, Draws(noise, t)
    )
    apart = [reflow_sum(*weights(), batch, Draws(noise, t[:, i::2])) for i in range(2)]
    assert seen == [3]
    np.testing.assert_allclose(total, sum(part for part, _ in apart), rtol=1e-5)
    assert count == 2 * apart[0][1]


def test_reflow_learns_the_whole_endpoint_of_the_deployed_sampler() -> None:
    """By hand: the teacher's Euler chunk on the same noise, all padded dims, every position, padding or not."""
    student, teacher = (merge_params(w, weights().frozen) for w in (weights().student, weights().teacher))
    batch = make_batch(2, CONFIG)
    noise, t, _ = make_draw(experimental.TIME_LAWS["uniform"], 1, CONFIG)(jax.random.key(1), 2)

    @jax.jit
    def by_hand(student, teacher, batch):
        def field(params):
            memory = memorise(params, observe(params, batch.observation, config=CONFIG), state, config=CONFIG)
            return lambda x, time: velocity(params, memory, x, time, config=CONFIG)

        state = batch.observation.state
        endpoint = noise
        for time in (1.0, 0.5):
            endpoint = endpoint - field(teacher)(endpoint, jnp.full((2, 1), time)) / 2
        x_t = t[..., None, None] * noise + (1 - t[..., None, None]) * endpoint
        return endpoint, jnp.square(field(student)(x_t, t) - (noise - endpoint))

    endpoint, errors = by_hand(student, teacher, batch)
    assert float(jnp.abs(endpoint[..., 4:] - noise[..., 4:]).max()) > 0.01  # padded dims move, too
    total, count = reflow_sum(*weights(), batch, Draws(noise, t))
    assert count == errors.size
    np.testing.assert_allclose(total, jnp.sum(errors), rtol=1e-5)


@pytest.mark.slow
def test_real_pairs_are_learned_as_by_hand() -> None:
    """One of three noises: recorded actions, inverted through the teacher, masked; the others as without real pairs.

    Each observation by itself has the same pairs, so neither devices nor microbatches change them.
    """
    student, teacher = (merge_params(w, weights().frozen) for w in (weights().student, weights().teacher))
    batch = make_batch(2, CONFIG)
    noise, t, _ = make_draw(experimental.TIME_LAWS["uniform"], 3, CONFIG)(jax.random.key(1), 2)
    real = ~jnp.asarray(batch.action_is_pad)[:, None, :, None] & (jnp.arange(7) < 4)
    assert jnp.any(batch.action_is_pad)

    @jax.jit
    def by_hand(student, teacher, batch):
        def field(params):
            memory = memorise(params, observe(params, batch.observation, config=CONFIG), state, config=CONFIG)
            return lambda x, time: velocity(params, memory, x, time, config=CONFIG)

        state = batch.observation.state
        x_0 = noise
        for time in (1.0, 0.5):
            x_0 = x_0 - field(teacher)(x_0, jnp.full((2, 3), time)) / 2
        recorded = x_0[:, :1].at[..., :4].set(batch.actions[:, None, :, :4])
        upward = recorded
        for time in (0.0, 0.5):
            upward = upward + field(teacher)(upward, jnp.full((2, 1), time)) / 2
        x_0, mixed = x_0.at[:, :1].set(recorded), noise.at[:, :1].set(upward)
        x_t = t[..., None, None] * mixed + (1 - t[..., None, None]) * x_0
        return jnp.square(field(student)(x_t, t) - (mixed - x_0))

    errors = by_hand(student, teacher, batch)
    options = {"teacher_steps": 2}
    loss = jax.jit(experimental.mixed_reflow_loss(Networks(CONFIG, CONFIG), **options, real_noises=1, action_dim=4))
    total, count = loss(*weights(), batch, Draws(noise, t))
    assert count == jnp.sum(real) + errors[:, 1:].size
    np.testing.assert_allclose(total, jnp.sum(errors[:, :1] * real) + jnp.sum(errors[:, 1:]), rtol=1e-4)
    inputs = (batch, Draws(noise, t))
    alone = [loss(*weights(), *jax.tree.map(lambda x, i=i: x[i : i + 1], inputs)) for i in range(2)]
    np.testing.assert_allclose([total, count], np.sum(alone, axis=0), rtol=1e-4)


@pytest.mark.slow
def test_sampling_from_inverted_noise_gives_recorded_actions_back() -> None:
    """Through the network, with Heun's method: the error falls faster than the step."""
    params = merge_params(weights().teacher, weights().frozen)
    batch = make_batch(2, CONFIG)

    @functools.partial(jax.jit, static_argnums=2)
    def there_and_back(params, batch, steps):
        context = observe(params, batch.observation, config=CONFIG)
        memory = memorise(params, context, batch.observation.state, config=CONFIG)

        def field(x, t):
            return velocity(params, memory, x, t, config=CONFIG)

        noise = experimental.invert(experimental.heun, field, batch.actions[:, None], steps)
        return noise, experimental.heun(field, noise, steps)[:, 0]

    errors = []
    for steps in (16, 64):
        noise, back = there_and_back(params, batch, steps)
        assert float(jnp.abs(noise[:, 0] - batch.actions).max()) > 0.05
        errors.append(float(jnp.abs(back - batch.actions).max()))
    assert errors[1] < 3e-3
    assert errors[1] < errors[0] / 4


def test_training_and_acting_are_one_path() -> None:
    """At t = 1 a student that is its one-step teacher has nothing to learn: no mode, dimension or position sets them apart."""
    _, frozen, teacher = weights()
    batch = make_batch(2, CONFIG)
    noise, t, _ = make_draw(experimental.TIME_LAWS["uniform"], 2, CONFIG)(jax.random.key(1), 2)
    loss = jax.jit(reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=1))
    total, count = loss(teacher, frozen, teacher, batch, Draws(noise, jnp.ones_like(t)))
    assert total / count < 1e-11
    elsewhere, _ = loss(teacher, frozen, teacher, batch, Draws(noise, t))
    assert elsewhere / count > 1e-4


@pytest.mark.slow
def test_a_trained_vlm_gets_contexts_of_its_own() -> None:
    params = merge_params(weights().teacher, weights().frozen)
    teacher, frozen = split_params(params, lambda path: path[0] != "vision_model")
    assert not Networks(CONFIG, CONFIG).share_context(teacher)
    assert Networks(CONFIG, CONFIG).share_context(weights().teacher)
    batch = make_batch(2, CONFIG)
    draw = make_draw(experimental.TIME_LAWS["uniform"], 1, CONFIG)(jax.random.key(1), 2)
    apart = jax.jit(jax.value_and_grad(reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=2), has_aux=True))
    (same, _), gradient = apart(teacher, frozen, teacher, batch, draw)
    shared, _ = reflow_sum(weights().teacher, weights().frozen, weights().teacher, batch, draw)
    np.testing.assert_allclose(same, shared, rtol=1e-5)
    assert float(optax.tree.norm(gradient["connector"])) > 0
    (other, _), _ = apart({**teacher, "connector": perturb(teacher["connector"])}, frozen, teacher, batch, draw)
    assert abs(float(other) - float(same)) > 1e-3 * float(same)


def test_non_finite_update_changes_nothing_but_the_count() -> None:
    batch = make_batch(8, CONFIG)
    batch.actions[1, 0, 0] = np.inf
    state, metrics = update(batch, "finetune")
    assert not np.isfinite(metrics["loss"])
    assert int(state.step) == 1
    for after in (state.trainable, state.ema):
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(weights().student), strict=True):
            np.testing.assert_array_equal(a, b)


def test_moving_average() -> None:
    state, _ = update(make_batch(8, CONFIG), "finetune")
    # First update: the decay is 1 / 10 whatever was asked, so 9 / 10 of the way to the new weights.
    start, new, ema = (tree["action_in_proj"]["kernel"] for tree in (weights().student, state.trainable, state.ema))
    assert float(jnp.abs(new - start).max()) > 0
    np.testing.assert_allclose(ema, start + 0.9 * (new - start), rtol=1e-6, atol=1e-7)
    assert state.averaged is state.ema


def test_evaluation_repeats_itself() -> None:
    evaluate = make_eval_step(LOSSES["finetune"], make_draw(experimental.TIME_LAWS["beta"], 1, CONFIG), make_mesh())
    batch = shard_batch(make_batch(8, CONFIG), make_mesh())
    first, again, other = (evaluate(*weights(), batch, jax.random.key(k))[0] for k in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("batch_size", "accumulation"), [(3, 2), (0, 1), (4, 0)])
def test_batch_size_must_divide(batch_size: int, accumulation: int) -> None:
    with pytest.raises(TrainingError, match=f"--batch-size {batch_size}"):
        check_batch_size(batch_size, accumulation, make_mesh())


def test_mesh_needs_a_divisor() -> None:
    with pytest.raises(TrainingError, match="fsdp"):
        make_mesh(fsdp=jax.device_count() + 1)
