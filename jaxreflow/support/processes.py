"""Several processes as one run: how they find each other, and how the failure of one ends all."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxreflow.errors import ConfigError, JaxReflowError, TrainingError

# Pods start their hosts minutes apart; a process that is silent for a minute is dead.
CONNECT_TIMEOUT_S, HEARTBEAT_TIMEOUT_S = 900, 60
# The first process may be at its report for long when the others are done.
SHUTDOWN_TIMEOUT_S = 24 * 3600
_FAILURE = "jaxreflow/failure"
_LOOK_EVERY_S = 1.0
_HEARD_TIMEOUT_MS = 5_000


def connect(spec: str) -> None:
    """Joins the processes of the run; must come before anything that JAX computes.

    `spec` is `off`: this process alone; `auto`: as SLURM, Cloud TPU, Kubernetes or Open MPI say; or `HOST:PORT,N,I`: process
    I of N, the first of which listens at HOST:PORT.

    Raises:
        ConfigError: `spec` is none of these, or `auto` finds no cluster.
        TrainingError: the other processes cannot be reached.
    """
    if spec == "off":
        return
    options = {} if spec == "auto" else _parse(spec)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=CONNECT_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"--distributed {spec}: expected the environment of a cluster ({type(error).__name__}: {error}); say "
            "HOST:PORT,N,I for process I of N, or off for a single one"
        ) from error
    except RuntimeError as error:
        raise TrainingError(f"--distributed {spec}: the run's processes cannot be joined: {error}") from error
    over = threading.Event()
    watch = threading.Thread(
        target=_end_when_another_fails, args=(over,), name="failures of other processes", daemon=True
    )
    watch.start()
    if not is_first():
        logging.getLogger("jaxreflow").setLevel(logging.WARNING)
    atexit.register(_stop, watch, over)


def _parse(spec: str) -> dict[str, Any]:
    match = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", spec)
    if not match or not int(match[3]) < int(match[2]):
        raise ConfigError(
            f"--distributed: expected auto, off, or HOST:PORT,N,I for process I (0 <= I < N) of N, found {spec!r}"
        )
    return {"coordinator_address": match[1], "num_processes": int(match[2]), "process_id": int(match[3])}


def check_connected() -> None:
    """TrainingError if JAX sees devices of other processes that this one was not told of."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise TrainingError(
            f"the devices belong to {jax.process_count()} processes; say --distributed auto in each of them"
        )


def is_first() -> bool:
    """Whether this is the process that writes files, logs and progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An error in here ends the processes of the run, all with its message; a single process just raises it."""
    try:
        yield
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        expected = isinstance(error, JaxReflowError)
        if _is_first_failure(str(error) if expected else f"{type(error).__name__}: {error}"):
            if not expected:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr, flush=True)
            _wait_until_heard()
        else:  # What failed here follows from it; this process's watch will say what it was.
            time.sleep(2 * _LOOK_EVERY_S)
        _exit()


def _is_first_failure(message: str) -> bool:
    client = ocp.multihost.get_jax_distributed_client()
    try:
        client.key_value_set(_FAILURE, f"process {jax.process_index()}: {message}")
    except RuntimeError as error:
        return "ALREADY_EXISTS" not in str(error)
    return True


def _wait_until_heard() -> None:
    """The first process carries the messages: it stays until the others have theirs."""
    client = ocp.multihost.get_jax_distributed_client()
    for other in range(1, jax.process_count()) if is_first() else ():
        with contextlib.suppress(RuntimeError):
            client.blocking_key_value_get(f"{_FAILURE}/{other}", _HEARD_TIMEOUT_MS)


def _end_when_another_fails(over: threading.Event) -> None:
    """Looks for a failure; collectives may never return once a process is gone, so that no exception can be waited for."""
    client, index = ocp.multihost.get_jax_distributed_client(), jax.process_index()
    while not over.wait(_LOOK_EVERY_S):
        try:
            message = client.key_value_try_get(_FAILURE)
        except RuntimeError:  # There is none, or nobody to ask: then JAX ends this process.
            continue
        if not message.startswith(f"process {index}:"):
            print(f"error: {message}", file=sys.stderr, flush=True)
            with contextlib.suppress(RuntimeError):
                client.key_value_set(f"{_FAILURE}/{index}", "heard")
            _exit()


def _stop(watch: threading.Thread, over: threading.Event) -> None:
    over.set()
    watch.join()


def _exit() -> NoReturn:
    # An orderly end would wait for processes that do not come.
    sys.stdout.flush()
    os._exit(1)
