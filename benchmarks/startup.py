"""How soon training begins: imports, reading of weights, tracing and compiling, without and with a compilation cache."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from benchmarks.child import run_module
from benchmarks.dataset import write_dataset
from benchmarks.result import result
from benchmarks.workload import full_checkpoint
from jaxreflow.policy.saved import read_policy_config

# More than any start needs.
FRAMES = 64
COLUMNS = {"import": "import_s", "weights": "weights_s", "first update": "first_step_s", "next update": "next_step_s"}


@dataclasses.dataclass(frozen=True)
class StartupConfig:
    """Seconds to train.py's first update, in fresh processes: first with an empty compilation cache, then with a full one."""

    checkpoint: Path | None = None
    """The teacher (default: a random one of full size)."""
    cameras: int = 2
    """Cameras of that random one."""
    batch: int = 1
    """Observations per update."""
    noises: int = 1
    """Noise draws per observation."""
    steps: int = 10
    """Euler steps of the teacher."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW is LeRobot's; configs/reflow.py has Muon."""
    updates: int = 4
    """Updates until the run is stopped."""
    warm_runs: int = 1
    """Starts with a full cache."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: StartupConfig) -> None:
    """Prints the parts of each start, and appends one JSON line. SystemExit if an update compiled again."""
    checkpoint = config.checkpoint or full_checkpoint(config.cameras)
    with result("startup", config) as record, tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dataset = write_dataset(scratch / "dataset", read_policy_config(checkpoint), FRAMES)
        names = ["cold", *(f"warm {i + 1}" for i in range(config.warm_runs))]
        print(f"{'seconds':10}" + "".join(f"{title:>14}" for title in COLUMNS))
        for name in names:
            found = start(config, checkpoint, dataset, scratch, name)
            record[name] = found
            print(f"{name:10}" + "".join(f"{found[key]:14.2f}" for key in COLUMNS.values()), flush=True)
        again = {name: record[name]["programs_later"] for name in names if record[name]["programs_later"]}
        print(f"programs compiled after the first update: {sum(again.values())}")
    if again:
        raise SystemExit(f"updates after the first compiled again: {again}")


def start(config: StartupConfig, checkpoint: Path, dataset: Path, scratch: Path, name: str) -> dict[str, Any]:
    """One start of train.py in a process of its own, with the cache in `scratch` (`startup_run`)."""
    flags: dict[str, Any] = {
        "teacher.path": checkpoint,
        "dataset.root": dataset,
        "dataset.holdout": 0,
        "batch-size": config.batch,
        "noises": config.noises,
        "teacher-steps": config.steps,
        "dtype": config.dtype,
        "optimizer.name": config.optimizer,
        "log-every": 1,
        "output-dir": scratch / name,
    }
    arguments = [str(config.updates), "reflow"]
    for flag, value in flags.items():
        arguments += [f"--{flag}", str(value)]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    finished = run_module("benchmarks.startup_run", arguments, environment)
    return json.loads(finished.output.splitlines()[-1])
