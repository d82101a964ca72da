"""A window of updates under JAX's profiler, in a folder that XProf opens."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import jax

from jaxreflow.model.types import Batch
from jaxreflow.support.processes import is_first
from jaxreflow.support.storage import AnyPath, upload
from jaxreflow.training.step import Metrics, TrainState

Update = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

PROFILE = "profile"
"""The folder of a run that its traces lie in."""
_log = logging.getLogger(__name__)


class ProfileWindow:
    """Traces the updates `first .. first + count - 1` of a run into RUN/profile, in the first process.

    The devices are idle at both ends, so that the trace holds the whole work of these updates and of no others. `window` is
    `(first, count)`, or None. A trace that cannot be taken is a warning: the run goes on.
    """

    def __init__(self, run_dir: AnyPath, window: tuple[int, int] | None, *, start: int) -> None:
        self._folder = run_dir / PROFILE
        self._first, count = window or (0, 0)
        self._last = self._first + count - 1
        self._done = start
        self._open = contextlib.ExitStack()
        self._tracing = False
        self._wanted = window is not None and is_first()
        if self._wanted and self._first <= start:
            self._wanted = False
            _log.info("--profile %d,%d: this run begins after update %d; nothing is traced", self._first, count, start)

    def watch(self, update: Update) -> Update:
        """The same update, traced within the window."""
        if not self._wanted:
            return update

        def watched(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            step = self._done + 1
            if step == self._first:
                jax.block_until_ready(state)
                self._begin()
            with jax.profiler.StepTraceAnnotation("update", step_num=step):
                done = update(state, batch)
            if step == self._last:
                jax.block_until_ready(done)
                self._end()
            self._done = step
            return done

        return watched

    def _begin(self) -> None:
        with self._warning():
            local = self._folder if isinstance(self._folder, Path) else self._temporary()
            options = jax.profiler.ProfileOptions()
            # Every call of every Python function would drown the rest.
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(local), profiler_options=options)
            self._tracing = True

    def _temporary(self) -> Path:
        local = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="jaxreflow-profile-")))
        self._open.callback(upload, local, self._folder)
        return local

    def _end(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        with self._warning():
            with self._open:
                jax.profiler.stop_trace()
            _log.info("updates %d to %d are traced: xprof --logdir %s", self._first, self._last, self._folder)

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # The profiler's errors share no base class, and none is worth the run.
            _log.warning("--profile: no trace (%s: %s); the run goes on", type(error).__name__, error)

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
