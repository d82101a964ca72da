"""How much smaller JPEG makes frames, and how many frames a core decodes. `benchmarks pod` uses both figures."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.result import result, spread
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.packed_frames import decode, encode
from jaxreflow.sim.environment import EnvOptions, make_env

Frames = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class JpegConfig:
    """Bytes of raw frames over bytes of JPEG frames from `jaxreflow.data.pack`, and frames per second of processor time."""

    dataset: Path | None = None
    """A LeRobotDataset's directory, whose first camera is taken (default: frames of Meta-World's wall-detour)."""
    image_size: int = 512
    """Height and width of the simulator's frames."""
    frames: int = 100
    """Number of frames, spread evenly over a dataset."""
    quality: int = 95
    """JPEG's quality."""
    runs: int = 5
    """Measurements."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: JpegConfig) -> None:
    """Prints ratio and rate, and appends one JSON line."""
    with result("jpeg", config) as record:
        frames = recorded_frames(config) if config.dataset else simulated_frames(config)
        encoded = [encode(frame, "jpeg", config.quality) for frame in frames]
        rates = [len(frames) / decoding_seconds(encoded) for _ in range(config.runs)]
        ratio = sum(frame.nbytes for frame in frames) / sum(map(len, encoded))
        record |= {"shape": frames[0].shape, "ratio": ratio, "frames_per_core_second": spread(rates)}
        print(
            f"{frames[0].shape}: {ratio:.2f} times smaller, {record['frames_per_core_second']['median']:.0f} frames/s of a core"
        )


def recorded_frames(config: JpegConfig) -> Frames:
    """Frames of a dataset's first camera."""
    assert config.dataset is not None
    dataset = LeRobotDataset.open(config.dataset)
    indices = dataset.frame_indices()
    chosen = indices[np.linspace(0, len(indices) - 1, config.frames).round().astype(int)]
    return [dataset.image(frame, dataset.camera_keys[0]) for frame in chosen.tolist()]


def simulated_frames(config: JpegConfig) -> Frames:
    """Frames of an arm that moves at random."""
    random = np.random.default_rng(0)
    with contextlib.closing(make_env("metaworld", "wall-detour", EnvOptions(size=config.image_size))) as env:
        env.reset(seed=0)
        return [env.step(random.uniform(-1, 1, 4))[0]["pixels"] for _ in range(config.frames)]


def decoding_seconds(encoded: list[bytes]) -> float:
    """Processor time, which a busy machine lengthens less than wall time."""
    start = time.process_time()
    for data in encoded:
        decode(data)
    return time.process_time() - start
