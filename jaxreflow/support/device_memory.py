"""How much memory a device has."""

from __future__ import annotations

import os

import jax


def device_memory() -> int:
    """Bytes of the first device that JAX has taken, or all of this machine's where the device is its CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
