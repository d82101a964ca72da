"""Operations of an update by part, against formulas from shapes: images, language, teacher's steps, student's gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import floor
from jaxreflow.model import init_params
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.policy.architecture import network_of
from jaxreflow.run.arithmetic import ACTING, BACKWARD, FORWARD, LANGUAGE, OPTIMIZER, VISION, call_operations, operations
from jaxreflow.training.losses import TEACHER, Draws, LossFunction, Networks, finetune_loss, reflow_loss
from tests.tiny import VLM, tiny_policy
from tests.tiny_policy import make_batch

CONFIG = network_of(tiny_policy(), VLM)
BATCH, NOISES, STEPS = 3, 2, 7


def counted(loss: LossFunction) -> dict[str, float]:
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), CONFIG))
    trainable, frozen = split_params(params, trainable_in_reflow)
    noise = jnp.zeros((BATCH, NOISES, CONFIG.chunk_size, CONFIG.max_action_dim))
    gradient = jax.value_and_grad(loss, has_aux=True)
    inputs = (trainable, frozen, trainable, make_batch(BATCH, CONFIG), Draws(noise, noise[..., 0, 0]))
    return operations(jax.make_jaxpr(gradient)(*inputs).jaxpr)


def test_parts_of_a_reflow_update(monkeypatch: pytest.MonkeyPatch) -> None:
    language = 5
    monkeypatch.setattr(floor, "LANGUAGE_TOKENS", language)
    rows = 2 * (32 // 8) ** 2 // 4 + language
    memory = floor.extend(CONFIG, rows) + floor.remember(CONFIG, rows + 1)
    once = floor.velocity(CONFIG, NOISES, rows + 1)
    found = counted(reflow_loss(Networks(CONFIG, CONFIG), teacher_steps=STEPS))
    size = floor.Size(BATCH, NOISES, cameras=2, steps=STEPS)
    expected = floor.reflow_step(CONFIG, size)
    assert list(found) == [VISION, LANGUAGE, TEACHER, FORWARD, BACKWARD]
    assert found[VISION] == expected["images"]
    assert found[LANGUAGE] == expected["context"]
    assert found[TEACHER] == expected["teacher"] == BATCH * (memory + STEPS * once)
    assert found[FORWARD] == BATCH * (memory + once)
    # Twice the forward pass, but for what needs no gradient; of these small layers that is more than of large ones.
    assert found[BACKWARD] == pytest.approx(expected["student"] - found[FORWARD], rel=0.05)


def test_parts_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "LANGUAGE_TOKENS", 5)
    found = call_operations(CONFIG, 5, STEPS)
    expected = floor.sample(CONFIG, floor.Size(1, 1, cameras=2, steps=STEPS))
    assert list(found) == [VISION, LANGUAGE, ACTING]
    assert sum(found.values()) == sum(expected.values())
    assert found[ACTING] > expected["loop"]


def test_fine_tuning_has_no_teacher() -> None:
    found = counted(finetune_loss(CONFIG, action_dim=4, reduction="lerobot-main"))
    assert list(found) == [VISION, LANGUAGE, FORWARD, BACKWARD]


def test_products_beside_the_loss_are_the_optimizers() -> None:
    def loss(x: Any) -> Any:
        return jnp.sum(x @ x)

    def update(x: Any) -> Any:
        return x - jax.lax.fori_loop(0, 5, lambda _, g: g @ g, jax.grad(loss)(x))

    found = operations(jax.make_jaxpr(update)(jnp.zeros((4, 4))).jaxpr)
    assert found == {FORWARD: 2 * 4**3, BACKWARD: 2 * 2 * 4**3, OPTIMIZER: 5 * 2 * 4**3}
