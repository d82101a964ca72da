"""The largest batch size that fits a device's memory, found with few compilations; and how much room there is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from jaxreflow.errors import ConfigError

# The newer name, and the one that JAX still reads.
_SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_COMPILATIONS, _GROWTH, _WORTH = 6, (4, 16), 0.05
# Of the limit, what a prediction aims at, so that the next compilation confirms it.
_AIM = 0.98


def largest_fit(need: Callable[[int], float], first: int, most: int, limit: float) -> dict[int, float]:
    """Bytes by size for each size that `need` was asked for: `first`, then ever nearer to the largest that `limit` holds.

    A program's memory is the largest of several demands, each of which is nearly a straight line in the size. So its curve bends
    upward only. The chord between a size that fits and one that does not crosses the limit at a size that fits. Beyond the
    largest size known, a line through the last two is followed. It is not followed far where it is flat, as for small sizes.

    Args:
        need: bytes of a size, `math.inf` where they cannot be had. It is called at most six times.
        first: a size from 1 to `most`.
        most: the largest size that is of use.
        limit: bytes.
    """
    known: dict[int, float] = {}
    size: int | None = first
    while size is not None and len(known) < _COMPILATIONS:
        known[size] = need(size)
        size = _next_size(known, most, limit)
    return known


def _next_size(known: dict[int, float], most: int, limit: float) -> int | None:
    """A size worth a compilation, or None."""
    fits = sorted(size for size, needed in known.items() if needed <= limit)
    below, above = (fits[-1] if fits else 0), min((size for size in known if size not in fits), default=most + 1)
    if not fits:
        size = max(above // _GROWTH[0], 1)
    elif above <= most:
        slope = (known[above] - known[below]) / (above - below)
        size = (below + above) // 2 if math.isinf(slope) else below + int((_AIM * limit - known[below]) / slope)
    elif len(fits) == 1:
        size = min(_GROWTH[0] * below, most)
    else:
        before = fits[-2]
        slope = max(known[below] - known[before], 1.0) / (below - before)
        far = most if known[below] > 2 * known[before] else _GROWTH[1] * below
        size = min(below + int((_AIM * limit - known[below]) / slope), far, most)
    small_gain = bool(fits) and size <= below * (1 + _WORTH) and size < most
    return None if size in known or small_gain else size


def room(gibibytes: float | None, pool: int | None, devices: int) -> tuple[float, str]:
    """Bytes that a run may use on each device, and in words where that comes from.

    Args:
        gibibytes: of other devices than those at hand, or None.
        pool: bytes that JAX has taken of each device at hand (its `bytes_limit`), or None for a CPU, which has none.
        devices: how many there are in this process.
    """
    if gibibytes is not None:
        share = _share_of_gpu()
        said = f"the {share:g} of {gibibytes:g} GiB that JAX takes of a GPU (XLA_CLIENT_MEM_FRACTION)"
        return gibibytes * share * 2**30, said
    if pool is not None:
        return float(pool), "which JAX has taken of the device (of a GPU by XLA_CLIENT_MEM_FRACTION)"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = f" for {devices} devices" if devices > 1 else ""
    return memory / devices, f"this machine's memory{shared}, which other programs need, too"


def _share_of_gpu() -> float:
    """The part of a GPU's memory that JAX takes; 0.75 unless one of its two variables says otherwise."""
    name, text = next(
        ((name, os.environ[name]) for name in _SHARE_VARIABLES if os.environ.get(name)), (_SHARE_VARIABLES[0], "0.75")
    )
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"{name}: expected a number above 0 and at most 1, such as 0.9, found {text!r}")
    return share
