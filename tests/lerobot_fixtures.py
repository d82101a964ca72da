"""Writes small LeRobotDatasets of every supported layout, whose frames can be told apart by their brightness."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

METAWORLD = Path(__file__).parent / "assets" / "metaworld_mini"
FPS = 10
HEIGHT, WIDTH = 64, 96
CAMERA = "observation.images.front"
LENGTHS = (7, 5, 6)
TASKS = ("push", "pull", "push")
# Reordered frames and key frames at odd places: what makes seeking hard.
CODECS = {
    "libx264": {"g": "5", "bf": "2"},
    "libx265": {"x265-params": "log-level=none:keyint=6:bframes=3:open-gop=1:pools=1"},
    "mpeg4": {"g": "4", "bf": "2"},
}


def brightness(frame: int) -> int:
    """The grey level of a global frame."""
    return 15 + 12 * frame


def picture(frame: int) -> np.ndarray:
    """The image `[H, W, 3]` of a global frame: a grey level with a ramp of colour."""
    image = np.full((HEIGHT, WIDTH, 3), brightness(frame), np.int32)
    image[:, :, 0] += np.arange(WIDTH)[None, :] % 4
    return np.clip(image, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterable[int], codec: str = "libx264") -> None:
    """Encodes the pictures of these frames, one per tick of `FPS`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=CODECS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(frame), format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())


def actions(frames: Sequence[int]) -> np.ndarray:
    """Actions `[n, 3]` that name their frame."""
    return np.stack([np.asarray(frames) + offset for offset in (0.0, 0.25, 0.5)], axis=-1).astype(np.float32)


def _encoded(frame: int, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(frame)).save(buffer, format=image_format)
    return buffer.getvalue()


def _table(episodes: Sequence[int], image_format: str | None) -> pa.Table:
    starts = np.cumsum(LENGTHS) - LENGTHS
    frames = [int(starts[e]) + i for e in episodes for i in range(LENGTHS[e])]
    local = [i for e in episodes for i in range(LENGTHS[e])]
    task_names = list(dict.fromkeys(TASKS))
    columns = {
        "observation.state": pa.array([[f, -f] for f in frames], pa.list_(pa.float32(), 2)),
        "action": pa.array(actions(frames).tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array([i / FPS for i in local], pa.float32()),
        "frame_index": pa.array(local, pa.int64()),
        "episode_index": pa.array([e for e in episodes for _ in range(LENGTHS[e])], pa.int64()),
        "index": pa.array(frames, pa.int64()),
        "task_index": pa.array([task_names.index(TASKS[e]) for e in episodes for _ in range(LENGTHS[e])], pa.int64()),
    }
    if image_format:
        columns[CAMERA] = pa.array([{"bytes": _encoded(f, image_format), "path": f"frame-{f}.png"} for f in frames])
    return pa.table(columns)


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


def _info(version: str, image: bool) -> dict:
    scalars = dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64") | {"timestamp": "float32"}
    legacy = version != "v3.0"
    return {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        if legacy
        else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if legacy
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            CAMERA: {
                "dtype": "image" if image else "video",
                "shape": [HEIGHT, WIDTH, 3],
                "names": ["height", "width", "channels"],
            },
            "observation.state": {"dtype": "float32", "shape": [2], "names": None},
            "action": {"dtype": "float32", "shape": [3], "names": None},
        }
        | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in scalars.items()},
    }


def episode_stats(episode: int) -> dict:
    """Statistics of one episode's actions, as a v2.1 dataset stores them."""
    first = sum(LENGTHS[:episode])
    values = actions(range(first, first + LENGTHS[episode])).astype(np.float64)
    stats = {name: getattr(values, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return {"action": stats | {"count": [LENGTHS[episode]]}}


def write_v21(root: Path, *, codec: str = "libx264", image_format: str | None = None) -> Path:
    """A v2.1 dataset: files by episode, two episodes in a chunk, images in mp4 or (`PNG`, `JPEG`) in parquet."""
    task_names = list(dict.fromkeys(TASKS))
    meta = {
        "info.json": [_info("v2.1", image_format is not None)],
        "tasks.jsonl": [{"task_index": i, "task": task} for i, task in enumerate(task_names)],
        "episodes.jsonl": [{"episode_index": i, "tasks": [TASKS[i]], "length": n} for i, n in enumerate(LENGTHS)],
        "episodes_stats.jsonl": [{"episode_index": i, "stats": episode_stats(i)} for i in range(len(LENGTHS))],
    }
    (root / "meta").mkdir(parents=True)
    for name, lines in meta.items():
        (root / "meta" / name).write_text("\n".join(map(json.dumps, lines)))
    for episode, length in enumerate(LENGTHS):
        first, chunk = sum(LENGTHS[:episode]), f"chunk-{episode // 2:03d}"
        _write_table(root / "data" / chunk / f"episode_{episode:06d}.parquet", _table([episode], image_format))
        if image_format is None:
            write_video(
                root / "videos" / chunk / CAMERA / f"episode_{episode:06d}.mp4", range(first, first + length), codec
            )
    return root


def write_v30(root: Path, *, codec: str = "libx264", image_format: str | None = None) -> Path:
    """A v3.0 dataset: episodes 0 and 1 share file 0, episode 2 is alone in file 1."""
    files = {0: [0, 1], 1: [2]}
    rows = []
    for file, members in files.items():
        _write_table(root / f"data/chunk-000/file-{file:03d}.parquet", _table(members, image_format))
        frames = [sum(LENGTHS[:e]) + i for e in members for i in range(LENGTHS[e])]
        if image_format is None:
            write_video(root / f"videos/{CAMERA}/chunk-000/file-{file:03d}.mp4", frames, codec)
        for e in members:
            first = sum(LENGTHS[:e])
            row = {"episode_index": e, "tasks": [TASKS[e]], "length": LENGTHS[e], "dataset_from_index": first}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            if image_format is None:
                row |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": file}
                row[f"videos/{CAMERA}/from_timestamp"] = (first - frames[0]) / FPS
            rows.append(row)
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    names = list(dict.fromkeys(TASKS))
    _write_table(root / "meta/tasks.parquet", pa.table({"task_index": list(range(len(names))), "task": names}))
    (root / "meta/info.json").write_text(json.dumps(_info("v3.0", image_format is not None)))
    (root / "meta/stats.json").write_text(json.dumps(episode_stats(0)))
    return root
