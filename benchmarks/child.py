"""Runs commands and workers as processes of their own, so that a result has only its own seconds and memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

Ask = Callable[[str], dict[str, Any]]

# Linux counts kilobytes, macOS bytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Finished(NamedTuple):
    """A command that succeeded: wall and processor seconds, largest resident set in bytes, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run_module(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Runs `python -m MODULE ARGUMENTS` with additions to the environment. SystemExit shows the output of a failure."""
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
    return Finished(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT, output)


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


@contextmanager
def worker(module: str, settings: Mapping[str, Any]) -> Iterator[Ask]:
    """Starts `python -m MODULE SETTINGS`, which calls `serve`. Yields a function that sends an order and returns the answer.

    Its standard error is shown. SystemExit is raised if it ends before it has answered.
    """
    command = [sys.executable, "-m", module, json.dumps(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        orders, answers = child.stdin, child.stdout
        assert orders is not None
        assert answers is not None

        def ask(order: str) -> dict[str, Any]:
            print(order, file=orders, flush=True)
            answer = answers.readline()
            if not answer:
                raise SystemExit(f"`python -m {module}` ended with {child.wait()} at the order {order!r}; see above")
            return json.loads(answer)

        yield ask
        orders.close()


def serve(orders: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
    """Answers each line of the standard input, an order's name, with one line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    for line in sys.stdin:
        print(json.dumps(orders[line.strip()]()), file=answers, flush=True)
