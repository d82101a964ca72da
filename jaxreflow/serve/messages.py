"""Messages of a policy server: msgpack with numpy arrays, as openpi's `openpi_client.msgpack_numpy` has them.

An array is a map with the byte-string keys `__ndarray__` (true), `data` (its bytes in C order), `dtype` (as `numpy.dtype.str`)
and `shape`; a numpy scalar is one with `__npgeneric__` (true), `data` (a number) and `dtype`. Messages may come from strangers:
nothing is unpickled, and what a message makes the reader build is bounded by its own size.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from typing import Any

import numpy as np

from jaxreflow.errors import ServeError

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
# Booleans, integers and floats of machines today: no objects, no records, nothing that numpy would have to parse.
_DTYPE = re.compile(r"[<|](b1|[iu][1248]|f[248])")
_MOST_ITEMS = _MOST_CONTAINERS = 4096
_MOST_AXES = 8


def check_installed() -> None:
    """ServeError if the packages of server and client are missing."""
    missing = [name for name in ("msgpack", "websockets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ServeError(
            f"expected the packages msgpack and websockets, found no {' and no '.join(missing)}; install them with "
            'pip install "jaxreflow[serve]"'
        )


def pack(message: Any) -> bytes:
    """A message of maps, lists, strings, numbers, booleans, None, and arrays of numbers, as bytes.

    Raises:
        ServeError: there is something else in it.
    """
    import msgpack

    try:
        return bytes(msgpack.packb(message, default=_pack_numpy))
    except (TypeError, ValueError, OverflowError) as error:
        raise ServeError(
            f"a message cannot be written: {error}; send strings, numbers and arrays of numbers"
        ) from error


def _pack_numpy(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"expected numbers, strings or arrays, found {type(value).__name__}")
    dtype = value.dtype.newbyteorder("<")
    if not _DTYPE.fullmatch(dtype.str):
        raise TypeError(f"expected an array of booleans, integers or floats, found {value.dtype}")
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), DTYPE: dtype.str}
    return {ARRAY: True, DATA: value.astype(dtype, copy=False).tobytes(), DTYPE: dtype.str, SHAPE: value.shape}


def unpack(message: bytes) -> Any:
    """What `pack`, or openpi's client, wrote. Arrays are read-only views of the message's bytes.

    Raises:
        ServeError: it is no msgpack, an array is not what it says, or there are more lists and maps than any observation has.
    """
    import msgpack

    containers = itertools.count(1)

    def count() -> None:
        if next(containers) > _MOST_CONTAINERS:
            raise ServeError(
                f"a message has more than {_MOST_CONTAINERS} lists and maps; send pictures and states as numpy arrays"
            )

    def read_map(entries: dict[Any, Any]) -> Any:
        count()
        return _array(entries) if ARRAY in entries else _scalar(entries) if SCALAR in entries else entries

    def read_list(items: list[Any]) -> list[Any]:
        count()
        return items

    try:
        return msgpack.unpackb(
            message,
            object_hook=read_map,
            list_hook=read_list,
            ext_hook=_no_extension,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
        )
    # Also of what numpy says to a number that does not fit its type.
    except (ValueError, TypeError, OverflowError) as error:
        raise ServeError(
            f"a message of {len(message)} bytes cannot be read as msgpack: {str(error) or type(error).__name__}; send one map"
        ) from error


def _array(entries: dict[Any, Any]) -> np.ndarray:
    data, dtype, shape = entries.get(DATA), _dtype(entries), entries.get(SHAPE)
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ServeError(f"an array's `shape`: expected a list of at most {_MOST_AXES} sizes, found {_short(shape)}")
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else _short(data)
        raise ServeError(f"an array's `data`: expected {size} bytes for {dtype} of shape {shape}, found {found}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(entries: dict[Any, Any]) -> np.generic:
    data, dtype = entries.get(DATA), _dtype(entries)
    if not isinstance(data, bool | int | float):
        raise ServeError(f"a scalar's `data`: expected a number, found {_short(data)}")
    with np.errstate(all="ignore"):
        value: np.generic = dtype.type(data)
    return value


def _dtype(entries: dict[Any, Any]) -> np.dtype:
    name = entries.get(DTYPE)
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ServeError(
            f"an array's `dtype`: expected little-endian booleans, integers or floats, such as '<f4' or '|u1', found {_short(name)}"
        )
    return np.dtype(name)


def _no_extension(code: int, data: bytes) -> Any:
    raise ServeError(
        f"expected plain msgpack, found the extension type {code} with {len(data)} bytes; send arrays as maps"
    )


def _short(value: Any) -> str:
    """What a stranger sent, for an error message: no more of it than fits there."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    numbers = isinstance(value, list) and len(value) <= 2 * _MOST_AXES and all(isinstance(n, int) for n in value)
    return repr(value) if numbers or isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"
