"""What an update costs, in the words of a dry run: memory, the largest batch size that fits, and arithmetic."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.arithmetic import call_operations
from jaxreflow.run.batch_fit import largest_fit, room
from jaxreflow.run.config import RunConfig
from jaxreflow.run.programs import Weights
from jaxreflow.run.update_shapes import UpdateShapes
from jaxreflow.training.losses import TEACHER

# TFLOP/s that a device may reach, from a laptop's GPU to a data centre's.
_RATES = (10, 50, 200)


def memory_lines(config: RunConfig, update: UpdateShapes, weights: Weights, device: jax.Device) -> list[str]:
    """What each device holds by shapes, and what its compiler says that an update needs beside that."""
    memory = update.memory(config.batch_size)
    lines = [f"{name:30}{_size(size)}" for name, size in memory.held.items() if size]
    if memory.needed is None:
        return [*lines, "the compiler of this device does not say what the update needs beside that"]
    if math.isinf(memory.needed):
        return [*lines, "and its compiler finds that an update does not fit beside that"]
    gradients = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(weights.start))
    limit = _pool(device)
    return [
        "each device holds, by shapes and dtypes:",
        *lines,
        "and during an update, as its compiler says:",
        f"{'activations, gradients':30}{_size(memory.needed)}  (gradients alone, in float32: {_size(gradients).strip()})",
        f"{'together':30}{_size(memory.total)}" + (f"  of {_size(limit).strip()}" if limit else ""),
    ]


def batch_size_lines(config: RunConfig, update: UpdateShapes, mesh: Mesh, frames: int) -> list[str]:
    """The largest batch size that fits, and where that comes from; `frames` is the largest of any use."""
    limit, where = room(config.for_memory, _pool(mesh.local_devices[0]), len(mesh.local_devices))
    if update.memory(config.batch_size).needed is None:
        return ["not known: the compiler of this device does not say what an update needs"]
    if jax.process_count() > 1:  # All processes compile the same programs; MiB, as JAX's integers have 32 bits.
        limit = float(multihost_utils.broadcast_one_to_all(np.int32(limit / 2**20))) * 2**20
    step = mesh.size * config.accumulate
    first = config.batch_size // step
    known = largest_fit(lambda size: update.memory(size * step).total, first, max(frames // step, first), limit)
    fits = max((size for size, needed in known.items() if needed <= limit), default=0)
    counted = ", ".join(
        f"{size * step:,}: {_size(known[size]).strip()}" for size in sorted(known) if math.isfinite(known[size])
    )
    answer = f"none fits, not even {min(known) * step}: --lora.rank and --dtype bfloat16 need less"
    if fits:
        device = f", {fits * config.accumulate:,} a device" if mesh.size > 1 else ""
        answer = f"--batch-size {fits * step:,} is about the largest that fits{device}"
        answer += f", and all that the data have ({frames:,} frames)" if fits * step > frames - step else ""
    return [
        answer,
        f"room: {_size(limit).strip()}, {where}",
        f"compiled for {mesh.local_devices[0].platform.upper()} with {counted or 'no size that it takes'}",
        "Another platform's compiler counts differently, and its allocator loses some room between arrays: begin a fifth lower.",
    ]


def arithmetic_lines(config: RunConfig, update: UpdateShapes) -> list[str]:
    """Operations of an update by part, and the time that they would take; nothing of it is measured."""
    parts = update.operations(config.batch_size)
    total = sum(parts.values())
    labels = {TEACHER: f"teacher, {getattr(config.distillation, 'teacher_steps', 0)} steps"}
    rows = [
        f"{labels.get(part, part):30}{count / 1e12:9.4f} TFLOP  {100 * count / total:3.0f} %"
        for part, count in parts.items()
    ]
    return [
        "matrix products of an update on each device, counted from shapes:",
        *rows,
        f"{'together':30}{total / 1e12:9.4f} TFLOP",
        f"so {config.steps:,} updates would take, by this arithmetic alone (nothing was timed):",
        *(f"{f'at {rate} TFLOP/s reached':30}{_duration(config.steps * total / rate / 1e12)}" for rate in _RATES),
    ]


def call_lines(config: RunConfig, saved: SavedPolicy) -> list[str]:
    """Operations of a call of the policy to be trained, by part, beside those of a teacher's, if it has one."""
    calls = {"policy": (saved, config.num_steps or saved.policy.num_steps)}
    if config.distillation is not None:
        calls = {"teacher": (saved.original, config.distillation.teacher_steps), "student": calls["policy"]}
    lines, most = ["matrix products of a call with one observation, counted from shapes:"], 0.0
    for name, (policy, steps) in calls.items():
        parts = call_operations(policy.config, policy.policy.tokenizer_max_length, steps)
        total = sum(parts.values())
        most = max(most, total)
        counted = ", ".join(f"{part} {count / 1e9:,.3g}" for part, count in parts.items())
        fewer = f", {most / total:.1f} times fewer" if total < most else ""
        lines.append(f"{f'{name}@{steps}':12}{total / 1e9:,.3g} GFLOP ({counted}){fewer}")
    return lines


def _pool(device: jax.Device) -> int | None:
    """Bytes that JAX has taken of a device; None of a CPU."""
    return (device.memory_stats() or {}).get("bytes_limit")


def _duration(seconds: float) -> str:
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s"))
    return f"{seconds / size:9.1f} {unit}"


def _size(size: float) -> str:
    return f"{size / 2**30:8.2f} GiB" if size >= 2**30 else f"{size / 2**20:8.2f} MiB"
