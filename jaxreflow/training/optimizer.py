"""Clipped AdamW under warm-up and cosine decay, as LeRobot trains SmolVLA; or Muon in its place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Int

from jaxreflow.errors import ConfigError

# Of Muon's updates, per learning rate: about what AdamW's are, so that learning rates mean the same (arXiv 2502.16982).
MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its schedule; defaults are LeRobot's."""

    name: str = "adamw"
    """One of `OPTIMIZERS`."""
    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-10
    """Decoupled weight decay."""
    clip_norm: float = 10.0
    """Largest global norm of the gradient."""
    warmup_steps: int = 1_000
    """Updates of linear warm-up."""
    decay_steps: int = 30_000
    """Update at which the cosine ends; shorter runs scale it and the warm-up down to their length."""
    decay_lr: float = 2.5e-6
    """Learning rate from there on."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer `name` must be one of {', '.join(OPTIMIZERS)}, found {self.name!r}")
        for name in ("lr", "eps", "clip_norm", "decay_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optimizer `{name}` must be positive, found {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "decay_lr"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optimizer `{name}` must not be negative, found {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer `betas` must lie in [0, 1), found {self.betas}")


def fitted_lengths(config: OptimizerConfig, steps: int) -> tuple[int, int]:
    """Updates of warm-up, and the update at which the cosine ends, in a run of `steps` updates."""
    warmup, decay = config.warmup_steps, config.decay_steps
    return (int(warmup * (steps / decay)), steps) if steps < decay else (warmup, decay)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by number of updates done, for a run of `steps` updates.

    Linear from `lr / (warmup + 1)` to `lr`; then `decay_lr + (lr - decay_lr) (1 + cos(pi s / decay)) / 2`, where s
    counts from the run's first update, not from the warm-up's end. A run shorter than `decay_steps` shrinks both to its
    length, as LeRobot does.
    """
    warmup, decay = fitted_lengths(config, steps)

    def schedule(count: Int[Array, ""] | int) -> Array:
        step = jnp.asarray(count, jnp.float32)
        start = 1.0 / (warmup + 1)
        rising = start + (1.0 - start) * step / max(warmup, 1)
        floor = config.decay_lr / config.lr
        falling = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(math.pi * jnp.minimum(step, decay) / decay))
        return config.lr * jnp.where(step < warmup, rising, falling)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimizer under `make_schedule`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), OPTIMIZERS[config.name](config, make_schedule(config, steps))
    )


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    first, second = config.betas
    return optax.adamw(schedule, first, second, config.eps, weight_decay=config.weight_decay)


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Momentum whose singular values are made about equal, for matrices; AdamW (with Nesterov's) for the rest."""
    first, second = config.betas
    return optax.contrib.muon(
        schedule,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=first,
        adam_b2=second,
        adam_weight_decay=config.weight_decay,
        consistent_rms=MUON_RMS,
    )


_Make: TypeAlias = Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]
OPTIMIZERS: Mapping[str, _Make] = {"adamw": _adamw, "muon": _muon}
