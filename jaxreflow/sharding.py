"""Where arrays live: one mesh over all devices of all processes; batches split, parameters whole on each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxreflow.errors import TrainingError

T = TypeVar("T")

BATCH_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1) -> Mesh:
    """The mesh `("data", "fsdp")` over all devices; TrainingError where `fsdp` does not divide their number."""
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise TrainingError(f"fsdp: expected a divisor of the {devices} device(s), found {fsdp}")
    return jax.make_mesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split over all devices along the array's first axis, the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """TrainingError unless every device gets the same number (at least one) of every microbatch's examples."""
    if accumulation < 1 or batch_size < 1 or batch_size % (mesh.size * accumulation):
        raise TrainingError(
            f"--batch-size {batch_size}: expected a positive multiple of {mesh.size * accumulation}, for {mesh.size} "
            f"device(s) x --accumulate {accumulation}; choose such a batch size"
        )


def shard_batch(batch: T, mesh: Mesh) -> T:
    """This process's slice of a batch, a tree of host arrays, as the global batch on the devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicate(tree: T, mesh: Mesh) -> T:
    """A tree, the same in every process, whole on every device; may share memory with `tree`."""
    # A transfer holds on to the host's arrays: what comes next would find no room where they are.
    return jax.block_until_ready(jax.device_put(tree, replicated(mesh)))


def replicated_copy(tree: T, mesh: Mesh, make: Callable[[T], Any] = lambda tree: tree) -> Any:
    """`make(tree)` in buffers of its own, as a state needs that is donated to its update.

    One program does both, so that what `make` adds is written once.
    """
    return jax.jit(lambda x: jax.tree.map(jnp.copy, make(x)), out_shardings=replicated(mesh))(tree)
