"""Compilations of a running program: each part should compile when it first runs, and never again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import jax
import jax.monitoring

# Reported for each new program, also where the persistent cache has it.
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_log = logging.getLogger(__name__)


class CompileWatch:
    """Counts the programs that this thread compiles while the watch is open, and warns of a part that compiles again."""

    def __init__(self) -> None:
        self.programs = 0
        self._seconds = 0.0
        self._thread = threading.get_ident()
        self._known: set[str] = set()

    def __enter__(self) -> CompileWatch:
        jax.monitoring.register_event_duration_secs_listener(self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._count)

    @contextmanager
    def part(self, name: str, step: int) -> Iterator[None]:
        """Runs a part of the loop; only its first run may compile."""
        programs, seconds = self.programs, self._seconds
        yield
        if self.programs > programs and name in self._known:
            _log.warning(
                "%s %d compiled %d program(s) again, which took %.1f s: the shapes, types or placement of its inputs "
                "changed",
                name,
                step,
                self.programs - programs,
                self._seconds - seconds,
            )
        self._known.add(name)

    def _count(self, event: str, duration_secs: float, **_: str | int) -> None:
        # Checkpoints are written by threads of their own, which may compile what they please.
        if event == COMPILE_EVENT and threading.get_ident() == self._thread:
            self.programs += 1
            self._seconds += duration_secs


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user chose a place or none."""
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jaxreflow").expanduser()))
