"""The run's loss: every flag of the recipe reaches it, and no flag leaves a trace where it is not set."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxreflow import flow
from jaxreflow.errors import ConfigError
from jaxreflow.model import init_params
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy
from jaxreflow.run.config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.run.programs import loss_and_draw, make_loss
from jaxreflow.training import experimental
from jaxreflow.training.losses import Draws, LossFunction, Networks, finetune_loss, reflow_loss
from tests.checkpoint_edits import GOLDENS
from tests.tiny import VLM, tiny_policy
from tests.tiny_policy import make_batch

NOISES, REAL_DIMS = 2, 4
CONFIG = network_of(tiny_policy(num_vlm_layers=2), VLM)


@functools.cache
def weights() -> Any:
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), CONFIG))
    return split_params(params, trainable_in_reflow)


def checkpoint(num_steps: int = 10) -> SavedPolicy:
    policy = tiny_policy(num_vlm_layers=2, num_steps=num_steps)
    return dataclasses.replace(load_saved_policy(GOLDENS / "cross"), policy=policy, config=CONFIG)


def program(loss: LossFunction) -> str:
    """The loss as a text that two losses share only if they are the same program."""
    trainable, frozen = weights()
    batch = make_batch(2, CONFIG)
    noise = jnp.zeros((2, NOISES, CONFIG.chunk_size, CONFIG.max_action_dim))
    return str(jax.make_jaxpr(loss)(trainable, frozen, trainable, batch, Draws(noise, noise[..., 0, 0])))


@functools.cache
def plain() -> str:
    return program(reflow_loss(Networks(CONFIG, CONFIG), **PLAIN))


def of(config: RunConfig) -> str:
    return program(make_loss(config, checkpoint()))


PLAIN: dict[str, Any] = {"teacher_steps": 10}
REFLOW = {
    "teacher_steps": ({"teacher_steps": 3}, {"teacher_steps": 3}),
    "heun": ({"teacher_solver": "heun"}, {"solver": experimental.heun}),
    "pseudo-huber": ({"objective": "pseudo-huber"}, {"objective": flow.pseudo_huber}),
    "real dims": ({"loss_dims": "real"}, {"dims": REAL_DIMS}),
}


def test_no_option_leaves_a_trace_where_it_is_not_set() -> None:
    assert of(ReflowConfig(noises=NOISES)) == plain()


@pytest.mark.parametrize(("flags", "options"), REFLOW.values(), ids=list(REFLOW))
def test_every_option_reaches_the_loss(flags: dict[str, Any], options: dict[str, Any]) -> None:
    found = of(ReflowConfig(noises=NOISES, **flags))
    assert found == program(reflow_loss(Networks(CONFIG, CONFIG), **{**PLAIN, **options}))
    assert found != plain()


def test_real_pairs_come_with_all_other_options() -> None:
    flags, options = ({k: v for pair in REFLOW.values() for k, v in pair[i].items()} for i in (0, 1))
    found = of(ReflowConfig(noises=NOISES, real_share=0.5, **flags))
    options |= {"real_noises": 1, "action_dim": REAL_DIMS}
    assert found == program(experimental.mixed_reflow_loss(Networks(CONFIG, CONFIG), **options))
    for name in ("solver", "objective", "dims"):
        assert found != program(
            experimental.mixed_reflow_loss(Networks(CONFIG, CONFIG), **{k: v for k, v in options.items() if k != name})
        ), name


def test_real_pairs_are_inverted_by_the_solver_that_samples() -> None:
    calls = []

    def solver(field: flow.Velocity, x: jax.Array, num_steps: int) -> jax.Array:
        calls.append((x.shape[1], num_steps))
        return experimental.heun(field, x, num_steps)

    options = {"teacher_steps": 3, "real_noises": 1, "action_dim": REAL_DIMS}
    program(experimental.mixed_reflow_loss(Networks(CONFIG, CONFIG), **options, solver=solver))
    assert calls == [(NOISES, 3), (1, 3)]


@pytest.mark.parametrize(("config", "times"), [(ReflowConfig(noises=3, times=2), 6), (FinetuneConfig(noises=3), 3)])
def test_as_many_times_are_drawn_as_asked_for(config: RunConfig, times: int) -> None:
    _, draw = loss_and_draw(config, checkpoint())
    noise, t, _ = draw(jax.random.key(0), 2)
    assert (noise.shape[:2], t.shape) == ((2, 3), (2, times))


def test_finetune_has_its_own() -> None:
    expected = finetune_loss(CONFIG, action_dim=REAL_DIMS, reduction="lerobot-0.4.4")
    assert of(FinetuneConfig(loss_compat="lerobot-0.4.4")) == program(expected)


def test_a_student_is_a_teacher_of_ten_steps() -> None:
    """A further round of reflow learns from the student's flow, not from the one step that its config names."""
    loss = make_loss(ReflowConfig(noises=NOISES), checkpoint(num_steps=1))
    assert program(loss) == plain()
    assert "length=10" in plain()


@pytest.mark.parametrize(("share", "noises", "real"), [(0.0, 1, 0), (0.25, 4, 1), (0.5, 4, 2), (0.3, 10, 3)])
def test_share_of_real_pairs_is_exact(share: float, noises: int, real: int) -> None:
    assert ReflowConfig(real_share=share, noises=noises).real_noises == real


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"real_share": 0.3}, "--real-share must be a whole number .* 0, 0.25, 0.5, 0.75; found 0.3"),
        ({"real_share": 0.5, "noises": 1}, "one of 0; found 0.5"),
        ({"real_share": 1.0}, r"--real-share must lie in \[0, 1\), found 1.0"),
        ({"real_share": float("nan")}, r"--real-share must lie in \[0, 1\), found nan"),
        ({"objective": "huber"}, "--objective must be one of mse, pseudo-huber, found 'huber'"),
        ({"times": 0}, "--times must be at least 1, found 0"),
        ({"teacher_solver": "rk4"}, "--teacher-solver must be one of euler, heun, found 'rk4'"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReflowConfig(**fields)
