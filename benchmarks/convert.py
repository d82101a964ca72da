"""What converting a checkpoint costs: seconds, and the memory of the process that does it."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import Finished, run_module
from benchmarks.result import result, spread
from benchmarks.workload import full_checkpoint
from jaxreflow.policy.saved import WEIGHTS


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Seconds and peak memory of `python -m convert from-lerobot` and `to-lerobot`, start of Python included."""

    checkpoint: Path | None = None
    """A checkpoint in LeRobot's layout (default: a random one of full size)."""
    runs: int = 3
    """Conversions there and back."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: ConvertConfig) -> None:
    """Prints each direction's seconds, bytes per second and peak memory, and appends one JSON line."""
    checkpoint = config.checkpoint or full_checkpoint(cameras=2)
    size = (checkpoint / WEIGHTS).stat().st_size
    runs: dict[str, list[Finished]] = {"from-lerobot": [], "to-lerobot": []}
    with result("convert", config) as record:
        print(f"{checkpoint / WEIGHTS}: {size / 1e6:.0f} MB")
        print(f"{'':14}{'seconds':>9}{'processor':>11}{'MB/s':>8}{'peak, MB':>10}")
        for _ in range(config.runs):
            with tempfile.TemporaryDirectory() as scratch:
                done = convert(checkpoint, Path(scratch))
            for command, finished in zip(runs, done, strict=True):
                runs[command].append(finished)
                print(
                    f"{command:14}{finished.seconds:9.2f}{finished.cpu_seconds:11.2f}"
                    f"{size / finished.seconds / 1e6:8.0f}{finished.peak_bytes / 1e6:10.0f}",
                    flush=True,
                )
        record |= {"bytes": size, **{command: figures(finished, size) for command, finished in runs.items()}}


def convert(checkpoint: Path, scratch: Path) -> tuple[Finished, Finished]:
    """One conversion there and back, into folders of `scratch`. SystemExit unless the same bytes come back."""
    orbax, back = scratch / "orbax", scratch / "lerobot"
    there = run_module("convert", ["from-lerobot", str(checkpoint), str(orbax)])
    again = run_module("convert", ["to-lerobot", str(orbax), str(back)])
    if "byte for byte" not in again.output:
        raise SystemExit(f"{back}: expected the source's bytes; `convert to-lerobot` said: {again.output}")
    return there, again


def figures(runs: list[Finished], size: int) -> dict[str, Any]:
    """One direction's seconds, bytes of weights per second and largest peak, over several runs."""
    seconds = spread([run.seconds for run in runs])
    return {
        "seconds": seconds,
        "cpu_seconds": spread([run.cpu_seconds for run in runs]),
        "megabytes_per_second": size / seconds["median"] / 1e6,
        "peak_bytes": max(run.peak_bytes for run in runs),
    }
