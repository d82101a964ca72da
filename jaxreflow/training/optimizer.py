"""Clipped AdamW under warm-up and cosine decay, as LeRobot trains SmolVLA; or Muon in its place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from jaxreflow.errors import ConfigError

# Of Muon's updates, per learning rate: about what AdamW's are, so that learning rates mean the same (arXiv 2502.16982).
MUON_RMS = 0.2
# Decay of its momentum: Optax's default.
MUON_BETA = 0.95


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
    """Momentum whose singular values are made about equal, for matrices; AdamW (with Nesterov's) for the rest.

    It is `optax.contrib.muon` with matrices of one shape taken together.
    """
    first, second = config.betas
    matrices = optax.chain(
        _orthogonal_momentum(config.eps),
        optax.stateless(lambda updates, _: jax.tree.map(_with_consistent_rms, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    rest = optax.adamw(schedule, first, second, config.eps, weight_decay=config.weight_decay, nesterov=True)
    return optax.partition(
        {"muon": matrices, "adam": rest},
        lambda params: jax.tree.map(lambda leaf: "muon" if leaf.ndim == 2 else "adam", params),
    )


def _with_consistent_rms(update: Float[Array, "m n"]) -> Float[Array, "m n"]:
    return MUON_RMS * math.sqrt(max(update.shape)) * update


def _orthogonal_momentum(eps: float) -> optax.GradientTransformation:
    """`optax.contrib.scale_by_muon`, with its state; the products work on one stack for each shape of a matrix.

    A SmolVLA's expert has a hundred matrices of a few shapes. One by one their products are a program of thousands of operations,
    which takes 1.4 times as long on two cores. The momentum is not stacked: a stack of it could be made before the gradients are
    known, and lie there all the time.
    """
    # Without a momentum of its own.
    products = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, eps=eps, weight_dimension_numbers=_stack_dimensions
    )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        count = optax.safe_increment(state.count)
        momentum = optax.tree.update_moment(updates, state.mu, MUON_BETA, 1)
        ahead = jax.tree.map(  # Nesterov's
            lambda mean, now: MUON_BETA * mean + (1 - MUON_BETA) * now,
            optax.tree.bias_correction(momentum, MUON_BETA, optax.safe_increment(count)),
            optax.tree.bias_correction(updates, MUON_BETA, count),
        )
        stacks = _stacked(ahead)
        orthogonal, _ = products.update(stacks, state._replace(mu=stacks))
        return _unstacked(orthogonal, updates), state._replace(count=count, mu=momentum)

    return optax.GradientTransformation(products.init, update)


_Shape: TypeAlias = tuple[int, ...]


def _stacked(tree: Any) -> dict[_Shape, Array]:
    """The matrices of a tree, stacked by shape in the order of its leaves."""
    groups: dict[_Shape, list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        groups.setdefault(leaf.shape, []).append(leaf)
    return {shape: jnp.stack(group) for shape, group in groups.items()}


def _unstacked(stacks: dict[_Shape, Array], like: Any) -> Any:
    """The tree with the structure of `like` whose matrices `stacks` holds."""
    leaves, structure = jax.tree.flatten(like)
    rows = {shape: iter(stack) for shape, stack in stacks.items()}
    return jax.tree.unflatten(structure, [next(rows[leaf.shape]) for leaf in leaves])


def _stack_dimensions(stacks: dict[_Shape, Array]) -> dict[_Shape, optax.contrib.MuonDimensionNumbers]:
    return dict.fromkeys(stacks, optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2))


_Make: TypeAlias = Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]
OPTIMIZERS: Mapping[str, _Make] = {"adamw": _adamw, "muon": _muon}
