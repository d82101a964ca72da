"""What a run reports: `metrics.jsonl`, one flat record a line, and a progress bar or plain log lines."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeAlias

import jax
from tqdm import tqdm

from jaxreflow.errors import TrainingError
from jaxreflow.run.record.trackers import Tracking
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, append_text

Record: TypeAlias = dict[str, int | float]
"""A line of the log: `step`, and scalars by name."""

METRICS_FILE = "metrics.jsonl"
_log = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to `metrics.jsonl`, sends them to the run's tracker, and shows them; other processes than the first only
    keep time.

    Records from after `start` are cut off first: a resumed run writes them again.
    """

    def __init__(self, run_dir: AnyPath, *, start: int, steps: int, tracking: Tracking | None = None) -> None:
        self._path = run_dir / METRICS_FILE
        self._steps = steps
        self._tracking = tracking or Tracking(None)
        self._primary = is_first()
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._primary and sys.stderr.isatty()),
        )
        if self._primary and self._path.is_file():
            kept = _to_lines(read_metrics(run_dir, last=start))
            self._write(lambda: self._path.write_text(kept, encoding="utf-8"))

    def write(self, step: int, record: dict[str, float]) -> None:
        """Adds one record; TrainingError if it cannot be written."""
        if not self._primary:
            return
        line = _to_lines([{"step": step, **record}])
        self._write(lambda: append_text(self._path, line))
        self._tracking.scalars(step, record)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if "_error/" not in name)
        if self._bar.disable:
            _log.info("step %d/%d: %s", step, self._steps, shown)
        else:
            self._bar.set_postfix_str(shown)

    def advance(self) -> None:
        """Moves the progress bar by one update."""
        self._bar.update()

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise TrainingError(
                f"{self._path}: cannot be written ({error}); free space, then continue with --resume"
            ) from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def _to_lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read_metrics(run_dir: AnyPath, last: int | None = None) -> Iterator[Record]:
    """The records of a run in order, up to update `last`; a line that a crash cut off is left out."""
    for line in (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if last is None or record["step"] <= last:
            yield record


def last_logged(run_dir: AnyPath) -> int:
    """The last update whose metrics are in the log; 0 without one."""
    if not (run_dir / METRICS_FILE).is_file():
        return 0
    return max((int(record["step"]) for record in read_metrics(run_dir)), default=0)


def memory() -> dict[str, float]:
    """GiB: the most that this process has taken on its first device, where the device counts it, and on the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**({} if peak is None else {"device_memory": peak / 2**30}), "host_memory": host / 2**30}


class Stopwatch:
    """Seconds since the last reading, and the part of them spent waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times one update's wait for data."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation("data_wait"):
            yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """`step_time` and `data_wait` in seconds per update, and `samples/s`, since the last call."""
        elapsed = time.perf_counter() - self._start
        steps = max(self._steps, 1)
        record = {
            "step_time": elapsed / steps,
            "data_wait": self._waited / steps,
            "samples/s": batch_size * self._steps / elapsed,
        }
        self.restart()
        return record

    def restart(self) -> None:
        """Forgets what was measured, such as the time that an evaluation took."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0
