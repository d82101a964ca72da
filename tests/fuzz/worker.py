"""A process that opens policies and datasets as train.py and convert do, within limits, and says what came of it.

    python -m tests.fuzz.worker

A line `{"policy": DIR, "dataset": DIR, "stats_from": null}` on standard input gets one on standard output: the name of the
error or null, whether it is one of the package's own, its message, and the peak of memory in bytes above what was in use.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convert.doctor import examine
from convert.inspection import inspect_checkpoint
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.data.loader import iterate_once
from jaxreflow.errors import JaxReflowError
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.config import DatasetConfig, RunConfig
from jaxreflow.run.data import normalized_batch, split_data
from jaxreflow.run.directory import recorded_settings

LIMIT = 1 << 30


def train(policy: Path, dataset: Path, stats_from: str | None) -> None:
    """What train.py reads before the first update, and the first batch of every episode."""
    data = load_dataset(dataset)
    checkpoint = load_saved_policy(policy, dataset_stats=data.stats, stats_from=stats_from)
    checkpoint.load_params()
    config = RunConfig(dataset=DatasetConfig(holdout=0.3))
    split = split_data(data, checkpoint.policy, checkpoint.load_transforms(), config)
    for source in filter(None, (split.train, split.held_out)):
        for example, _ in iterate_once(source, 4, [0, len(source) // 2, len(source) - 1]):
            batch = normalized_batch(example, split.transforms)
            split.transforms.unnormalize_action(np.asarray(batch.actions))


def outcome(steps: list[Callable[[], object]]) -> dict[str, Any]:
    """The first error among the steps, one that is not the package's own before others."""
    found: dict[str, Any] = {"error": None, "own": True, "message": ""}
    for step in steps:
        try:
            step()
        except JaxReflowError as error:
            if found["error"] is None:
                found = {"error": type(error).__name__, "own": True, "message": str(error)}
        except BaseException as error:
            return {"error": type(error).__name__, "own": False, "message": traceback.format_exc()[-3000:]}
    return found


def run(case: dict[str, Any]) -> dict[str, Any]:
    """One case: the policy and the dataset as train.py, evaluate and convert open them."""
    policy, dataset = Path(case["policy"]), Path(case["dataset"])
    before = memory("VmRSS")
    reset_peak()
    allow(memory("VmData") + LIMIT)
    found = outcome(
        [
            lambda: train(policy, dataset, case["stats_from"]),
            lambda: recorded_settings(policy),
            lambda: inspect_checkpoint(policy),
            lambda: examine(policy, measure=False),
        ]
    )
    return found | {"bytes": memory("VmHWM") - before}


def memory(name: str) -> int:
    """A figure of this process's memory in bytes: VmRSS, VmHWM (its peak) or VmData (what RLIMIT_DATA limits)."""
    with open("/proc/self/status") as status:  # noqa: PTH123 (no cheaper way, and called twice a case)
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def reset_peak() -> None:
    """Lets VmHWM start again from VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def allow(data: int) -> None:
    """Limits writable memory: what asks for more gets a MemoryError, or aborts where it is native code."""
    resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))


def main() -> None:
    """Answers cases until the input ends; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        warnings.simplefilter("ignore")
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
