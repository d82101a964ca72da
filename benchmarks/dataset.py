"""A small dataset of noise that fits a policy. It is for measurements that do not depend on the data's content."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.names import ACTION, STATE

FPS = 10
TASK = "Measure how long this takes"
INDEX_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def write_dataset(root: Path, policy: PolicyConfig, frames: int) -> Path:
    """Writes one episode with the policy's cameras, state and action as a LeRobotDataset v2.1. `root` must be new."""
    random = np.random.default_rng(0)
    rows = np.arange(frames)
    columns: dict[str, pa.Array] = {
        name: pa.array(np.zeros(frames, dtype))
        for name, dtype in INDEX_COLUMNS.items()
        if name.startswith(("ep", "ta"))
    }
    columns |= {
        "timestamp": pa.array((rows / FPS).astype(np.float32)),
        "frame_index": pa.array(rows),
        "index": pa.array(rows),
    }
    features = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in INDEX_COLUMNS.items()}
    for name, dim in ((STATE, policy.state_dim), (ACTION, policy.action_dim)):
        columns[name] = pa.array(list(random.normal(size=(frames, dim)).astype(np.float32)))
        features[name] = {"dtype": "float32", "shape": [dim], "names": None}
    for camera in policy.camera_keys:
        height, width = policy.declared_size(camera)
        images = random.integers(0, 256, (frames, height, width, 3), np.uint8)
        columns[camera] = pa.array([{"bytes": _png(image), "path": ""} for image in images])
        features[camera] = {"dtype": "image", "shape": [height, width, 3], "names": None}
    (root / "meta").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "frames.parquet", row_group_size=8)
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": "frames.parquet",
        "features": features,
    }
    episode = {"episode_index": 0, "tasks": [TASK], "length": frames}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASK}))
    (root / "meta/episodes.jsonl").write_text(json.dumps(episode))
    return root


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
