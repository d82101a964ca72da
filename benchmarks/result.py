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

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


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


def machine() -> dict[str, Any]:
    """This machine: its cores, the CPU's model, and which instructions for matrix products it has (Linux says them)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "cpus": os.cpu_count(),
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "machine": platform.machine(),
        "system": platform.system(),
    }


@contextmanager
def result(name: str, config: Any) -> Iterator[dict[str, Any]]:
    """A record to fill in. Unless the block fails, it is printed and appended as one line to the file `config.json`."""
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()}
    path = Path(settings.pop("json"))
    record: dict[str, Any] = {"benchmark": name, "settings": settings}
    about = machine()
    print(
        f"machine: {about['cpus']} cores, {about['cpu']} with {', '.join(about['instructions']) or 'no wide instructions known'}"
    )
    before = os.getloadavg()[0]
    yield record
    record["load"] = [round(before, 2), round(os.getloadavg()[0], 2)]
    record["machine"] = machine()
    record["versions"] = versions()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        print(json.dumps(record), file=lines)
    print(json.dumps(record))
