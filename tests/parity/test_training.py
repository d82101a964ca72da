"""Optimizer and whole training steps against LeRobot's presets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreflow.model.types import Batch
from jaxreflow.run.config_groups import policy_optimizer
from jaxreflow.support.mesh import make_mesh
from jaxreflow.training.losses import Draws, finetune_loss
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.training.step import Draw, init_state, make_train_step
from tests.parity.case import Case
from tests.parity.comparison import WITHOUT_GRADIENT
from tests.parity.conftest import Measure
from tests.parity.inputs import TRAINING_STEPS
from tests.parity.variants import VARIANTS

Cases = Callable[[str], Case]
Measuring = Callable[[str], Measure]
TRAINED = [name for name, variant in VARIANTS.items() if variant.train]


def optimizer_config(case: Case) -> OptimizerConfig:
    """The optimizer that the policy's config asks for."""
    return OptimizerConfig(**policy_optimizer(case.candidate.policy.config))


def given_draw(key: jax.Array, noise: np.ndarray, time: np.ndarray) -> Draw:
    """A draw that returns row n of `noise` and `time` when it receives the key of step n."""
    keys = jnp.stack([jax.random.key_data(jax.random.fold_in(key, step)) for step in range(len(noise))])

    def draw(step_key: jax.Array, batch_size: int) -> Draws:
        del batch_size
        step = jnp.argmax(jnp.all(keys == jax.random.key_data(step_key), axis=-1))
        return Draws(jnp.asarray(noise)[step][:, None], jnp.asarray(time)[step][:, None])

    return draw


@pytest.mark.parametrize(("name", "steps"), [("tiny", 40), ("tiny", 100_000), ("train_all", 40)])
def test_updates_equal_lerobot_on_its_gradients(name: str, steps: int, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    expected = of.oracle.updates(of.gradients, steps)
    optimizer = make_optimizer(optimizer_config(of), steps)
    weights, _ = of.candidate.split()
    state, measure = optimizer.init(weights), measuring(name)
    gradients = unflatten_dict(of.candidate.from_keys(of.gradients, "grad/"))
    assert set(flatten_dict(gradients)) == set(flatten_dict(weights))
    update = jax.jit(optimizer.update)
    for step, scale in enumerate((1.0, 0.01, 300.0)):
        updates, state = update(jax.tree.map(lambda g, s=scale: g * np.float32(s), gradients), state, weights)
        for key, value in of.candidate.by_key(updates, f"update/{step}/").items():
            measure("update", value, expected[key], key)


@pytest.mark.parametrize("steps", [1, 5, 40, 1_000, 29_999, 30_000, 100_000])
def test_schedule_equals_lerobot(steps: int, case: Cases) -> None:
    of = case("tiny")
    expected = of.oracle.learning_rates(steps)
    found = make_schedule(optimizer_config(of), steps)
    for count, rate in expected.items():
        np.testing.assert_allclose(float(found(count)), rate, rtol=1e-6, err_msg=f"update {count} of {steps}")


@pytest.mark.parametrize("name", TRAINED)
def test_whole_steps_equal_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    expected, candidate, inputs = of.oracle.train(of.inputs), of.candidate, of.inputs
    config, mesh, key = optimizer_config(of), make_mesh(), jax.random.key(3)
    optimizer = make_optimizer(config, TRAINING_STEPS)
    step = make_train_step(
        finetune_loss(candidate.config, action_dim=of.variant.action_dim, reduction="lerobot-main"),
        optimizer,
        make_schedule(config, TRAINING_STEPS),
        given_draw(key, inputs.noise, inputs.time),
        mesh,
    )
    batch = Batch(
        observation=candidate.observation(inputs, of.prepared),
        actions=jnp.asarray(of.prepared["actions"]),
        action_is_pad=jnp.asarray(inputs.action_is_pad),
        index=jnp.arange(of.variant.batch_size, dtype=jnp.int32),
    )
    trainable, frozen = jax.tree.map(jnp.asarray, candidate.split())
    before = jax.tree.map(np.asarray, trainable)
    state, losses = init_state(jax.tree.map(jnp.copy, trainable), optimizer, ema=False), []
    for _ in range(TRAINING_STEPS):
        state, metrics = step(state, frozen, frozen, batch, key)
        losses.append(metrics["loss"])
    change: Any = jax.tree.map(lambda after, start: np.asarray(after) - start, state.trainable, before)
    measure = measuring(name)
    measure("train_loss", np.stack(losses), expected["train_losses"])
    for leaf, value in candidate.by_key(change, "trained/").items():
        if leaf.endswith(WITHOUT_GRADIENT):
            # Adam makes whole steps of the rounding errors that are its gradient, on both sides and without effect.
            continue
        measure("trained", value, expected[leaf], leaf)
