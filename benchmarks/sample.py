"""Sampling a chunk of actions: the prefix once per observation, then the Euler steps."""

from __future__ import annotations

import dataclasses
import statistics

from benchmarks.network import (
    JAX,
    NetworkConfig,
    Rival,
    deviation,
    print_floor,
    print_memory,
    print_runs,
    rival_side,
    run_workers,
    tolerated,
)
from benchmarks.result import result, spread

PARTS = ("sample", "prefix", "loop", "one step")


@dataclasses.dataclass(frozen=True)
class SampleConfig(NetworkConfig):
    """Seconds from a prepared observation to a chunk: the whole, the prefix alone, the Euler steps alone, and one step."""

    against: Rival | None = None
    """Run LeRobot's PyTorch in turn. Needs the environment of `make parity`."""


def run(config: SampleConfig) -> None:
    """Prints seconds run by run, floor and peak memory, and appends one JSON line."""
    sides: dict[str, tuple[str, dict[str, str]]] = {"jaxreflow": (JAX, {})}
    if config.against:
        sides |= rival_side(config.against)
    with result("sample", config) as record:
        (ours, *others), rates = run_workers(config, "sample", sides)
        other = others[0] if others else None
        if other and config.against:
            limit = tolerated(config.dtype, config.against)
            record["chunk_deviation"] = deviation(ours.first["check"], other.first["check"], limit)
            print(f"chunks differ by {record['chunk_deviation']:.1e} of their largest entry")
        ratios = print_runs(ours, other, PARTS)
        times = ours.times("sample")
        operations = ours.about.pop("operations")
        record["floor"] = print_floor(operations, rates, times)
        over_prefix = [once / prefix for once, prefix in zip(ours.times("one step"), ours.times("prefix"), strict=True)]
        record["one_step_over_prefix"] = spread(over_prefix)
        print(f"one step takes {statistics.median(over_prefix):.3f} of the prefix alone")
        tail = spread(times)
        print(f"p50 {tail['median']:.4f} s, p99 {tail['p99']:.4f} s")
        print_memory([ours, *others])
        record |= {side.name: side.record() for side in [ours, *others]}
        record["ratio"] = {part: spread(values) for part, values in ratios.items()}
