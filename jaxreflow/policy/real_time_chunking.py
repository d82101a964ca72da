"""From the actions that a robot has not executed yet to the guidance of its next chunk, with LeRobot's names and defaults.

Real-time chunking (Black et al. 2025, arXiv 2506.07339) computes a chunk while the one before is still being executed. LeRobot's
`RTCConfig` names its settings, and a checkpoint's `rtc_config` may hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxreflow import flow
from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.observation import Transforms

# LeRobot's, where the checkpoint says nothing.
DEFAULTS: dict[str, Any] = {
    "execution_horizon": 10,
    "prefix_attention_schedule": "linear",
    "max_guidance_weight": 10.0,
}


def make_guidance(
    left_over: Sequence[Float[np.ndarray, "_ d"]],
    policy: PolicyConfig,
    batch_size: int,
    num_steps: int,
    *,
    inference_delay: int | None,
    execution_horizon: int | None,
    prefix_attention_schedule: str | None,
    max_guidance_weight: float | None,
) -> flow.Guidance:
    """The guidance towards what `read_left_over` gave, for one noise per observation; see `SmolVLAPolicy.predict_action_chunk`.

    Raises:
        ConfigError: one of the settings is out of its range.
    """
    settings = _settings(policy)
    delay = _number("inference_delay", 0, inference_delay, Integral)
    horizon = _number("execution_horizon", settings["execution_horizon"], execution_horizon, Integral)
    if not 0 <= delay <= horizon:
        raise ConfigError(
            f"`inference_delay`: expected 0 to `execution_horizon` ({horizon}) actions, found {delay}; "
            "give a larger `execution_horizon`, or ask for the next chunk sooner"
        )
    # As few steps as a student takes would overshoot under LeRobot's weight: one Euler step with 10 lands nine times as far off.
    weight = _number("max_guidance_weight", settings["max_guidance_weight"], max_guidance_weight, Real)
    weight = min(weight, num_steps) if max_guidance_weight is None else weight
    if not 0 < weight < np.inf:
        raise ConfigError(f"`max_guidance_weight`: expected a positive number, found {weight}")
    schedule = settings["prefix_attention_schedule"] if prefix_attention_schedule is None else prefix_attention_schedule
    shape = (batch_size, policy.chunk_size, policy.max_action_dim)
    return guidance_towards(left_over, shape, delay, horizon, str(schedule), float(weight))


def execution_horizon(policy: PolicyConfig) -> int:
    """Where the guidance ends if nothing else is said; ConfigError if the checkpoint's is no whole number."""
    horizon: int = _number("execution_horizon", _settings(policy)["execution_horizon"], None, Integral)
    return horizon


def _settings(policy: PolicyConfig) -> dict[str, Any]:
    return {**DEFAULTS, **{k: v for k, v in (policy.carried.get("rtc_config") or {}).items() if v is not None}}


def guidance_towards(
    left_over: Sequence[Float[np.ndarray, "_ d"]],
    shape: tuple[int, int, int],
    delay: int,
    horizon: int,
    schedule: str,
    max_weight: float,
) -> flow.Guidance:
    """The guidance of chunks of `shape` `[B, C, A]` towards the left-over of each robot, in normalised units.

    Dims beyond d and positions beyond a left-over are zeros; the horizon ends with the left-over, as in LeRobot.
    """
    previous = np.zeros((shape[0], 1, *shape[1:]), np.float32)
    weights = np.zeros((shape[0], 1, shape[1]), np.float32)
    for i, actions in enumerate(left_over):
        length, dims = actions.shape
        previous[i, 0, :length, :dims] = actions
        weights[i, 0] = prefix_weights(delay, min(horizon, length), shape[1], schedule)
    return flow.Guidance(jnp.asarray(previous), jnp.asarray(weights), jnp.float32(max_weight))


def prefix_weights(delay: int, horizon: int, length: int, schedule: str) -> Float[np.ndarray, " C"]:
    """1 on the first `delay` actions, 0 from `horizon` on, and between them as LeRobot's `RTCAttentionSchedule` says.

    `schedule` is "linear", "exp", "ones" or "zeros", in any case; with n actions between, the i-th of them has
    `w = 1 - i / (n + 1)` in "linear" and `w (e^w - 1) / (e - 1)` in "exp".

    Raises:
        ConfigError: there is no such schedule.
    """
    horizon = min(horizon, length)
    delay = min(delay, horizon)
    falling = np.linspace(1.0, 0.0, horizon - delay + 2)[1:-1]
    between = {
        "linear": falling,
        "exp": falling * np.expm1(falling) / (math.e - 1.0),
        "ones": np.ones_like(falling),
        "zeros": np.zeros_like(falling),
    }
    if schedule.lower() not in between:
        raise ConfigError(f"`prefix_attention_schedule`: expected one of {', '.join(between)}, found {schedule!r}")
    parts = (np.ones(delay), between[schedule.lower()], np.zeros(length - horizon))
    return np.concatenate(parts).astype(np.float32)


def fitting_rtc_config(rtc_config: Any, num_steps: int) -> Any:
    """A checkpoint's `rtc_config` whose `max_guidance_weight` is at most the number of steps; itself if it is so already.

    LeRobot's default of 10 fits ten steps. With one step it leaves the actions on their way nine times as far off as they were.
    """
    if not isinstance(rtc_config, dict):
        return rtc_config
    weight = rtc_config.get("max_guidance_weight", DEFAULTS["max_guidance_weight"])
    if not isinstance(weight, Real) or weight <= num_steps:
        return rtc_config
    return {**rtc_config, "max_guidance_weight": float(num_steps)}


def no_guidance(policy: PolicyConfig, batch_size: int) -> flow.Guidance:
    """Guidance of the same form that changes nothing: for compiling ahead of time."""
    shape = (batch_size, 1, policy.chunk_size, policy.max_action_dim)
    return flow.Guidance(jnp.zeros(shape), jnp.zeros(shape[:3]), jnp.float32(1.0))


def _number(name: str, default: Any, given: Any, kind: type) -> Any:
    value = default if given is None else given
    if not isinstance(value, kind) or isinstance(value, bool):
        where = "config.json: `rtc_config`: " if given is None else ""
        expected = "a whole number" if kind is Integral else "a number"
        raise ConfigError(f"{where}`{name}`: expected {expected}, found {value!r}")
    return value


def read_left_over(value: Any, transforms: Transforms, batch_size: int) -> list[Float[np.ndarray, "_ d"]]:
    """The left-over of each robot in normalised units; see `SmolVLAPolicy.predict_action_chunk`.

    Raises:
        ProcessorError: it has the wrong form, or is not finite.
    """
    rows = value if isinstance(value, list | tuple) and np.ndim(value[0] if value else 0) == 2 else None
    chunks = [_actions(part, transforms.policy, batch_size) for part in ([value] if rows is None else rows)]
    if rows is not None and (len(rows) != batch_size or any(len(chunk) != 1 for chunk in chunks)):
        raise ProcessorError(
            f"`prev_chunk_left_over`: expected a list of {batch_size} arrays, one for each observation, found {len(rows)}"
        )
    normalised = [transforms.normalize_action(one) for chunk in chunks for one in chunk]
    return normalised * batch_size if len(normalised) == 1 else normalised


def _actions(value: Any, policy: PolicyConfig, batch_size: int) -> np.ndarray:
    """float32 `[B or 1, T, d]`."""
    try:
        chunk = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ProcessorError(f"`prev_chunk_left_over`: cannot be read as an array ({error})") from error
    chunk = chunk[None] if chunk.ndim == 2 else chunk
    fits = chunk.ndim == 3 and chunk.shape[0] in (1, batch_size) and chunk.shape[2] == policy.action_dim
    if not fits or chunk.shape[1] > policy.chunk_size:
        raise ProcessorError(
            f"`prev_chunk_left_over`: expected [T, {policy.action_dim}] or [{batch_size}, T, {policy.action_dim}] with at most "
            f"{policy.chunk_size} actions T, found {list(np.shape(value))}; give the end of a chunk that this policy returned"
        )
    if not np.all(np.isfinite(chunk)):
        bad = np.unique(np.nonzero(~np.isfinite(chunk))[1]).tolist()
        raise ProcessorError(f"`prev_chunk_left_over`: not finite in the action(s) {bad}; give finite actions")
    return chunk
