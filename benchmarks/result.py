"""What every result has beside its figures: the spread of several runs, the machine, its load, and the versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "jaxlib", "numpy", "av", "grain", "libtpu", "torch", "lerobot")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, largest and 99th percentile of several runs, and their number."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "p99": float(np.percentile(values, 99)),
        "runs": len(values),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def result(name: str, config: Any) -> Iterator[dict[str, Any]]:
    """A record to fill in. Unless the block fails, it is printed and appended as one line to the file `config.json`."""
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
    path = Path(settings.pop("json"))
    record: dict[str, Any] = {"benchmark": name, "settings": settings}
    before = os.getloadavg()[0]
    yield record
    record["load"] = [round(before, 2), round(os.getloadavg()[0], 2)]
    record["machine"] = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    record["versions"] = versions()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        print(json.dumps(record), file=lines)
    print(json.dumps(record))
