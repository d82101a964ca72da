"""Choices of the recipe that lost their comparison (docs/recipe.md): another solver, other laws of t, recorded pairs.

The options in the box "experimental" of `train.py NAME --help` choose them. `SOLVERS`, `OBJECTIVES` and `TIME_LAWS` hold them by
name, beside those that won.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxreflow import flow
from jaxreflow.errors import ConfigError
from jaxreflow.flow import Objective, Solver, TimeLaw, Velocity
from jaxreflow.model.types import Batch, Params
from jaxreflow.training.losses import Draws, LossFunction, Networks, velocity_fields


def heun(velocity: Velocity, noise: Float[Array, "*batch C A"], num_steps: int) -> Float[Array, "*batch C A"]:
    """Integrates from noise (t = 1) to actions (t = 0) with `num_steps` steps of Heun's method in float32.

    The explicit trapezoid, of second order: an Euler step, then the mean of the velocities at its two ends. Also the last
    step takes that mean, at t = 0, where this field is finite; so a step costs two evaluations.
    """
    grid = 1.0 - np.arange(num_steps + 1, dtype=np.float64) / num_steps

    def step(x: Array, ends: Array) -> tuple[Array, None]:
        t, after = (jnp.broadcast_to(end, x.shape[:-2]) for end in ends)
        first = velocity(x, t)
        second = velocity(x - first / num_steps, after)
        return x - (first + second) / (2 * num_steps), None

    ends = jnp.asarray(np.stack([grid[:-1], grid[1:]], axis=1), jnp.float32)
    return jax.lax.scan(step, noise.astype(jnp.float32), ends)[0]


def invert(
    solver: Solver, velocity: Velocity, x_0: Float[Array, "*batch C A"], num_steps: int
) -> Float[Array, "*batch C A"]:
    """The noise that the flow carries to x_0: the same solver on the same field, upward from t = 0 to t = 1.

    In s = 1 - t that is the sampler itself, on the field -v(x, 1 - s): for Euler, `x <- x + v(x, t) / num_steps` at
    `t = 0, 1/num_steps, ..., 1 - 1/num_steps`.
    """
    return solver(lambda x, s: -velocity(x, 1.0 - s), x_0, num_steps)


def masked_reflow_loss(
    velocity: Velocity,
    x_0: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B N"],
    valid: Bool[Array, "B M C A"],
    *,
    objective: Objective = flow.mean_square,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`reflow_loss` on pairs (noise, x_0) of which only the `valid` entries are known: sum and count over these."""
    x_0, noise, valid = jax.lax.stop_gradient(flow.at_all_times((x_0, noise, valid), t))
    squares = flow.squared_errors(velocity, x_0, noise, t)
    return objective(jnp.where(valid, squares, 0.0), jnp.sum(valid, axis=(-2, -1), dtype=jnp.float32))


def real_noises(share: float, noises: int) -> int:
    """How many of an observation's noises belong to recorded actions; ConfigError if that is no whole number."""
    if not 0 <= share < 1:
        raise ConfigError(f"--real-share must lie in [0, 1), found {share}")
    count = round(share * noises)
    if abs(share * noises - count) > 1e-6:
        possible = ", ".join(f"{k / noises:.4g}" for k in range(noises))
        raise ConfigError(
            f"--real-share must be a whole number of the {noises} noise(s) of an observation, one of {possible}; "
            f"found {share}: choose one of these or another --noises"
        )
    return count


def mix_real_pairs(
    inverse: Callable[[Array], Array],
    endpoint: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    actions: Float[Array, "B C A"],
    action_is_pad: Bool[Array, "B C"],
    *,
    real_noises: int,
    action_dim: int,
    dims: int | None = None,
) -> tuple[Float[Array, "B M C A"], Float[Array, "B M C A"], Bool[Array, "B M C A"]]:
    """Puts recorded chunks in the place of each observation's first `real_noises` endpoints: `(x_0, noise, valid)`.

    `inverse` is the teacher's flow from x_0 up to noise (arXiv 2412.08175: repeated reflow on sampled pairs alone
    collapses). Which pairs are real depends on their place among the M noises only, so their share is the same in every
    batch, device and microbatch.

    A recorded chunk has no padded dims: loaders fill them with zeros. Inverted, zeros would become padded noise that no
    sampler draws (a teacher trained on zeros leads them to zeros; one whose padded dims were masked was never told), and
    the student would be trained where it is never asked. So the padded dims of a real x_0 are the teacher's own, the
    endpoint of the noise drawn at that place: inverted, they become about that noise again. Nothing is learned from them in
    a real pair, nor from positions beyond the episode's end, which no earlier position attends to.
    """
    recorded = jnp.broadcast_to(actions[:, None, :, :action_dim], (*noise[:, :real_noises].shape[:-1], action_dim))
    real = jnp.concatenate([recorded.astype(endpoint.dtype), endpoint[:, :real_noises, :, action_dim:]], axis=-1)
    dim = jnp.arange(noise.shape[-1])
    known = ~action_is_pad[:, None, :, None] & (dim < action_dim)
    known = jnp.broadcast_to(known, real.shape)
    rest = jnp.broadcast_to(dim < (noise.shape[-1] if dims is None else dims), noise[:, real_noises:].shape)
    return (
        jnp.concatenate([real, endpoint[:, real_noises:]], axis=1),
        jnp.concatenate([inverse(real), noise[:, real_noises:]], axis=1),
        jnp.concatenate([known, rest], axis=1),
    )


def noise_biased_time(key: Array, shape: tuple[int, ...]) -> Array:
    """LeRobot's form with more mass near noise: 0.999 * Beta(4, 1) + 0.001 (arXiv 2606.05737)."""
    return 0.999 * jax.random.uniform(key, shape) ** 0.25 + 0.001


def uniform_time(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform on (0, 1]."""
    return 1.0 - jax.random.uniform(key, shape)


def discrete_time(key: Array, shape: tuple[int, ...]) -> Array:
    """t in {1, 1/2}, the times of a two-step sampler, with equal mass."""
    return jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, 0.5)


def mixed_reflow_loss(
    networks: Networks,
    *,
    teacher_steps: int,
    real_noises: int,
    action_dim: int,
    solver: Solver = flow.euler,
    objective: Objective = flow.mean_square,
    dims: int | None = None,
) -> LossFunction:
    """`reflow_loss` whose first `real_noises` pairs of every observation are recorded actions and their inverted noise.

    Real pairs count in the real action dims inside the episode only, whatever `dims` asks of the others.
    """

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        own, student = velocity_fields(trainable, frozen, teacher, batch, networks)
        x_0, noise, valid = mix_real_pairs(
            lambda x_0: invert(solver, own, x_0, teacher_steps),
            solver(own, draws.noise, teacher_steps),
            draws.noise,
            jnp.asarray(batch.actions),
            jnp.asarray(batch.action_is_pad),
            real_noises=real_noises,
            action_dim=action_dim,
            dims=dims,
        )
        return masked_reflow_loss(student, x_0, noise, draws.t, valid, objective=objective)

    return loss


SOLVERS: Mapping[str, Solver] = {"euler": flow.euler, "heun": heun}
OBJECTIVES: Mapping[str, Objective] = {"mse": flow.mean_square, "pseudo-huber": flow.pseudo_huber}
TIME_LAWS: Mapping[str, TimeLaw] = {
    "beta": flow.beta_time,
    "uniform": uniform_time,
    "u-shaped": flow.u_shaped_time,
    "exponential": flow.exponential_time,
    "half-at-one": flow.half_at_one(flow.u_shaped_time),
    "half-at-one-beta": flow.half_at_one(flow.beta_time),
    "half-at-one-exponential": flow.half_at_one(flow.exponential_time),
    "discrete": discrete_time,
    "noise-biased": noise_biased_time,
}
