"""How fast training examples reach the update, with decoding, chunks, normalisation, tokens and batches."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.child import peak_bytes, worker
from benchmarks.result import result, spread
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.config import DatasetConfig, ReflowConfig
from jaxreflow.run.data import open_dataset, split_data, training_batches

# What the loader and LeRobot's read ahead per worker.
READ_AHEAD = 3


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Samples per second of the pipeline from which train.py reads, after its workers have started."""

    dataset: Path = Path("tests/assets/metaworld_mini")
    """A LeRobotDataset's directory."""
    checkpoint: Path = Path("tests/assets/teacher")
    """The policy whose cameras, normalisation and tokenizer are used."""
    batch: int = 32
    """Samples per batch."""
    workers: int = 2
    """Processes that read. 0 is a thread (for LeRobot: the process itself)."""
    cache_frames: float = 0.0
    """GiB for decoded frames, as train.py's --dataset.cache-frames. Needs --workers 0."""
    batches: int = 40
    """Batches per measurement."""
    runs: int = 5
    """Measurements."""
    against: Literal["lerobot"] | None = None
    """Read the same dataset with LeRobot in turn. Needs the environment of `make parity`."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: LoaderConfig) -> None:
    """Prints samples per second, run by run and in turn with LeRobot's if asked, and appends one JSON line."""
    samples = config.batch * config.batches
    own: list[float] = []
    other: list[float] = []
    with result("loader", config) as record, contextlib.ExitStack() as stack:
        measure_own, setup = stack.enter_context(own_reader(config))
        measure_other = stack.enter_context(lerobot_reader(config)) if config.against else None
        # The first measurement of each is not kept: the other's workers are still starting.
        measure_own()
        if measure_other is not None:
            measure_other()
        print(f"{'samples/s':12}{'jaxreflow':>12}" + (f"{'LeRobot':>12}{'ratio':>8}" if config.against else ""))
        for number in range(1, config.runs + 1):
            own.append(samples / measure_own())
            line = f"run {number:<8}{own[-1]:12.0f}"
            if measure_other is not None:
                other.append(samples / measure_other())
                line += f"{other[-1]:12.0f}{own[-1] / other[-1]:8.1f}"
            print(line, flush=True)
        record |= {"setup_s": setup, "samples_per_second": spread(own), "peak_bytes": peak_bytes()}
        print(f"median {record['samples_per_second']['median']:.0f} samples/s, the first batch after {setup:.1f} s")
        print(f"peak memory, without the workers: {peak_bytes() / 2**30:.2f} GiB")
        if other:
            ratios = [ours / theirs for ours, theirs in zip(own, other, strict=True)]
            record |= {"lerobot_samples_per_second": spread(other), "ratio": spread(ratios)}
            print(f"median ratio {record['ratio']['median']:.1f}")


def measure_batches(source: Iterator[Any], count: int, read_ahead: int) -> float:
    """Seconds for `count` batches. First the `read_ahead` batches that may be ready are taken."""
    for _ in range(read_ahead + 1):
        next(source)
    start = time.perf_counter()
    for _ in range(count):
        next(source)
    return time.perf_counter() - start


@contextlib.contextmanager
def own_reader(config: LoaderConfig) -> Iterator[tuple[Callable[[], float], float]]:
    """A function that measures this package's pipeline once, and the seconds of its set-up."""
    start = time.perf_counter()
    run = ReflowConfig(
        dataset=DatasetConfig(root=str(config.dataset), holdout=0.0, cache_frames=config.cache_frames),
        batch_size=config.batch,
        num_workers=config.workers,
    )
    checkpoint = load_saved_policy(config.checkpoint)
    data = split_data(open_dataset(run.dataset), checkpoint.policy, checkpoint.load_transforms(), run)
    with contextlib.closing(training_batches(data, run, 0)) as batches:
        next(batches)
        setup = time.perf_counter() - start
        yield lambda: measure_batches(batches, config.batches, READ_AHEAD * max(config.workers, 1)), setup


@contextlib.contextmanager
def lerobot_reader(config: LoaderConfig) -> Iterator[Callable[[], float]]:
    """The same for LeRobot, in a process of its own (`lerobot_loader`)."""
    settings = {
        "dataset": str(config.dataset),
        "batch": config.batch,
        "workers": config.workers,
        "batches": config.batches,
        "read_ahead": READ_AHEAD * max(config.workers, 1),
    }
    with worker("benchmarks.lerobot_loader", settings) as ask:
        yield lambda: float(ask("measure")["seconds"])
