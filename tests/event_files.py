"""What a run's trackers wrote, read back: TensorBoard's event files and W&B's offline runs."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog

Point = tuple[int, float]


def read_events(file: Path) -> Iterator[Event]:
    """The events of one file: length, its checksum, the event, its checksum, over and over."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        at += length + 16
        yield event


def shown(folder: Path) -> list[Event]:
    """What TensorBoard shows of a folder: a start in a later file hides what others hold from its step on."""
    events: list[Event] = []
    for file in sorted(folder.iterdir()):
        for event in read_events(file):
            if event.session_log.status == SessionLog.START:
                events = [earlier for earlier in events if earlier.step < event.step]
            elif event.summary.value:
                events.append(event)
    return events


def shown_scalars(folder: Path) -> dict[str, list[Point]]:
    """Every scalar's points by name."""
    points: dict[str, list[Point]] = {}
    for event in shown(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def read_wandb(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format, in blocks of 32 KiB behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield Record.FromString(whole)
            whole = b""


def wait_for_wandb(file: Path, seconds: float = 20) -> None:
    """Returns when the file is complete: W&B's own process writes it, and ends it after the run has."""
    end = time.monotonic() + seconds
    while not any(record.WhichOneof("record_type") == "exit" for record in read_wandb(file)):
        assert time.monotonic() < end, f"{file} has no end"
        time.sleep(0.05)


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """The rows that were logged; images as the record of their file."""
    rows = []
    for record in read_wandb(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows


def wandb_config(file: Path) -> dict[str, Any]:
    """The settings that were logged."""
    config: dict[str, Any] = {}
    for record in read_wandb(file):
        for update in (record.config.update, record.run.config.update):
            config |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in update}
    return config
