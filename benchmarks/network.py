"""The network's benchmarks: their flags, and the workers that take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.child import Ask, worker
from benchmarks.result import spread
from benchmarks.workload import full_checkpoint

JAX, LEROBOT = "benchmarks.jax_worker", "benchmarks.lerobot_worker"
# Two frameworks cannot both reserve a whole accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What the benchmarks of update and sampler share."""

    checkpoint: Path | None = None
    """A policy in LeRobot's layout, its VLM's files in vlm/ (default: a random one of full size)."""
    batch: int = 1
    """Observations."""
    noises: int = 1
    """Noise draws per observation, M."""
    cameras: int = 2
    """Cameras, with images in the size that the vision tower takes."""
    steps: int = 10
    """Euler steps (of the teacher, in training)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype. LeRobot is converted to float32, or keeps the dtypes in which it loads a checkpoint."""
    runs: int = 5
    """Turns of each side. A turn is two runs, and the second one counts."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


Rival = Literal["lerobot", "lerobot-compiled"]
"""LeRobot's PyTorch as it comes, or with `torch.compile` as its `compile_model` asks for it."""


def rival_side(rival: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """LeRobot as a side of `run_workers`."""
    return {"LeRobot": (LEROBOT, {"compiled": rival == "lerobot-compiled"})}


def tolerated(dtype: str, rival: str) -> float:
    """How far the results of two sides may be apart. Compiled, LeRobot asks for products in less than float32."""
    return 1e-4 if dtype == "float32" and rival == "lerobot" else 1e-1


@dataclasses.dataclass
class Side:
    """One implementation: its description of itself, and its measurements."""

    name: str
    ask: Ask
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    first: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0

    def times(self, part: str) -> list[float]:
        """Seconds of each run."""
        return [run[part] for run in self.runs]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        parts = {part: spread(self.times(part)) for part in self.runs[0]}
        return {**self.about, "seconds": parts, "first_seconds": self.first["seconds"], "peak_bytes": self.peak_bytes}


def run_workers(
    config: NetworkConfig, task: str, sides: dict[str, tuple[str, dict[str, Any]]]
) -> tuple[list[Side], list[float]]:
    """Gives every side `config.runs` turns. Returns the sides and, for each run, the first side's matmul rate.

    `sides` maps a name to a worker's module and its own settings. The first side prepares the inputs of all.
    """
    checkpoint = config.checkpoint or full_checkpoint(config.cameras)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        common = {**dataclasses.asdict(config), "task": task, "checkpoint": str(checkpoint), "folder": folder}
        common.pop("json")
        found = [Side(name, stack.enter_context(worker(m, common | own))) for name, (m, own) in sides.items()]
        for side in found:
            side.about = side.ask("prepare")
            side.first = side.ask("measure")
        rates = []
        for _ in range(config.runs):
            for side in found:
                side.ask("measure")  # training goes on without a pause, in which the system takes freed memory away
                side.runs.append(side.ask("measure")["seconds"])
            rates.append(float(found[0].ask("rate")["rate"]))
        for side in found:
            side.peak_bytes = side.ask("finish")["peak_bytes"]
    return found, rates


def deviation(found: Sequence[float], expected: Sequence[float], limit: float) -> float:
    """Largest difference, divided by the largest value. SystemExit above `limit`, because the work was not the same."""
    a, b = np.asarray(found), np.asarray(expected)
    worst = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    if not worst <= limit:
        raise SystemExit(
            f"the two sides do not compute the same: their results differ by {worst:.2e} of the largest, expected at "
            f"most {limit:.0e}"
        )
    return worst


def print_runs(ours: Side, other: Side | None, parts: Sequence[str]) -> dict[str, list[float]]:
    """Prints each part's seconds run by run, and returns the ratios to the other side's."""
    ratios: dict[str, list[float]] = {}
    for part in parts:
        names = [ours.name, *([other.name, "ratio"] if other else [])]
        print(f"{part + ', s':16}" + "".join(f"{name:>15}" for name in names))
        rows = [ours.times(part), *([other.times(part)] if other else [])]
        if other:
            ratios[part] = [theirs / own for own, theirs in zip(*rows, strict=True)]
            rows.append(ratios[part])
        for number, values in enumerate(zip(*rows, strict=True), 1):
            print(f"  run {number:<10}" + "".join(f"{value:15.3f}" for value in values))
        print(f"  {'median':14}" + "".join(f"{statistics.median(row):15.3f}" for row in rows))
    return ratios


def print_floor(operations: dict[str, float], rates: list[float], times: list[float]) -> dict[str, Any]:
    """Prints and returns the limit that the matrix products set, and how near each run came."""
    total = sum(operations.values())
    shares = [total / rate / time for rate, time in zip(rates, times, strict=True)]
    floor = total / statistics.median(rates)
    parts = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in operations.items())
    print(f"floor: {total / 1e9:.0f} GFLOP ({parts}) at {statistics.median(rates) / 1e9:.0f} GFLOP/s: {floor:.3f} s")
    print(f"reached: {statistics.median(shares):.0%} of the floor")
    return {"operations": operations, "rate": spread(rates), "floor_seconds": floor, "reached": spread(shares)}


def print_memory(sides: Sequence[Side]) -> None:
    """Prints each side's peak."""
    print("peak memory: " + ", ".join(f"{side.name} {side.peak_bytes / 2**30:.2f} GiB" for side in sides))
