"""A policy inside LeRobot 0.6: its own PyTorch, eager and compiled, and the plugin's JAX, in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

from benchmarks.child import worker
from benchmarks.network import Side, deviation, print_memory, tolerated
from benchmarks.result import result, spread
from benchmarks.workload import full_checkpoint
from convert.plugin import to_plugin

PLUGIN, EAGER, COMPILED = "plugin", "LeRobot, eager", "LeRobot, compiled"


@dataclasses.dataclass(frozen=True)
class PluginConfig:
    """Seconds of `predict_action_chunk` as LeRobot's commands call it. Needs the environment of `make parity-0.6.1`."""

    checkpoint: Path | None = None
    """A policy in LeRobot's layout, its VLM's files in vlm/ (default: a random one of full size)."""
    cameras: int = 2
    """Cameras of the random policy."""
    steps: tuple[int, ...] = (10, 1)
    """Euler steps, one after another."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype. LeRobot is converted to float32, or keeps the dtypes in which it loads a checkpoint."""
    compiled: bool = True
    """Measure LeRobot with its `compile_model`, too. Compiling takes minutes on a CPU."""
    runs: int = 5
    """Turns of each side. A turn is two calls, and the second one counts."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: PluginConfig) -> None:
    """Prints the seconds of each side and the ratios to the plugin, and appends one JSON line."""
    with result("plugin", config) as record:
        for steps in config.steps:
            record[f"{steps} steps"] = _measure(config, steps)


def _measure(config: PluginConfig, steps: int) -> dict[str, Any]:
    folder = config.checkpoint or full_checkpoint(config.cameras)
    with contextlib.ExitStack() as stack:
        plugin = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "policy"
        to_plugin(folder, plugin)
        common = {"steps": steps, "dtype": config.dtype}
        kinds = {PLUGIN: (plugin, False), EAGER: (folder, False)} | (
            {COMPILED: (folder, True)} if config.compiled else {}
        )
        sides = []
        for name, (policy, compiled) in kinds.items():
            settings = common | {"policy": str(policy), "compiled": compiled}
            side = Side(name, stack.enter_context(worker("benchmarks.plugin_worker", settings)))
            side.about = side.ask("prepare")
            side.first = side.ask("measure")
            sides.append(side)
        for _ in range(config.runs):
            for side in sides:
                side.ask("measure")
                side.runs.append(side.ask("measure")["seconds"])
        for side in sides:
            side.peak_bytes = side.ask("finish")["peak_bytes"]
    ours, found = sides[0], {}
    for side in sides:
        rival = "lerobot-compiled" if side.name == COMPILED else "lerobot"
        differs = deviation(ours.first["check"], side.first["check"], tolerated(config.dtype, rival))
        ratios = [other / own for own, other in zip(ours.times("call"), side.times("call"), strict=True)]
        found[side.name] = side.record() | {"ratio_to_plugin": spread(ratios), "chunk_deviation": differs}
        print(
            f"{steps:3} steps  {side.name:20}{statistics.median(side.times('call')):8.3f} s"
            f"{statistics.median(ratios):7.2f} times the plugin's ({min(ratios):.2f} - {max(ratios):.2f}), chunks differ by "
            f"{differs:.1e}; first call {side.first['seconds']['call']:.0f} s"
        )
    print_memory(sides)
    return found
