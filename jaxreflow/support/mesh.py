"""Where arrays live: one mesh over all devices of all processes.

Batches are split over all devices, what training changes over the axis "fsdp"; everything else is whole on each device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxreflow.errors import TrainingError

T = TypeVar("T")

BATCH_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `("data", "fsdp")` over these devices (default: all); TrainingError where `fsdp` does not divide their number."""
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id)
    )
    if fsdp < 1 or len(devices) % fsdp:
        raise TrainingError(f"--fsdp {fsdp}: expected a divisor of the {len(devices)} device(s)")
    # By process: the i-th process holds the i-th slice of a batch, as its data pipeline reads it.
    return Mesh(np.array(devices).reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


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


def make_replicated(make: Callable[[], T], mesh: Mesh) -> T:
    """What `make()` computes, whole on every device; random keys of several processes can be had in no other way."""
    return jax.jit(make, out_shardings=replicated(mesh))()


def fsdp_axis(shape: tuple[int, ...], parts: int) -> int | None:
    """The axis along which a parameter is split over "fsdp": the largest that divides; None where it stays whole."""
    divisible = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    return max(divisible, key=lambda axis: shape[axis]) if divisible and parts > 1 else None


def parameter_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """How a parameter of this shape, its moments and its moving average are split over `parts` devices."""
    axis = fsdp_axis(shape, parts)
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")


def split_over_fsdp(tree: T, mesh: Mesh) -> T:
    """Inside of jit: every leaf placed as `parameter_spec` says."""

    def place(x: Array) -> Array:
        spec = parameter_spec(x.shape, mesh.shape["fsdp"])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def sharded_copy(tree: T, mesh: Mesh, make: Callable[[T], Any] = lambda tree: tree) -> Any:
    """`make(tree)`, split as parameters are, in buffers of its own, as a state needs that is donated to its update.

    One program does both, so that what `make` adds is written once.
    """
    return jax.jit(lambda x: split_over_fsdp(jax.tree.map(jnp.copy, make(x)), mesh))(tree)


def gather(tree: T, mesh: Mesh) -> T:
    """A tree that is split as parameters are, whole on every device; every process has to call this."""
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
