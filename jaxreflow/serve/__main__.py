"""Serves a policy to robots, over the websocket protocol of openpi's client (`pip install openpi-client`).

    python -m jaxreflow.serve --policy DIR_OR_HUB_ID

An observation has LeRobot's names: `observation.state` [D], each camera uint8 [H, W, 3], and `task` (or openpi's `prompt`). The
answer has `actions`, float32 [chunk, action dim], in the dataset's units. The server compiles the program and measures its latency
before it accepts the first connection. `python -m jaxreflow.client` asks for some chunks and measures the round trip. SIGTERM and
Ctrl-C finish the requests under way. docs/serve.md has the protocol.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import jax
import numpy as np

from jaxreflow.errors import ConfigError, JaxReflowError
from jaxreflow.policy.observation import example_observation
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.serve.answers import KEEP_IMAGES, NOISE, Answers
from jaxreflow.serve.messages import check_installed
from jaxreflow.serve.server import PolicyServer, bind, format_latency
from jaxreflow.support.command_line import parse
from jaxreflow.support.compilation import use_compilation_cache
from jaxreflow.support.jax_errors import explained
from jaxreflow.support.storage import check_path

# By name: run as a program, this module is __main__.
_log = logging.getLogger("jaxreflow.serve")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """A policy, and where to serve it."""

    policy: str
    """Policy in LeRobot's layout: directory or hub name."""
    revision: str | None = None
    """Of a policy from the hub: a commit, tag or branch (default: main)."""
    num_steps: int | None = None
    """Euler steps (default: as config.json says)."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password, so any address but this machine's is open to its whole network."""
    port: int = 8000
    """Port to listen on. 0 takes one that is free."""
    image_size: tuple[int, int] | None = None
    """Height and width of the pictures that will come, of every camera (default: as the policy's input_features say)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    seed: int = 0
    """Seed of the noise. Every client has its own noise, by the order of their connections."""
    stats_from: str | None = None
    """Normalise by a FILE's statistics (stats.json or safetensors) instead of the policy's own."""
    vlm: str | None = None
    """Directory of the VLM's config and tokenizer (default: the policy's vlm/ folder, else its vlm_model_name)."""
    repeats: int = 20
    """Chunks whose latency is measured before the first connection is accepted."""
    max_request: int = 64
    """Largest request, in MiB."""
    debug: bool = False
    """Show tracebacks, also to clients."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 0 to 65535, found {self.port}")
        for name in ("repeats", "max_request"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        check_path("--stats-from", self.stats_from, schemes=())


def serve(config: ServeConfig) -> str:
    """Serves until SIGTERM or SIGINT; returns a summary.

    Raises:
        CheckpointError, ConfigError, ProcessorError: the policy cannot be read.
        ServeError: nothing can listen at the address, or packages are missing.
    """
    check_installed()
    with bind(config.host, config.port) as where:
        if not ipaddress.ip_address(where.getsockname()[0]).is_loopback:
            _log.warning(
                "--host %s is open to more than this machine. The server has no password and no encryption, so whoever "
                "reaches the port can use the policy. On a network that you share, serve on 127.0.0.1 through an SSH tunnel",
                config.host,
            )
        answers, metadata = prepare(config)
        server = PolicyServer(
            answers, metadata, leave=answers.leave, max_bytes=config.max_request << 20, debug=config.debug
        )
        asyncio.run(_until_signal(server, where))
    return server.summary()


def prepare(config: ServeConfig) -> tuple[Answers, dict[str, Any]]:
    """Loads and compiles the policy and logs its latency; also what clients are told of it."""
    policy = SmolVLAPolicy.from_pretrained(
        config.policy, vlm=config.vlm, dtype=config.dtype, revision=config.revision, stats_from=config.stats_from
    )
    steps = policy.config.num_steps if config.num_steps is None else config.num_steps
    example = _one(example_observation(policy.transforms))
    sizes = {name: config.image_size or value.shape[:2] for name, value in example.items() if np.ndim(value) == 3}
    seconds = policy.compile(steps, image_sizes=sizes)
    example = _one(example_observation(policy.transforms, image_sizes=sizes))
    answers = Answers(policy, num_steps=steps, seed=config.seed)
    times = []
    for number in range(config.repeats):
        start = time.perf_counter()
        answers(example, 0, number)
        times.append(1e3 * (time.perf_counter() - start))
    device, chunk = jax.devices()[0], (policy.config.chunk_size, policy.config.action_dim)
    _log.info("%s: %d Euler step(s), chunks of %d x %d, compiled in %.1f s", config.policy, steps, *chunk, seconds)
    _log.info(
        "%s on %s (%s), %d black pictures", format_latency(times), device.platform, device.device_kind, len(times)
    )
    metadata = {
        "server": f"jaxreflow {version('jaxreflow')}",
        "observation": {name: list(value.shape) for name, value in example.items() if isinstance(value, np.ndarray)},
        "chunk_size": policy.config.chunk_size,
        "action_dim": policy.config.action_dim,
        "n_action_steps": policy.config.n_action_steps,
        "num_steps": steps,
        NOISE: [policy.config.chunk_size, policy.config.max_action_dim],
        KEEP_IMAGES: True,
        "seed": config.seed,
    }
    return answers, metadata


def _one(observation: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] if isinstance(value, np.ndarray) else value for name, value in observation.items()}


async def _until_signal(server: PolicyServer, where: socket.socket) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def hear() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # A second signal ends the process at once, whatever the policy's thread is at.
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, hear)
    await server.run(where, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 after a signal, 1 after an error."""
    config, args = None, sys.argv[1:] if argv is None else argv
    try:
        config = parse(ServeConfig, args, prog="python -m jaxreflow.serve", about=__doc__ or "")
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("jaxreflow").setLevel(logging.INFO)
        use_compilation_cache()
        with explained("give --dtype bfloat16, or end other programs that use this memory"):
            print(serve(config))
    except JaxReflowError as error:
        if config is not None and config.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
