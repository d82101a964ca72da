"""Starts train.py once, takes the times from its log, and prints one JSON line.

python -m benchmarks.startup_run UPDATES reflow --teacher.path DIR ... --log-every 1
"""

from __future__ import annotations

import time

START = time.perf_counter()

import itertools  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402

import train  # noqa: E402
from jaxreflow.support.compilation import CompileWatch  # noqa: E402

IMPORTED = time.perf_counter()


class Enough(Exception):
    """Ends the run, because what follows is not measured."""


class Milestones(logging.Handler):
    """Notes when train.py logs the data, the weights on the device, and each update's metrics."""

    def __init__(self, updates: int, compiling: CompileWatch) -> None:
        super().__init__()
        self.updates, self.compiling = updates, compiling
        self.seconds: dict[str, float] = {}
        self.programs: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Takes the line's first word, or `step N`, as the milestone's name."""
        match = re.match(r"step \d+(?=/)|\w+(?=:)", record.getMessage())
        if match:
            self.seconds.setdefault(match[0], time.perf_counter() - START)
            self.programs.setdefault(match[0], self.compiling.programs)
        if f"step {self.updates}" in self.seconds:
            raise Enough


def main() -> None:
    """Runs train.py with the flags after the number of updates, and stops it after that many."""
    updates = int(sys.argv[1])
    with CompileWatch() as compiling:
        milestones = Milestones(updates, compiling)
        logging.getLogger("jaxreflow").addHandler(milestones)
        try:
            code = train.main(sys.argv[2:])
            raise SystemExit(f"train.py ended with {code} before update {updates}")
        except Enough:
            pass
    at, programs = milestones.seconds, milestones.programs
    steps = [at[f"step {i}"] for i in range(1, updates + 1)]
    result = {
        "import_s": IMPORTED - START,
        "weights_s": at["policy"] - at["dataset"],
        "first_step_s": steps[0] - at["policy"],
        "next_step_s": statistics.median(after - before for before, after in itertools.pairwise(steps)),
        "programs": programs["step 1"],
        "programs_later": programs[f"step {updates}"] - programs["step 1"],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
