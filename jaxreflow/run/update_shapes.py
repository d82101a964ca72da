"""A run's update on abstract arrays: what it holds, what it computes and what it needs, for any batch size; nothing is run."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from jaxreflow.model.types import Batch
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.arithmetic import operations
from jaxreflow.run.config import RunConfig
from jaxreflow.run.programs import Weights, make_programs, unchanged_by
from jaxreflow.support.jax_errors import is_out_of_memory
from jaxreflow.support.mesh import batch_sharding, parameter_spec, replicated

_log = logging.getLogger(__name__)


class Memory(NamedTuple):
    """Bytes on one device."""

    held: dict[str, int]
    """What the update is given, by name: by shapes, dtypes and how they are split."""
    needed: float | None
    """What it needs beside that, as the device's compiler says; None where it does not say, infinite where it gives up."""

    @property
    def total(self) -> float:
        """Both together; infinite where the compiler does not say."""
        return math.inf if self.needed is None else sum(self.held.values()) + self.needed


class UpdateShapes:
    """The update of a run whose first batch, in this process, is `batch`."""

    def __init__(self, config: RunConfig, saved: SavedPolicy, weights: Weights, batch: Batch, mesh: Mesh) -> None:
        programs = make_programs(config, saved, mesh)
        whole = replicated(mesh)
        self._update, self._batch, self._split = programs.update, batch, batch_sharding(mesh)

        def place(x: Any) -> NamedSharding:
            return NamedSharding(mesh, parameter_spec(x.shape, mesh.shape["fsdp"]))

        self._state = _placed(jax.eval_shape(programs.init, weights.start), place)
        self._frozen, self._teacher = (
            _placed(tree, lambda _: whole) for tree in (unchanged_by(weights), weights.teacher)
        )
        self._key = _placed(jax.eval_shape(lambda: jax.random.key(0)), lambda _: whole)
        self._known: dict[int, Memory] = {}

    def operations(self, batch_size: int) -> dict[str, float]:
        """Operations of each device in an update, by part (`run.arithmetic`)."""
        return operations(self._traced(batch_size).jaxpr.jaxpr)

    def memory(self, batch_size: int) -> Memory:
        """What the compiler says of the update for this many observations over all devices."""
        if batch_size not in self._known:
            self._known[batch_size] = self._compiled(batch_size)
        return self._known[batch_size]

    def _compiled(self, batch_size: int) -> Memory:
        _log.info("compiling the update for %d observations, which is not run", batch_size)
        held = {
            "trained parameters": _bytes(self._state.trainable),
            "optimizer state": _bytes(self._state.opt_state),
            "moving average": _bytes(self._state.ema),
            "frozen parameters": _bytes(self._frozen),
            "teacher's trained parameters": _bytes(self._teacher),
            "batch": _bytes(self._examples(batch_size)),
        }
        try:
            analysis = self._traced(batch_size).lower().compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
            if not is_out_of_memory(error):
                raise
            return Memory(held, math.inf)
        if analysis is None:
            return Memory(held, None)
        needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return Memory(held, float(needed))

    def _traced(self, batch_size: int) -> Any:
        return self._update.trace(self._state, self._frozen, self._teacher, self._examples(batch_size), self._key)

    def _examples(self, batch_size: int) -> Batch:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=self._split), self._batch
        )


def _placed(tree: Any, place: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


def _bytes(tree: Any) -> int:
    """Of a tree of placed shapes, what one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
