"""What a command shows while it works: the package's log, and how far a long task has come."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxreflow.support.installation import as_typed

# Away from a terminal: no line before this many seconds, and then one for every such share of the task, or after so long.
LINE_AFTER_S, LINE_SHARE, LINE_AT_LEAST_S = 10.0, 0.1, 60.0
_log = logging.getLogger(__name__)

Advance: TypeAlias = Callable[[int], object]
"""Called with the number of units that have been done since the last call."""


@contextlib.contextmanager
def console_log() -> Iterator[None]:
    """Shows the package's log lines, above the progress bar if there is one."""
    logger, handler = logging.getLogger("jaxreflow"), logging.StreamHandler()
    handler.setFormatter(_Formatter())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def progress(task: str, total: int, *, unit: str, done: int = 0) -> Iterator[Advance]:
    """Yields `advance(n)`: n more units of a task are done. A bar on a terminal, a log line now and then elsewhere.

    Nothing is shown where the package's log is not: in programs that use the package, and in all processes of a run but the first.
    """
    if not _log.isEnabledFor(logging.INFO) or done >= total:
        yield lambda _: None
    elif sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=task, unit=unit, dynamic_ncols=True, leave=False) as bar:
            yield bar.update
    else:
        yield _Lines(task, total, done).advance


class _Formatter(logging.Formatter):
    """A log line, with the commands in it as the user has them."""

    def format(self, record: logging.LogRecord) -> str:
        return as_typed(super().format(record))


class _Lines:
    """Progress as log lines, none of a task that is over soon."""

    def __init__(self, task: str, total: int, done: int) -> None:
        self._task, self._total = task, total
        self._done = self._shown = done
        self._time = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        waited = time.monotonic() - self._time
        moved = (self._done - self._shown) / self._total
        if waited >= LINE_AFTER_S and (moved >= LINE_SHARE or waited >= LINE_AT_LEAST_S or self._done >= self._total):
            share = 100 * self._done / self._total
            _log.info("%s: %d of %d (%.0f %%)", self._task, self._done, self._total, share)
            self._shown, self._time = self._done, time.monotonic()
