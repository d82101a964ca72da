"""Rectified flow, without a network: interpolation, the sampler and its guidance, laws of time and the losses.

Convention, everywhere in this package (LeRobot's and openpi's; most rectified-flow papers run the other way):
`t = 1` is noise, `t = 0` is the action.

    x_t = t * noise + (1 - t) * x_0        u = d x_t / d t = noise - x_0
    Euler:  x <- x - v(x, t) / num_steps   at t = 1, 1 - 1/num_steps, ..., 1/num_steps

A `Velocity` is any function `(x_t, t) -> v_t`; t has the leading axes of x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

Velocity: TypeAlias = Callable[[Array, Array], Array]
TimeLaw: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
Solver: TypeAlias = Callable[[Velocity, Array, int], Array]
Objective: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]

PSEUDO_HUBER_C = 0.00054


def interpolate(
    x_0: Float[Array, "*batch C A"], noise: Float[Array, "*batch C A"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C A"]:
    """The straight path at time t: `t * noise + (1 - t) * x_0`."""
    t = t[..., None, None]
    return t * noise + (1.0 - t) * x_0


def sample_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, ...]:
    """N(0, I) in float32 on every padded action dimension: the one source of noise, for training and for acting."""
    return jax.random.normal(key, shape, jnp.float32)


def euler_times(num_steps: int) -> Float[np.ndarray, " T"]:
    """The times at which `num_steps` Euler steps evaluate the velocity: 1, 1 - 1/num_steps, ..., 1/num_steps."""
    return (1.0 - np.arange(num_steps, dtype=np.float64) / num_steps).astype(np.float32)


def euler(velocity: Velocity, noise: Float[Array, "*batch C A"], num_steps: int) -> Float[Array, "*batch C A"]:
    """Integrates from noise (t = 1) to actions (t = 0) with `num_steps` Euler steps in float32."""
    times = jnp.asarray(euler_times(num_steps))

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x - velocity(x, jnp.broadcast_to(t, x.shape[:-2])) / num_steps, None

    return jax.lax.scan(step, noise.astype(jnp.float32), times)[0]


class Guidance(NamedTuple):
    """Where the beginning of a chunk has to lead: the actions that are on their way already, in normalised units."""

    previous: Float[Array, "*batch C A"]
    weights: Float[Array, "*batch C"]
    """1 where an action is certain to be executed, falling to 0 where the new chunk is free."""
    max_weight: Float[Array, ""]
    """Upper limit of the guidance's strength; the number of Euler steps is the largest that does not overshoot."""


def guide(velocity: Velocity, guidance: Guidance) -> Velocity:
    """The field that leads towards `guidance.previous`: real-time chunking as LeRobot 0.4.4 and 0.6.1 compute it.

    With the endpoint `x_hat = x_t - t v` that the velocity promises,

        v - min((t^2 + (1 - t)^2) / (t (1 - t)), max_weight) * weights * (previous - x_hat)

    Black et al. 2025 (arXiv 2506.07339) multiply the error with the Jacobian of x_hat. LeRobot computes it as the identity
    (`lerobot/policies/rtc/modeling_rtc.py`; huggingface/lerobot#2511), and so does this function.
    """

    def guided(x_t: Array, t: Array) -> Array:
        v = velocity(x_t, t)
        time = t[..., None, None]
        error = guidance.weights[..., None] * (guidance.previous - (x_t - time * v))
        strength = jnp.minimum((time**2 + (1.0 - time) ** 2) / (time * (1.0 - time)), guidance.max_weight)
        return v - strength * error

    return guided


def squared_errors(
    velocity: Velocity, x_0: Float[Array, "*batch C A"], noise: Float[Array, "*batch C A"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C A"]:
    """`(noise - x_0 - v(x_t, t))^2`, elementwise: what both losses average."""
    error = noise - x_0 - velocity(interpolate(x_0, noise, t), t)
    return jnp.square(error.astype(jnp.float32))


def mean_valid(
    errors: Float[Array, "B M C A"], action_is_pad: Bool[Array, "B C"], action_dim: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count over real action dims inside the episode: LeRobot's reduction since 0.5 (`lerobot` main)."""
    valid = jnp.broadcast_to(~action_is_pad[:, None, :, None], (*errors.shape[:-1], action_dim))
    return jnp.sum(errors[..., :action_dim] * valid), jnp.sum(valid, dtype=jnp.float32)


def mean_padded(
    errors: Float[Array, "B M C A"], action_is_pad: Bool[Array, "B C"], action_dim: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count over all padded dims and positions: LeRobot 0.4.4's reduction, and the reflow loss's."""
    del action_is_pad, action_dim
    return jnp.sum(errors), jnp.float32(errors.size)


REDUCTIONS: Mapping[str, Callable[..., tuple[Array, Array]]] = {
    "lerobot-main": mean_valid,
    "lerobot-0.4.4": mean_padded,
}


def flow_matching_loss(
    velocity: Velocity,
    actions: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B M"],
    action_is_pad: Bool[Array, "B C"],
    *,
    action_dim: int,
    reduction: str = "lerobot-main",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Flow matching on recorded actions (1-rectified flow): sum of squared errors and their count; the loss is the quotient."""
    return REDUCTIONS[reduction](squared_errors(velocity, actions, noise, t), action_is_pad, action_dim)


def mean_square(
    squares: Float[Array, "B M C D"], entries: Float[Array, "B M"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count of squared errors, `entries` of which count in each chunk (the others are zero)."""
    return jnp.sum(squares), jnp.sum(entries)


def pseudo_huber(
    squares: Float[Array, "B M C D"], entries: Float[Array, "B M"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Pseudo-Huber norm of each chunk's error e, `sqrt(||e||^2 + c^2) - c` with `c = 0.00054 sqrt(d)`, over `sqrt(d)`.

    Lee, Lin and Fanti 2024 ("Improving the training of rectified flows") take it for reflow, with the scale of c from Song
    and Dhariwal 2023 ("Improved techniques for training consistency models"); d is the number of entries. Divided by
    sqrt(d) it is the chunk's root mean square error, `sqrt(mean e^2 + 0.00054^2) - 0.00054`, whatever d is, and its
    gradient is that of the mean square divided by 2 sqrt(mean e^2 + 0.00054^2): learning rates and gradient norms stay in
    their order of magnitude. A chunk weighs as many times as it has entries, as in the mean square.
    """
    mean = jnp.sum(squares, axis=(-2, -1)) / jnp.maximum(entries, 1.0)
    return jnp.sum(entries * (jnp.sqrt(mean + PSEUDO_HUBER_C**2) - PSEUDO_HUBER_C)), jnp.sum(entries)


def reflow_loss(
    velocity: Velocity,
    endpoint: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B N"],
    *,
    objective: Objective = mean_square,
    dims: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Reflow on pairs (noise, teacher's endpoint): sum and count over all positions and the first `dims` dims (None: all).

    Nothing is masked: the teacher's endpoint is defined at every position and in every padded dimension, and the sampler
    integrates them all (Liu et al. 2022, equation 1 with the coupling of the teacher's own ODE). Each pair
    counts at N / M times: the teacher integrates once for all of them.
    """
    endpoint, noise = jax.lax.stop_gradient(at_all_times((endpoint, noise), t))
    squares = squared_errors(velocity, endpoint, noise, t)[..., :dims]
    return objective(squares, jnp.full(t.shape, math.prod(squares.shape[2:]), jnp.float32))


def at_all_times(pairs: tuple[Array, ...], t: Float[Array, "B N"]) -> tuple[Array, ...]:
    """Each of M pairs once for each of its N / M times, which follow each other in t."""
    return tuple(jnp.repeat(part, t.shape[1] // part.shape[1], axis=1) for part in pairs)


def beta_time(key: Array, shape: tuple[int, ...]) -> Array:
    """LeRobot's law: 0.999 * Beta(1.5, 1) + 0.001; Beta(a, 1) is U^(1/a)."""
    return 0.999 * jax.random.uniform(key, shape) ** (2.0 / 3.0) + 0.001


def exponential_time(key: Array, shape: tuple[int, ...], rate: float = 4.0) -> Array:
    """Density proportional to e^(rate * t) on [0, 1], by the inverse of its distribution function."""
    return jnp.log1p(jax.random.uniform(key, shape) * math.expm1(rate)) / rate


def u_shaped_time(key: Array, shape: tuple[int, ...], rate: float = 4.0) -> Array:
    """Density proportional to e^(rate * t) + e^(rate * (1 - t)) (Lee, Lin and Fanti 2024)."""
    draw, flip = jax.random.split(key)
    t = exponential_time(draw, shape, rate)
    return jnp.where(jax.random.bernoulli(flip, 0.5, shape), t, 1.0 - t)


def half_at_one(rest: TimeLaw) -> TimeLaw:
    """Half the mass at exactly t = 1, where a one-step student is evaluated; the other half by the law `rest`."""

    def law(key: Array, shape: tuple[int, ...]) -> Array:
        draw, choose = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(choose, 0.5, shape), 1.0, rest(draw, shape))

    return law
