"""`train.py` in a process of its own that writes down what it reads and can be disturbed at an update.

    python -m tests.watched_run '{"record": FILE, "at": 3, "do": "SIGTERM"}' reflow --output-dir RUN ...

FILE gets a line for every batch that is trained on (`step`, `frames`: this process's), and at the end `decoded`, the number of
video frames that the process decoded. `do`: a signal that the process sends itself before that update, `raise`, `hang` or
`fill the disk`. With `kill_in`, the name of a function, it kills itself instead as that is called for the `at`-th time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import train
from jaxreflow.data.video import FrameReaders
from jaxreflow.errors import DatasetError
from jaxreflow.model.types import Batch

ROOT = Path(__file__).parent.parent
# Seconds after which a run is taken to hang; on a machine with other work a short one takes two minutes.
HANGS = 600
# The ports that JAX chooses from under SLURM.
PORTS = range(65535 - 2**12 + 1, 65536)


def main() -> int:
    """Runs train.py with what is asked for around its batches."""
    plan, argv = json.loads(sys.argv[1]), sys.argv[2:]
    decoded, original = [0], (train.training_batches, FrameReaders.video_frame)

    def video_frame(*args: Any) -> Any:
        decoded[0] += 1
        return original[1](*args)

    def training_batches(data: Any, config: Any, start_step: int) -> Generator[Batch]:
        batches = original[0](data, config, start_step)
        try:
            for step, batch in enumerate(batches, start_step + 1):
                if step == plan.get("at"):
                    disturb(plan["do"])
                note(plan["record"], {"step": step, "frames": batch.index.tolist()})
                yield batch
        finally:
            batches.close()

    if plan["kill_in"]:
        kill_in(plan["kill_in"], plan["at"])
        plan["at"] = 0
    train.training_batches, FrameReaders.video_frame = training_batches, video_frame  # type: ignore[method-assign]
    status = train.main(argv)
    note(plan["record"], {"decoded": decoded[0]})
    return status


def note(record: str, line: dict[str, Any]) -> None:
    """Adds a line."""
    with Path(record).open("a") as file:
        file.write(json.dumps(line) + "\n")


def kill_in(name: str, call: int) -> None:
    """Makes the `call`-th call of a module's function the end of the process."""
    module, function = name.rsplit(".", 1)
    target, calls = importlib.import_module(module), itertools.count(1)
    original = getattr(target, function)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(target, function, counted)


def disturb(do: str) -> None:
    """Does what was asked for."""
    if do == "raise":
        raise DatasetError("the frame of the test is bad")
    if do == "hang":
        threading.Event().wait()
    if do == "fill the disk":  # A limit on file sizes stands in for it: the same calls fail, though with EFBIG.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return
    os.kill(os.getpid(), getattr(signal, do))
    if jax.distributed.is_initialized():
        time.sleep(2)  # The notice of it takes a moment to the other process, which waits in the update meanwhile.


@dataclasses.dataclass
class Watched:
    """One started process, and what it left."""

    process: subprocess.Popen[str]
    record: Path
    error: str = ""

    def wait(self) -> int:
        """Its exit status; negative if a signal ended it. A run that hangs is killed: TimeoutExpired."""
        try:
            self.error = self.process.communicate(timeout=HANGS)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def wait_for_an_update(self) -> None:
        """Returns when it has read a second batch, so that its first update is under way."""
        while not self.record.exists() or self.record.read_text().count("\n") < 2:
            assert self.process.poll() is None, "the run ended before"
            time.sleep(0.01)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it wrote down."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    @property
    def frames(self) -> dict[int, list[int]]:
        """The frames that it trained on, by update."""
        return {line["step"]: line["frames"] for line in self.lines if "step" in line}

    @property
    def decoded(self) -> int:
        """How many video frames it decoded."""
        return self.lines[-1]["decoded"]


@functools.cache
def compiled_programs() -> tempfile.TemporaryDirectory[str]:
    """A folder for compiled programs, shared by all processes that one test session starts."""
    return tempfile.TemporaryDirectory(prefix="jaxreflow-programs-")


def start(
    record: Path,
    argv: Sequence[str],
    *,
    devices: int = 1,
    at: int = 0,
    do: str = "",
    kill_in: str = "",
    env: Mapping[str, str] | None = None,
) -> Watched:
    """Starts one process, with `env` in its environment."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    settings = {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": compiled_programs().name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    plan = json.dumps({"record": str(record), "at": at, "do": do, "kill_in": kill_in})
    command = [sys.executable, "-W", "error", "-m", "tests.watched_run", plan, *argv]
    environment = {**os.environ, **settings, **(env or {})}
    return Watched(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True), record)


def start_two(
    folder: Path, argv: Sequence[str], *, devices: int, who: int = 0, at: int = 0, do: str = "", slurm: bool = False
) -> list[Watched]:
    """Starts two processes of one run, as SLURM does it or by address; process `who` is disturbed."""
    port = free_port()

    def process(i: int) -> Watched:
        env = {
            # JAX makes the port out of the job's number.
            "SLURM_JOB_ID": str(port - PORTS.start),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }
        spec = "auto" if slurm else f"localhost:{port},2,{i}"
        return start(
            folder / f"process{i}.jsonl",
            [*argv, "--distributed", spec],
            devices=devices,
            at=at if i == who else 0,
            do=do,
            env=env if slurm else None,
        )

    return [process(0), process(1)]


def free_port() -> int:
    """One of `PORTS` at which nobody listens."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return port
    raise OSError(f"no port of {PORTS} is free")


if __name__ == "__main__":
    sys.exit(main())
