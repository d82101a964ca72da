"""The texts of tasks by number, as `tasks.parquet` or `tasks.jsonl` holds them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from jaxreflow.data.meta_files import parse_file, read_parquet, text_value, whole_number
from jaxreflow.errors import DatasetError

_log = logging.getLogger(__name__)

# Names that the versions of LeRobot gave the index that holds the text, most recent first.
_TEXT_COLUMNS = ("task", "__index_level_0__")


def read_task_table(root: Path) -> dict[int, str]:
    """The tasks of `meta/tasks.parquet`; DatasetError if it is missing, damaged or has no text.

    As in LeRobot, a task's number is its row, and a column `task_index` in another order is only warned of. Numbers that
    cannot be rows are believed, because LeRobot cannot read a dataset that uses them.
    """
    file = root / "meta" / "tasks.parquet"
    return parse_file(file, _tasks, file, read_parquet(file))


def task_names(indices: Sequence[Any], names: Sequence[Any]) -> dict[int, str]:
    """Names by number, both checked; TypeError or ValueError for what is none."""
    return {
        whole_number(index, "task_index"): text_value(name, "task") for index, name in zip(indices, names, strict=True)
    }


def _tasks(file: Path, table: pa.Table) -> dict[int, str]:
    names, rows = table[_text_column(file, table)].to_pylist(), list(range(len(table)))
    stored = table["task_index"].to_pylist() if "task_index" in table.column_names else rows
    numbers = [whole_number(number, "task_index") for number in stored]
    if numbers != rows and sorted(numbers) == rows:
        _log.warning("%s: task_index does not count the rows; a task goes by its row all the same, as in LeRobot", file)
        numbers = rows
    return task_names(rows, names) | task_names(numbers, names)


def _text_column(file: Path, table: pa.Table) -> str:
    """The column that pandas wrote as the index, or else the one that is called like it, or else the only text."""
    text = [field.name for field in table.schema if _is_text(field.type)]
    about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    index = [name for name in about.get("index_columns", ()) if isinstance(name, str)]
    for name in (*index, *_TEXT_COLUMNS):
        if name in text:
            return name
    if len(text) != 1:
        raise DatasetError(
            f"{file}: expected a column of text, named task or the index of pandas, found {table.column_names}; "
            "download meta/ again"
        )
    return text[0]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
