"""A policy that `python -m jaxreflow.serve` serves, with SmolVLAPolicy's methods; run as a program, an example that measures it.

    python -m jaxreflow.client --host 127.0.0.1 --port 8000

It needs numpy, msgpack and websockets, and no JAX. openpi's own client, `openpi_client.websocket_client_policy`, talks to the same
server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxreflow.errors import ConfigError, JaxReflowError, ProcessorError, ServeError
from jaxreflow.serve.messages import check_installed, pack, unpack


class PolicyClient:
    """A policy on a server: observations there, actions here. Use it as a context manager, or `close` it."""

    def __init__(self, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Connects; `metadata` is what the server says of its policy.

        Raises:
            ServeError: no policy server answers there.
        """
        check_installed()
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        self._address = f"ws://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            with contextlib.ExitStack() as opened:
                # Chunks and metadata are small; a larger answer is no policy server's.
                self._connection = opened.enter_context(connect(self._address, compression=None, max_size=1 << 24))
                self.metadata: dict[str, Any] = self._receive()
                self._open = opened.pop_all()
        except (OSError, WebSocketException) as error:
            raise ServeError(
                f"{self._address}: no policy server answers ({error}); "
                "start one with `python -m jaxreflow.serve`, which listens when its policy is compiled"
            ) from error
        self.timing: dict[str, float] = {}
        self._queue: deque[np.ndarray] = deque()

    def predict_action_chunk(
        self, observation: Mapping[str, Any], noise: np.ndarray | None = None, *, keep_images: bool = False
    ) -> np.ndarray:
        """Actions in dataset units, float32 `[1, chunk_size, action_dim]`, for one observation; `timing` is the server's.

        The observation is `SmolVLAPolicy`'s, of numpy arrays; `noise` is `[chunk_size, max_action_dim]`. With `keep_images` the
        server keeps the images. The next observation that is sent so may have a state only: it is taken with these images.

        Raises:
            ProcessorError: the server refuses the observation.
            ServeError: the observation cannot be sent, or the server is gone.
        """
        from websockets.exceptions import ConnectionClosed

        request = dict(observation) | ({} if noise is None else {"noise": noise})
        if keep_images:
            request["keep_images"] = True
        try:
            self._connection.send(pack(request))
            answer = self._receive()
        except ConnectionClosed as error:
            raise ServeError(
                f"{self._address}: the server has closed the connection ({error}); connect again"
            ) from error
        self.timing = answer["server_timing"]
        chunk: np.ndarray = answer["actions"][None]
        return chunk

    def select_action(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action, `[1, action_dim]`, from a queue of the last chunk's first `n_action_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(observation)
            self._queue.extend(chunk[:, i] for i in range(self.metadata["n_action_steps"]))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forgets the queued actions; call it when an episode starts."""
        self._queue.clear()

    def close(self) -> None:
        """Leaves the server."""
        self._open.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        message = self._connection.recv()
        if isinstance(message, str):
            raise ProcessorError(f"{self._address}: {message}")
        answer: dict[str, Any] = unpack(message)
        return answer


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Asks a server for chunks and says how long they took."""

    host: str = "127.0.0.1"
    """Address of the server."""
    port: int = 8000
    """Its port."""
    requests: int = 50
    """Chunks to ask for."""
    task: str = "pick up the cube"
    """What the policy is told."""

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ConfigError(f"--requests must be at least 1, found {self.requests}")


def example(config: ClientConfig) -> str:
    """Sends observations of zeros, as many as a robot would send its own, and returns the latencies."""
    with PolicyClient(config.host, config.port) as policy:
        shapes = policy.metadata["observation"]
        observation: dict[str, Any] = {"task": config.task}
        for name, shape in shapes.items():
            observation[name] = np.zeros(shape, np.uint8 if len(shape) == 3 else np.float32)
        round_trips, infers = [], []
        for _ in range(config.requests):
            start = time.perf_counter()
            chunk = policy.predict_action_chunk(observation)
            round_trips.append(1e3 * (time.perf_counter() - start))
            infers.append(policy.timing["infer_ms"])
    lines = [
        f"observation {shapes}",
        f"actions {list(chunk.shape)}, the first {chunk[0, 0].astype(float).round(3).tolist()}",
    ]
    for name, times in (("round trip", round_trips), ("of which the policy", infers)):
        p50, p95 = np.percentile(times, [50, 95])
        lines.append(f"{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms over {len(times)} chunks")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the server answered, 1 after an error."""
    from jaxreflow.support.command_line import parse

    args = sys.argv[1:] if argv is None else argv
    try:
        print(example(parse(ClientConfig, args, prog="python -m jaxreflow.client", about=__doc__ or "")))
    except JaxReflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
