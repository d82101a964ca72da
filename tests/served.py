"""A policy server in a thread of the tests' own."""

import asyncio
import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxreflow.serve.server import PolicyServer, bind


@contextlib.contextmanager
def serving(predict: Callable[..., np.ndarray], metadata: dict[str, Any], **options: Any) -> Iterator[int]:
    """A server in a thread of its own, by its port."""
    loop, stop, where = asyncio.new_event_loop(), asyncio.Event(), bind("127.0.0.1", 0)
    port = where.getsockname()[1]
    server = PolicyServer(predict, metadata, **options)
    thread = threading.Thread(target=loop.run_until_complete, args=(server.run(where, stop),))
    thread.start()
    while not health(port):
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def health(port: int) -> bool:
    """Whether a server listens and is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            return (answer.status, answer.read()) == (200, b"OK\n")
    except OSError:
        return False
