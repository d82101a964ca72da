"""One update of reflow: the teacher's endpoints, the student's loss and gradient, clipping and the optimizer."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Literal, get_args

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
)
from benchmarks.result import result, spread


@dataclasses.dataclass(frozen=True)
class ReflowStepConfig(NetworkConfig):
    """Seconds of an update as train.py runs it, without moving average, beside the floor of its arithmetic."""

    features: bool = False
    """Image tokens come from a cache, as with train.py's --dataset.features."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW is LeRobot's; configs/reflow.py has Muon."""
    against: Rival | Literal["flow-matching"] | None = None
    """Run in turn: LeRobot's PyTorch on the same pairs (needs the environment of `make parity`), or plain flow matching."""


def run(config: ReflowStepConfig) -> None:
    """Prints seconds run by run, pairs per second, floor and peak memory, and appends one JSON line."""
    sides: dict[str, tuple[str, dict[str, Any]]] = {"jaxreflow": (JAX, {"objective": "reflow"})}
    lerobot = config.against in get_args(Rival)
    if config.against == "flow-matching":
        sides["flow matching"] = (JAX, {"objective": "finetune"})
    elif config.against:
        sides |= rival_side(config.against)
    with result("reflow-step", config) as record:
        (ours, *others), rates = run_workers(config, "reflow-step", sides)
        other = others[0] if others else None
        if lerobot and other:
            # Tokens rounded to bfloat16, and a network in bfloat16, move the loss in the third digit; so may compiling.
            exact = config.dtype == "float32" and not config.features and config.against == "lerobot"
            limit = 1e-4 if exact else 3e-2
            record["loss_deviation"] = deviation(ours.first["check"], other.first["check"], limit)
            print(f"first loss: {ours.first['check'][0]:.6f}, LeRobot's {other.first['check'][0]:.6f}")
        ratios = print_runs(ours, other, ["update"])
        times = ours.times("update")
        pairs = [config.batch * config.noises / time for time in times]
        print(f"pairs per second: {statistics.median(pairs):.3f}; first update, with compiling: ", end="")
        print(f"{ours.first['seconds']['update']:.1f} s")
        operations = ours.about.pop("operations")
        record |= {"floor": print_floor(operations, rates, times), "pairs_per_second": spread(pairs)}
        print_memory([ours, *others])
        record |= {side.name: side.record() for side in [ours, *others]}
        if other:
            record |= {"ratio": spread(ratios["update"]), "memory_ratio": ours.peak_bytes / other.peak_bytes}
            print(f"memory: {record['memory_ratio']:.2f} of {other.name}'s")
