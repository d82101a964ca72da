"""Hypothesis strategies that damage a file's bytes or forge its content, each with a recipe in words to make it again."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import reject
from hypothesis import strategies as st

NUMBERS = (-1, 0, 1, 2, 3, 7, 64, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"))
SIZES = (2, 128, 1000, 65_536, 65_537, 10**6, 1 << 20, 10**9, 2**31 - 1, 10**12, 2**53)
STRINGS = (
    "",
    "x",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "{x}",
    "\x00",
    "\ud800",
    "owner/name",
    "a" * 10_000,
)
TEMPLATES = (
    "{video_key.__class__}",
    "{chunk_index.__class__.__init__.__globals__}",
    "{chunk_index:>999999999}",
    "{file_index!r:>999999999}",
    "{video_key[0]}",
    "data/../../{file_index}.parquet",
)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U16", "BOOL", "C64", "video", "image", "float32", "int64")
SHAPES = ([0], [1], [3, 2], [2**62, 0], [2**31, 2**31], [-1], [1] * 40, [0, 2**63])
CONTAINERS = ([], {}, [[]], [None], ["x"], {"": None}, {"x": {"y": []}})
HOSTILE = (None, True, False, *NUMBERS, *STRINGS, *TEMPLATES, *DTYPES, *SHAPES, *CONTAINERS)
LENGTHS = (0, 1, 2, 7, 8, 100, 10**7, 10**8, 10**8 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1)
# Stand-ins in the document for what json.dumps cannot write.
DEEP, TWICE = "@deep@", "@twice@"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file's new content, and how it was made from the sound one."""

    data: bytes
    recipe: str


Mutate = Callable[[bytes], st.SearchStrategy[Mutant]]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


@st.composite
def damaged(draw: st.DrawFn, data: bytes, start: int = 0) -> Mutant:
    """Bytes from `start` on cut off, overwritten, repeated elsewhere, or inserted."""
    at = draw(st.integers(start, max(len(data) - 1, start)))
    match draw(st.sampled_from(["truncate", "overwrite", "overwrite", "integer", "fill", "splice", "insert"])):
        case "truncate":
            return Mutant(data[:at], f"cut off at {at}")
        case "overwrite":
            new = draw(st.binary(min_size=1, max_size=8))
            return Mutant(data[:at] + new + data[at + len(new) :], f"{new.hex()} at {at}")
        case "integer":
            length, order = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from(["<Q", ">Q"]))
            new = struct.pack(order, length)[-4 if order == ">Q" else 0 :][: draw(st.sampled_from([4, 8]))]
            return Mutant(data[:at] + new + data[at + len(new) :], f"integer {new.hex()} at {at}")
        case "fill":
            size, byte = draw(st.integers(1, 300)), draw(st.sampled_from([0x00, 0x7F, 0xFF]))
            return Mutant(data[:at] + bytes([byte]) * size + data[at + size :], f"{size} x {byte:02x} at {at}")
        case "splice":
            source, size = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(1, 300))
            return Mutant(data[:at] + data[source : source + size] + data[at:], f"{source}:+{size} again at {at}")
    new = draw(st.binary(min_size=1, max_size=16))
    return Mutant(data[:at] + new + data[at:], f"{new.hex()} inserted at {at}")


def _places(node: Any, where: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every entry below `node`: its container, its key there, and its path."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key, f"{where}/{key}"
        yield from _places(node[key], f"{where}/{key}")


@st.composite
def forged_document(draw: st.DrawFn, document: Any) -> tuple[str, str]:
    """JSON text with entries dropped, replaced, exchanged, doubled, added or nested deeply; and the recipe."""
    document, recipe, nesting = copy.deepcopy(document), [], 0
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(document))
        if not places:
            break
        holder, key, path = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["drop", "replace", "replace", "replace", "grow", "swap", "double", "add", "deep"]))
        if how == "drop":
            del holder[key]
        elif how == "replace":
            value = draw(st.sampled_from(HOSTILE))
            holder[key], how = copy.deepcopy(value), _brief(value)
        elif how == "grow":
            holder, key, path = draw(
                st.sampled_from([p for p in places if isinstance(p[0][p[1]], int | float)] or places)
            )
            holder[key] = draw(st.sampled_from(SIZES))
            how = str(holder[key])
        elif how == "swap":
            other, other_key, other_path = draw(st.sampled_from(places))
            holder[key], how = copy.deepcopy(other[other_key]), f"as {other_path}"
        elif how in ("double", "add") and isinstance(holder, dict):
            name = f"{TWICE}{key}" if how == "double" else draw(st.sampled_from(STRINGS))
            holder[name] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
            how = f"{how} {_brief(name)} {_brief(holder[name])}"
        else:
            nesting = draw(st.sampled_from([10, 300, 5_000, 200_000]))
            holder[key], how = DEEP, f"{nesting} deep"
        recipe.append(f"{path}: {how}")
    text = json.dumps(document).replace(f'"{TWICE}', '"').replace(f'"{DEEP}"', "[" * nesting + "]" * nesting)
    return text, "; ".join(recipe)


@st.composite
def json_text(draw: st.DrawFn, data: bytes) -> Mutant:
    """A JSON file, forged or damaged."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(data))
    text, recipe = draw(forged_document(json.loads(data)))
    return Mutant(text.encode(), recipe)


@st.composite
def json_lines(draw: st.DrawFn, data: bytes) -> Mutant:
    """A file of JSON lines, one of which is forged, or damaged."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(data))
    lines = data.decode().splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    lines[number], recipe = draw(forged_document(json.loads(lines[number])))
    return Mutant("\n".join(lines).encode(), f"line {number}: {recipe}")


@st.composite
def safetensors_file(draw: st.DrawFn, data: bytes) -> Mutant:
    """A safetensors file with another header length, a forged header, or damaged anywhere, mostly in its header."""
    (length,) = struct.unpack("<Q", data[:8])
    header, payload = data[8 : 8 + length], data[8 + length :]
    match draw(st.sampled_from(["length", "header", "header", "header", "payload", "anywhere"])):
        case "length":
            new = draw(st.sampled_from((*LENGTHS, length - 1, length + 1, len(data), len(data) - 8)))
            return Mutant(struct.pack("<Q", new) + data[8:], f"header length {new}")
        case "header":
            text, recipe = draw(forged_document(json.loads(header)))
            return Mutant(struct.pack("<Q", len(text.encode())) + text.encode() + payload, f"header {recipe}")
        case "payload":
            return draw(damaged(data, start=8 + length))
    return draw(damaged(data))


COLUMN_TYPES = (pa.string(), pa.int8(), pa.float16(), pa.bool_(), pa.binary(), pa.null(), pa.list_(pa.int64()))


def _column_of(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_null(kind) or pa.types.is_nested(kind):
        return pa.nulls(rows, kind)
    return pa.array([1] * rows, pa.int64()).cast(pa.string()).cast(kind) if rows else pa.array([], kind)


@st.composite
def parquet_file(draw: st.DrawFn, data: bytes) -> Mutant:
    """A parquet file with a column dropped, of another type or other values, other rows, or damaged, also in its footer."""
    how = draw(st.sampled_from(["bytes", "footer", "drop", "type", "values", "rows", "cells"]))
    if how in ("bytes", "footer"):
        (footer,) = struct.unpack("<I", data[-8:-4])
        return draw(damaged(data, start=len(data) - 8 - footer if how == "footer" else 0))
    table = pq.read_table(io.BytesIO(data))
    name = draw(st.sampled_from(table.column_names))
    index = table.column_names.index(name)
    recipe = f"{name}: {how}"
    if how == "drop":
        table = table.drop([name])
    elif how == "type":
        kind = draw(st.sampled_from(COLUMN_TYPES))
        table, recipe = table.set_column(index, name, _column_of(kind, len(table))), f"{name}: {kind}"
    elif how == "values":
        value = draw(st.sampled_from(HOSTILE))
        try:
            table = table.set_column(index, name, pa.array([value] * len(table)))
        except (pa.ArrowException, UnicodeError, OverflowError):  # arrow has no such value
            table = table.set_column(index, name, pa.array([str(value).encode("utf-8", "replace")] * len(table)))
        recipe = f"{name}: {_brief(value)}"
    elif how == "rows":
        rows = draw(st.lists(st.integers(0, len(table) - 1), max_size=2 * len(table)))
        table, recipe = table.take(pa.array(rows, pa.int64())), f"rows {_brief(rows)}"
    else:
        row, cells = draw(st.integers(0, len(table) - 1)), table[name].to_pylist()
        cells[row] = draw(st.sampled_from([None, cells[0], cells[-1]]))
        table, recipe = table.set_column(index, name, pa.array(cells, table[name].type)), f"{name}[{row}]: {cells[row]}"
    out = io.BytesIO()
    try:
        pq.write_table(table, out, row_group_size=4)
    except pa.ArrowException:  # a struct without fields
        reject()
    return Mutant(out.getvalue(), recipe)


BOXES = tuple(b"ftyp moov mvhd tkhd mdhd hdlr stsd avc1 avcC stts ctts stsc stsz stco stss elst mdat".split())


@st.composite
def mp4_file(draw: st.DrawFn, data: bytes) -> Mutant:
    """A video with an integer in or before one of its boxes changed, a box renamed, or damaged anywhere."""
    boxes = [(box, data.index(box)) for box in BOXES if box in data]
    how = draw(st.sampled_from(["box", "box", "rename", "anywhere"]))
    if how == "anywhere":
        return draw(damaged(data))
    box, start = draw(st.sampled_from(boxes))
    if how == "rename":
        new = draw(st.sampled_from(BOXES))
        return Mutant(data[:start] + new + data[start + 4 :], f"{box.decode()} is {new.decode()}")
    at = start + draw(st.integers(-1, 24)) * 4
    new = struct.pack(">Q", draw(st.sampled_from(LENGTHS)))[-4:]
    return Mutant(data[:at] + new + data[at + 4 :], f"{new.hex()} {at - start} bytes after {box.decode()}")
