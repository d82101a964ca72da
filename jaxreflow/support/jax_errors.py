"""JAX's best-known errors as one sentence: a platform that is not there, and memory that is not enough.

JAX is not imported here: some commands do without it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from jaxreflow.errors import DeviceError

_ASKED = re.compile(r"allocat\w* (\d[\d.]*) ?(bytes|[KMGT]i?B?)?")
_UNITS = {"": 1, "b": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@contextlib.contextmanager
def explained(out_of_memory: str) -> Iterator[None]:
    """Turns these errors into a DeviceError; `out_of_memory` says what to lower in the command at hand.

    Raises:
        DeviceError: the platform in JAX_PLATFORMS is not there, or memory is not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError, AssertionError) as error:
        text, jax = str(error), sys.modules.get("jax")
        of_device = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
        if isinstance(error, MemoryError) or (of_device and is_out_of_memory(error)):
            raise DeviceError(f"out of memory{_asked(text)}; {out_of_memory}") from error
        absent = None if jax is None or of_device else _absent_platform(jax)
        if absent:
            raise DeviceError(absent) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX's runtime or compiler says that memory is not enough."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def _asked(text: str) -> str:
    found = _ASKED.search(text)
    if found is None:
        return ""
    unit = found.group(2) or ""
    size = float(found.group(1)) * _UNITS["b" if unit == "bytes" else unit[:1]]
    return f": {size / 2**30:.2f} GiB were asked for"


def _absent_platform(jax: Any) -> str | None:
    """What is wrong if JAX finds no device on the platforms that it was told to use; None where it does."""
    wanted = jax.config.values.get("jax_platforms")
    if not wanted:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        jax.config.update("jax_platforms", "")
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        where = "JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS") else "jax_platforms"
        return (
            f"{where}={wanted}: expected a platform that JAX has here, found {found}; leave it out, or install JAX for it: "
            "`pip install jaxreflow[cuda]` for NVIDIA GPUs, `pip install jaxreflow[tpu]` for TPUs"
        )
    return None
