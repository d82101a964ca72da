"""Files of a LeRobotDataset's `meta/`: read so that damage becomes an error that names the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from jaxreflow.errors import DatasetError
from jaxreflow.support.lfs import is_lfs_pointer, lfs_advice
from jaxreflow.support.strict_json import parse_json

_Parsed = TypeVar("_Parsed")

# More frames than any dataset has; sums of so many still fit int64.
_COUNT_LIMIT = 1 << 40
# More episodes than any dataset has.
MOST_ROWS = 1 << 20
_DIGITS = re.compile(r"[0-9]{1,15}")


def read_parquet(
    file: Path, columns: list[str] | None = None, *, optional: Sequence[str] = (), most_rows: int = MOST_ROWS
) -> pa.Table:
    """The named columns of a parquet file (all without names); DatasetError if it is missing, damaged or lacks one.

    The optional ones come along where the file has them.

    More than `most_rows` rows are refused before they are read: compressed, a few bytes can be any number of them.
    """

    def read() -> pa.Table:
        with pq.ParquetFile(file) as parquet:
            # Not the columns' own counts: where a footer is damaged, to ask for one ends the process.
            rows = parquet.metadata.num_rows
            if rows > most_rows:
                raise ValueError(f"expected at most {most_rows} rows by meta/episodes*, found {rows}")
            table = parquet.read(columns=None if columns is None else [*columns, *optional])
        absent = [name for name in columns or () if name not in table.column_names]
        if absent:
            raise DatasetError(
                f"{file} lacks the column {absent[0]!r} of meta/info.json; it has {', '.join(table.column_names)}"
            )
        return table

    return parse_file(file, read)


def count_rows(file: Path, most_rows: int) -> int | None:
    """The rows of a parquet file; None where it is not there, damaged or too large, which matters only if it is read."""
    try:
        rows = int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return rows if rows <= most_rows else None


def parse_file(file: Path, read: Callable[..., _Parsed], *args: Any, **kwargs: Any) -> _Parsed:
    """Calls `read`, turning whatever damaged content makes it raise into a DatasetError that names `file`."""
    try:
        return read(*args, **kwargs)
    except FileNotFoundError as error:
        raise DatasetError(f"{file} is missing; copy or download the dataset again") from error
    except (KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError, pa.ArrowException) as error:
        if is_lfs_pointer(file):
            raise DatasetError(lfs_advice(file)) from error
        raise DatasetError(f"{file} is damaged or lacks a field ({type(error).__name__}: {error})") from error


def read_json(file: Path) -> Any:
    """A JSON document; for `parse_file`, which names the file."""
    return parse_json(file.read_text(encoding="utf-8-sig"))


def whole_number(value: Any, name: str) -> int:
    """A count or an index, stored as a number or its digits; TypeError otherwise."""
    if (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and _DIGITS.fullmatch(value)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _COUNT_LIMIT:
        raise TypeError(f"{name}: expected a whole number from 0, found {value!r}")
    return value


def text_value(value: Any, name: str) -> str:
    """Text that can be written again, as it is stored; TypeError or ValueError otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, found {value!r}")
    value.encode()  # UnicodeEncodeError, a ValueError, for half a character, which JSON can hold
    return value
