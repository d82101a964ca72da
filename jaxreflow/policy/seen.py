"""What a policy has seen of an observation, to act by it again from newer states."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxreflow.errors import ConfigError
from jaxreflow.model.types import Context
from jaxreflow.policy.names import STATE


@dataclasses.dataclass(frozen=True)
class Weights:
    """Stands for a policy's parameters: other ones, once `params` is assigned, have another `version`."""

    policy: object = dataclasses.field(repr=False)
    version: object = dataclasses.field(default_factory=object, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class SeenContext:
    """Images and language of B observations as the network has them, without states. `SmolVLAPolicy.observe` makes it."""

    context: Context = dataclasses.field(repr=False)
    weights: Weights = dataclasses.field(repr=False)
    tasks: tuple[str, ...]
    """The instruction of each."""

    @property
    def batch_size(self) -> int:
        """The number of observations."""
        return len(self.context.mask)

    def with_rows(self, rows: Bool[np.ndarray, " B"], other: SeenContext) -> SeenContext:
        """This context, with `other`'s where `rows` is true: for robots of one batch that look at different times.

        Raises:
            ConfigError: `other` is of another policy, of other parameters, or of another batch size; or `rows` is.
        """
        other.check(self.weights, self.batch_size)
        if np.shape(rows) != (self.batch_size,):
            raise ConfigError(
                f"`rows`: expected shape {[self.batch_size]}, found {list(np.shape(rows))}; give one for each robot"
            )
        tasks = tuple(new if row else old for row, new, old in zip(rows, other.tasks, self.tasks, strict=True))
        context = _chosen(np.asarray(rows, bool), other.context, self.context)
        return dataclasses.replace(self, context=context, tasks=tasks)

    def check(self, weights: Weights, batch_size: int) -> None:
        """ConfigError unless it was made with these weights, of as many observations."""
        if self.weights.policy is not weights.policy:
            raise ConfigError(
                "`context`: expected what this policy's `observe` returned, found another policy's context, or a copy of one; call "
                "this policy's `observe`"
            )
        if self.weights != weights:
            raise ConfigError(
                "`context`: expected one of the policy's present `params`, found one of earlier ones; call `observe` again"
            )
        if self.batch_size != batch_size:
            raise ConfigError(
                f"`context`: expected {batch_size} observation(s), as in `{STATE}`, found {self.batch_size}; "
                "call `observe` for the same robots"
            )

    def check_tasks(self, tasks: list[str]) -> None:
        """ConfigError unless these are the instructions that were seen."""
        if list(self.tasks) != tasks:
            raise ConfigError(
                f"`context`: expected the task {list(self.tasks)} with which it was made, found {tasks}; call `observe` again"
            )


@jax.jit
def _chosen(rows: Bool[Array, " B"], new: Context, old: Context) -> Context:
    def choose(new: Any, old: Any) -> Any:
        return jnp.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)
