"""Commands run as processes of their own: their seconds, and the memory that only they took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Finished(NamedTuple):
    """A command that succeeded: wall and processor seconds, largest resident set in bytes, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run_module(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Runs `python -m MODULE ARGUMENTS` with additions to the environment; SystemExit shows what a failed one said."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert child.stdout is not None
    output = child.stdout.read()
    # Popen.wait would not tell the usage of this child alone.
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    if child.returncode:
        raise SystemExit(f"`python -m {module} {' '.join(arguments)}` ended with {child.returncode}:\n{output}")
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output)
