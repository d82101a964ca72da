"""What a run's numbers come from: settings, source code, packages and devices, written down with every start."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxreflow.errors import TrainingError
from jaxreflow.run.config import RunConfig
from jaxreflow.support.hub import without_token
from jaxreflow.support.storage import AnyPath, append_text

PROVENANCE_FILE = "provenance.jsonl"
PACKAGES = ("jaxreflow", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

_GIT_TIMEOUT_S = 10


def provenance(config: RunConfig, start: int) -> dict[str, Any]:
    """All that is known of a run that goes on after update `start`, as plain JSON values without the user's tokens."""
    return {
        "start": start,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
        "processes": jax.process_count(),
        "settings": _without_tokens(dataclasses.asdict(config)),
    }


def write_provenance(run_dir: AnyPath, record: dict[str, Any]) -> None:
    """Adds a line to RUN/provenance.jsonl; TrainingError if it cannot be written."""
    path = run_dir / PROVENANCE_FILE
    try:
        append_text(path, json.dumps(record) + "\n")
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error}); free space, then continue with --resume") from error


def source_commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """The git commit of the source tree that runs, with `-dirty` behind it if files differ; None where it is no such tree."""
    # An installed package may lie within somebody else's repository.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # A source tree that is on the path, but not installed.
        return None


def _without_tokens(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tokens(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tokens(item) for item in value]
    return without_token(value) if isinstance(value, str) else value
