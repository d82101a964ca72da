"""A policy behind the protocol of openpi's websocket client: one message per observation, one per chunk.

As `openpi_client.websocket_client_policy` has it: the server speaks first and sends a map, its metadata; each binary message of
the client is an observation, answered by a map with `actions` and `server_timing`; a text in place of that is an error. `GET
/healthz` is answered with 200. Messages are those of `jaxreflow.serve.messages`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxreflow.errors import JaxReflowError, ServeError
from jaxreflow.serve.messages import pack, unpack

if TYPE_CHECKING:
    from websockets.asyncio.server import Request, Response, ServerConnection

HEALTH = "/healthz"
GOING_AWAY, INTERNAL_ERROR = 1001, 1011
# Latencies that the summary is made of; a server may run for weeks.
_REMEMBERED = 10_000
# An error may quote what the client sent.
_LONGEST_ERROR = 2_000
_log = logging.getLogger(__name__)

Predict = Callable[[dict[str, Any], int, int], np.ndarray]
"""A request, its client's number and its own among the client's -> `actions`; runs in a thread of its own, one at a time."""


class PolicyServer:
    """Answers many clients with one `predict`, off the event loop, so that a slow chunk keeps no connection from its pings."""

    def __init__(
        self,
        predict: Predict,
        metadata: Mapping[str, Any],
        *,
        leave: Callable[[int], None] | None = None,
        max_bytes: int = 1 << 26,
        debug: bool = False,
    ) -> None:
        """`leave` hears of each client that has gone, in the thread of `predict`. `max_bytes` bounds a request.

        `debug` sends clients the traceback of an error that is none of jaxreflow's.
        """
        self._predict, self._metadata, self._leave = predict, dict(metadata), leave
        self._max_bytes, self._debug = max_bytes, debug
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._numbers = itertools.count()
        self._busy: set[ServerConnection] = set()
        self._stopping = False
        self._answered = self._errors = self._clients = 0
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    async def run(self, where: socket.socket, stop: asyncio.Event) -> None:
        """Serves on what `bind` gave until `stop` is set, then finishes the requests under way.

        Raises:
            ServeError: another program has begun to listen there.
        """
        from websockets.asyncio.server import serve

        quiet = _log.getChild("websockets")
        quiet.setLevel(logging.WARNING)
        host, port, *_ = where.getsockname()
        with _socket_errors(host, port):
            server = await serve(
                self._converse,
                sock=where,
                # Browsers name the page's origin: no page may reach a local policy through whoever visits it.
                origins=[None],
                compression=None,
                max_size=self._max_bytes,
                max_queue=1,
                process_request=_answer_health,
                logger=quiet,
            )
        _log.info("listening on ws://%s:%d", f"[{host}]" if ":" in host else host, port)
        await stop.wait()
        _log.info("stopping; %d request(s) under way", len(self._busy))
        self._stopping = True
        server.close(close_connections=False)
        await asyncio.gather(*(_leave(connection) for connection in server.connections - self._busy))
        await server.wait_closed()
        self._worker.shutdown()

    def summary(self) -> str:
        """What was served so far, with the latency of its latest 10,000 chunks."""
        latency = f"; {format_latency(self._latencies)}" if self._latencies else ""
        return f"served {self._answered} chunk(s) to {self._clients} client(s), {self._errors} error(s){latency}"

    async def _converse(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        client, previous = next(self._numbers), None
        self._clients += 1
        _log.info("client %d: connected", client)
        try:
            await connection.send(pack({**self._metadata, "connection": client}))
            for request in itertools.count():
                message = await connection.recv()
                start = time.perf_counter()
                self._busy.add(connection)
                reply = await self._answer(message, client, request, previous)
                await connection.send(reply)
                self._busy.discard(connection)
                previous = 1e3 * (time.perf_counter() - start)
                if self._stopping:
                    await _leave(connection)
        except ConnectionClosed as closed:
            _log.info("client %d: left: %a", client, str(closed))
        except Exception as error:
            self._errors += 1
            _log.exception("client %d: an error that should not occur; its connection is closed", client)
            text = traceback.format_exc() if self._debug else f"{type(error).__name__}; the server's log has the rest"
            with contextlib.suppress(ConnectionClosed):
                await connection.send(f"error in the server: {text}")
            await connection.close(INTERNAL_ERROR, "error in the server, described in the message before")
        finally:
            self._busy.discard(connection)
            if self._leave is not None:
                self._worker.submit(self._leave, client)

    async def _answer(self, message: str | bytes, client: int, request: int, previous: float | None) -> str | bytes:
        """A chunk, or as a text what is wrong with the observation: the client may send a better one."""
        try:
            observation = _read_request(message)
            loop = asyncio.get_running_loop()
            actions, infer_ms = await loop.run_in_executor(self._worker, self._timed, observation, client, request)
        except JaxReflowError as error:
            self._errors += 1
            # In ASCII: names that a client made up must not write to a terminal.
            _log.warning("client %d: request %d refused: %a", client, request, str(error)[:_LONGEST_ERROR])
            return str(error)[:_LONGEST_ERROR]
        self._answered += 1
        self._latencies.append(infer_ms)
        timing = {"infer_ms": infer_ms} | ({} if previous is None else {"prev_total_ms": previous})
        return pack({"actions": actions, "server_timing": timing})

    def _timed(self, observation: dict[str, Any], client: int, request: int) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        actions = self._predict(observation, client, request)
        return actions, 1e3 * (time.perf_counter() - start)


def _read_request(message: str | bytes) -> dict[str, Any]:
    request = unpack(message) if isinstance(message, bytes) else message
    if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
        raise ServeError(
            f"expected an observation, a msgpack map with names as keys, found a {type(request).__name__}"
            + (" with other keys" if isinstance(request, dict) else "")
        )
    return request


async def _leave(connection: ServerConnection) -> None:
    await connection.close(GOING_AWAY, "the server stops")


def _answer_health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == HEALTH else None


def bind(host: str, port: int) -> socket.socket:
    """Takes an address for `PolicyServer.run`; until then whoever connects is refused, which says that the server is not ready.

    Raises:
        ServeError: there is no such address here, or another program has it.
    """
    with _socket_errors(host, port):
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
        return taken


@contextlib.contextmanager
def _socket_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServeError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); give another port (0: any that is "
            "free) or an address of this machine, or end the program that has it"
        ) from error


def format_latency(milliseconds: deque[float] | list[float]) -> str:
    """Median and 95th percentile."""
    p50, p95 = np.percentile(np.asarray(milliseconds), [50, 95])
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms per chunk at batch 1"
