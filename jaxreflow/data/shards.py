"""Records by frame number in files of a fixed number of frames each: ArrayRecord, the format that Grain reads at random."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jaxreflow.errors import DatasetError

_MOST_SHARDS = 1_000_000


def shard_files(root: Path, frames: int, shard_frames: int) -> list[tuple[Path, range]]:
    """The file of every shard and its frames."""
    starts = range(0, frames, shard_frames)
    return [
        (root / f"shard-{i:05d}.arrayrecord", range(start, min(start + shard_frames, frames)))
        for i, start in enumerate(starts)
    ]


def check_counts(frames: Any, shard_frames: Any) -> None:
    """ValueError unless a manifest's numbers of frames, in all and in a shard, are such that the shards can be listed."""
    for name, count in (("frames", frames), ("shard_frames", shard_frames)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: expected a whole number from 1, found {count!r}")
    if frames > shard_frames * _MOST_SHARDS:
        raise ValueError(f"expected at most {_MOST_SHARDS} shards, found {frames} frames in shards of {shard_frames}")


def open_shards(shards: Sequence[tuple[Path, range]]) -> ArrayRecordDataSource:
    """All records of these shards by number; picklable, opens files when asked."""
    return ArrayRecordDataSource([f"{path}[0:{len(held)}]" for path, held in shards])


def write_shard(path: Path, records: Iterable[bytes], count: int) -> None:
    """Writes one shard of `count` records, complete or not at all; DatasetError if it cannot be written."""

    def write(temporary: Path) -> None:
        # Single uncompressed records are what random access reads fastest; bfloat16 hardly compresses.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()
        # The writer is silent about a full disk; a file without its end has no records.
        try:
            reader = ArrayRecordReader(str(temporary))
            written = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise OSError(f"incomplete: {error}") from error
        if written != count:
            raise OSError(f"expected {count} records, found {written}")

    publish(path, write)


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file, complete or not at all; DatasetError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written ({error}); free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
