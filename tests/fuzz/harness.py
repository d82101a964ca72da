"""Asks a worker process about one damaged file at a time, outlives its crashes, and counts what came of it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import Mutant, Mutate
from tests.fuzz.worker import LIMIT

ROOT = Path(__file__).parents[2]
SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file: where one lies in the policy's or the dataset's folder, and how it is damaged.

    `also` names the files that an error may name instead, because what does not fit is between the two.
    """

    name: str
    folder: str
    file: str
    mutate: Mutate
    also: tuple[str, ...] = ()
    stats_from: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case; `error` is None after success."""

    error: str | None
    own: bool
    message: str
    bytes: int
    seconds: float

    def defect(self, names: tuple[str, ...]) -> str | None:
        """What is wrong with it, if anything, in a few words that are the same for the same defect."""
        if self.error is None:
            wrong = None
        elif not self.own:
            wrong = f"{self.error}{_place(self.message)}"
        elif not any(name in self.message for name in names):
            wrong = f"{self.error} names none of {', '.join(names)}: {self.message[:300]}"
        else:
            wrong = None
        if wrong is None and self.seconds > SECONDS:
            wrong = f"took {self.seconds:.0f} s"
        if wrong is None and self.bytes > LIMIT:
            wrong = f"took {self.bytes / 2**20:.0f} MiB"
        return wrong


def _place(trace: str) -> str:
    """The innermost line of the package in a traceback."""
    lines = [line.strip() for line in trace.splitlines() if line.startswith('  File "')]
    own = [line for line in lines if "/jaxreflow/" in line or "/convert/" in line] or lines
    return f" at {own[-1]}" if own else f": {trace}"


class Worker:
    """One worker process, started again after it died."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, case: dict[str, Any]) -> None:
        """Starts a process if there is none, and lets it open what is sound, so that imports and compilation are no case's."""
        if self._process is not None:
            return
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        answer = self._exchange(case, 180)
        assert answer is not None, self._log.read_text(errors="replace")
        assert answer["error"] is None, answer["message"]

    def ask(self, case: dict[str, Any]) -> Outcome:
        """The outcome of one case; a worker that dies or stays silent for too long is one, too."""
        began = time.monotonic()
        answer = self._exchange(case, SECONDS)
        seconds = time.monotonic() - began
        if answer is None:
            return self._end(seconds)
        return Outcome(**answer, seconds=seconds)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _exchange(self, case: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(case).encode() + b"\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else b""
        return json.loads(line) if line else None

    def _end(self, seconds: float) -> Outcome:
        """Ends a process that died or hangs; its last words are the message."""
        assert self._process is not None
        try:
            error = f"Exit{self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            error = "Hang"
        self.close()
        return Outcome(error, False, self._log.read_text(errors="replace")[-3000:], 0, seconds)


@dataclasses.dataclass
class Tally:
    """Cases of one target by outcome, the slowest and the largest, and each defect with its shortest recipe."""

    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: float = 0.0
    bytes: int = 0
    defects: dict[str, str] = dataclasses.field(default_factory=dict)

    def count(self, outcome: Outcome, mutant: Mutant, names: tuple[str, ...]) -> None:
        """Adds a case."""
        self.outcomes[outcome.error or "success"] += 1
        self.seconds, self.bytes = max(self.seconds, outcome.seconds), max(self.bytes, outcome.bytes)
        defect = outcome.defect(names)
        if defect is not None and len(mutant.recipe) < len(self.defects.get(defect, mutant.recipe + " ")):
            self.defects[defect] = mutant.recipe

    def line(self, name: str) -> str:
        """One row of the table."""
        outcomes = ", ".join(f"{count} {error}" for error, count in sorted(self.outcomes.items()))
        return f"{name:24} {self.outcomes.total():5} {self.seconds:6.2f} s {self.bytes / 2**20:6.0f} MiB  {outcomes}"


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """Other content in a file for a while."""
    sound = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(sound)
