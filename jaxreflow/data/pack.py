"""Decodes a dataset's frames once, for hosts that cannot decode video as fast as their devices learn.

    python -m jaxreflow.data.pack DATASET OUT
    python -m jaxreflow.data.pack DATASET OUT --encoding jpeg --policy DIR --num-workers 8
    python train.py reflow --teacher.path DIR --dataset.root OUT --output-dir RUN

OUT is a dataset of its own: metadata and columns as in DATASET, and `frames/` in the place of videos and embedded images. LeRobot
does not read it. Raw frames are the decoded ones to the bit; with `--policy` frames larger than what the policy looks at are
scaled down to it, and rounded to 8 bits there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import tyro
from jaxtyping import UInt8

from jaxreflow.data.advice import PACK_OPTIONS
from jaxreflow.data.lerobot import TOLERANCE_S, LeRobotDataset
from jaxreflow.data.packed_frames import (
    FOLDER,
    Encoding,
    PackManifest,
    encode,
    pack_record,
)
from jaxreflow.data.shards import publish, write_shard
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.model.vision import fitted_size, interpolation_matrix
from jaxreflow.policy.saved import read_policy_config
from jaxreflow.support.command_line import parse, run
from jaxreflow.support.console import progress
from jaxreflow.support.storage import check_path

# 28 MB of one camera's raw frames at 96 x 96, 800 MB at 512 x 512: what is lost when a run is killed.
SHARD_FRAMES = 1024


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """Packs a LeRobotDataset."""

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """Directory of the LeRobotDataset."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Directory of the packed one; an unfinished one is continued."""
    encoding: Encoding = "raw"
    """raw (exact), or jpeg (rounded, and a fifth of the bytes at 96 x 96)."""
    quality: int = 95
    """Of JPEG, 1 to 100."""
    policy: str | None = None
    """A policy's directory: frames larger than it looks at are scaled down to that."""
    cameras: tuple[str, ...] | None = None
    """Cameras to pack (default: all but those of depth)."""
    tolerance_s: float = TOLERANCE_S
    """Seconds between a timestamp and the frame of its video, as for train.py."""
    num_workers: int = 1
    """Processes that decode."""

    def __post_init__(self) -> None:
        check_path("DATASET", self.dataset)
        check_path("OUT", self.out, schemes=())
        check_path("--policy", self.policy, schemes=())
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality must be from 1 to 100, found {self.quality}")
        if self.num_workers < 1:
            raise ConfigError(f"--num-workers must be at least 1, found {self.num_workers}")


def pack(config: PackConfig, *, shard_frames: int = SHARD_FRAMES) -> LeRobotDataset:
    """Packs the dataset, or goes on with it, and opens the result; DatasetError if it cannot be made there."""
    dataset = LeRobotDataset.open(config.dataset, tolerance_s=config.tolerance_s, options=PACK_OPTIONS)
    cameras = dataset.camera_keys if config.cameras is None else config.cameras
    dataset.check_cameras(cameras)
    frames = dataset.frame_indices()
    if not np.array_equal(frames, np.arange(len(frames))):
        raise DatasetError(f"{dataset.root}: expected frames 0 to {len(frames) - 1}, found gaps between episodes")
    limit = read_policy_config(Path(config.policy)).resize_imgs_with_padding if config.policy else None
    sizes = {key: _size(dataset.image(0, key), limit) for key in cameras}
    info = (dataset.root / "meta" / "info.json").read_bytes()
    source = {"dataset": dataset.root.name, "info_sha256": hashlib.sha256(info).hexdigest()}
    manifest = PackManifest(
        cameras=sizes,
        frames=len(frames),
        shard_frames=shard_frames,
        encoding=config.encoding,
        quality=config.quality,
        source=source,
    )
    out = Path(config.out)
    manifest.claim(out, out / FOLDER)
    missing = manifest.missing(out / FOLDER)
    done = len(frames) - sum(len(held) for _, held in missing)
    write = functools.partial(_write_frames, config.dataset, config.tolerance_s, manifest)
    with progress("packing frames", len(frames), unit="frame", done=done) as advance:
        for count in _in_processes(write, missing, config.num_workers):
            advance(count)
    _copy_tables(dataset, out)
    return LeRobotDataset.open(out)


def _size(image: UInt8[np.ndarray, "H W 3"], limit: tuple[int, int] | None) -> tuple[int, int]:
    height, width, _ = image.shape
    return (height, width) if limit is None else min((height, width), fitted_size(height, width, limit))


def _in_processes(
    write: Callable[[Path, range], int], shards: Sequence[tuple[Path, range]], workers: int
) -> Iterator[int]:
    """Numbers of frames of the shards as they are written."""
    if workers == 1:
        yield from (write(path, held) for path, held in shards)
        return
    # Spawned: a fork would copy the threads of JAX and of the decoders.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed([pool.submit(write, path, held) for path, held in shards]))


def _write_frames(root: str, tolerance_s: float, manifest: PackManifest, path: Path, held: range) -> int:
    """Writes one shard; each process opens the dataset for itself."""
    dataset = LeRobotDataset.open(root, tolerance_s=tolerance_s, options=PACK_OPTIONS)

    def record(frame: int) -> bytes:
        images = (_fit(dataset.image(frame, key), size) for key, size in manifest.cameras.items())
        return pack_record([encode(image, manifest.encoding, manifest.quality) for image in images])

    write_shard(path, (record(frame) for frame in held), len(held))
    return len(held)


def _fit(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Scaled as the policy does it, and rounded."""
    height, width, _ = image.shape
    if (height, width) == size:
        return image
    rows, columns = interpolation_matrix(height, size[0]), interpolation_matrix(width, size[1])
    scaled = np.einsum("hwc,vw,uh->uvc", image.astype(np.float32), columns, rows, optimize=True)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _copy_tables(dataset: LeRobotDataset, out: Path) -> None:
    """Copies metadata, and columns without embedded images; last, so that an unfinished pack is no dataset."""
    for file in dataset.data_files:
        table = pq.read_table(dataset.root / file)
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        kept = [name for name in table.column_names if name not in dataset.metadata.visual_keys]
        publish(out / file, functools.partial(pq.write_table, table.select(kept)))
    shutil.copytree(dataset.root / "meta", out / "meta", dirs_exist_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the packed dataset is complete, 1 after an error."""
    return run(_main, argv)


def _main(args: list[str]) -> int:
    packed = pack(parse(PackConfig, args, prog="python -m jaxreflow.data.pack", about=__doc__ or ""))
    size = sum(path.stat().st_size for path in (packed.root / FOLDER).iterdir())
    print(f"{packed.root}: {packed.num_frames} frames, {size:,} bytes, for {', '.join(packed.camera_keys)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
