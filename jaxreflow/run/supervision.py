"""What watches over a run from outside: signals that ask it to stop, and a clock that ends it when it hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A run that stopped because a signal asked it to; its last update is saved."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


class StopRequest:
    """SIGTERM and SIGINT (Ctrl-C), while open, ask the run to stop after an update; a second one stops it at once.

    Several processes stop after the same update, whichever of them was asked.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}
        # With several processes JAX hears SIGTERM itself, and finds the update that all of them still reach.
        self._shared = jax.distributed.is_initialized()

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS[1:] if self._shared else STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.signal).name

    def made(self, step: int) -> bool:
        """Whether the run is to stop after this update; every process must ask after every update."""
        if not self._shared:
            return self.signal != 0
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.signal = self.signal or signal.SIGTERM
        return True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        self._restore()
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Watchdog:
    """Ends the process, after the stack of every thread, when it is not heard of for `seconds`; 0: never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def heard(self) -> None:
        """Starts the clock anew."""
        if self._seconds:
            # The process's own error stream: a notebook's or a test's in its place is no file.
            faulthandler.dump_traceback_later(self._seconds, file=2, exit=True)

    def __enter__(self) -> Watchdog:
        self.heard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
