"""Computes the image tokens of a whole dataset once, for runs that train neither the vision tower nor the connector.

    python -m jaxreflow.data.features DATASET --policy DIR_OR_HUB_ID --out CACHE
    python train.py reflow --teacher.path DIR_OR_HUB_ID --dataset.root DATASET --dataset.features CACHE --output-dir RUN

The cache belongs to all that its tokens depend on, and is refused elsewhere: the weights of tower and connector (their
bytes), the vision config, the size of images, position ids, image normalisation, cameras and `--rename-map`, and the dataset: the
content of its info.json, and the relative names and sizes, not the content, of its data, episode and video files. A
run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow.command_line import parse, run
from jaxreflow.config import ModelConfig
from jaxreflow.console import Advance, progress
from jaxreflow.data.feature_cache import (
    SHARD_FRAMES,
    FeatureCache,
    Manifest,
    claim_folder,
    differences,
    read_manifest,
)
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.shards import write_shard
from jaxreflow.data.transforms import match_cameras
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.model import embed_images
from jaxreflow.observation import Transforms
from jaxreflow.pretrained import Checkpoint, load_checkpoint
from jaxreflow.run_config import RenameMap
from jaxreflow.sharding import check_batch_size, make_mesh, replicate, shard_batch
from jaxreflow.storage import check_path, local_copy
from jaxreflow.types import Params
from jaxreflow.weights import Entry, stored_in_compute_dtype, table

VISION_PARAMS = ("vision_model", "connector")
Images = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Computes the image tokens of all frames of a dataset and keeps them on disk."""

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """Directory of the LeRobotDataset."""
    policy: str
    """The policy whose vision tower and connector compute the tokens: directory or hub name."""
    out: str
    """Directory of the cache; an unfinished one is continued."""
    revision: str | None = None
    """Of a policy from the hub: a commit, tag or branch (default: main)."""
    batch_size: int = 32
    """Frames at a time, over all devices."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; tokens are stored in bfloat16."""
    vlm: str | None = None
    """Directory of the VLM's config and tokenizer, as for train.py."""
    rename_map: RenameMap = dataclasses.field(default_factory=dict)
    """Dataset names to policy names, as for train.py."""
    stats_from: str | None = None
    """As for train.py; matters only where the policy normalises images."""
    vision_positions: Literal["exact", "shifted"] = "exact"
    """Position ids of the vision tower, as for train.py."""

    def __post_init__(self) -> None:
        check_path("DATASET", self.dataset)
        check_path("--policy", self.policy)
        check_path("--out", self.out, schemes=())


def compute_features(config: FeaturesConfig, *, shard_frames: int = SHARD_FRAMES) -> FeatureCache:
    """Fills the cache in `config.out` and opens it; DatasetError or ConfigError if it cannot be made there."""
    if jax.process_count() > 1:
        raise ConfigError(f"expected one process, found {jax.process_count()}: fill the cache on one host")
    mesh = make_mesh()
    check_batch_size(config.batch_size, 1, mesh)
    dataset = LeRobotDataset.open(config.dataset)
    frames = dataset.frame_indices()
    if not np.array_equal(frames, np.arange(len(frames))):
        raise DatasetError(f"{dataset.root}: expected frames 0 to {len(frames) - 1}, found gaps between episodes")
    checkpoint = load_checkpoint(
        config.policy,
        revision=config.revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
    )
    transforms = checkpoint.load_transforms()
    cameras = camera_map(checkpoint, dataset)
    params = replicate(stored_in_compute_dtype(_vision_params(checkpoint), checkpoint.config), mesh)

    def batch(chosen: Sequence[int]) -> Images:
        return _images(dataset, transforms, cameras, chosen, config.batch_size)

    # The first batch says how many tokens an image has; nothing is computed for it.
    embed = functools.partial(embed_images, config=checkpoint.config)
    shapes = {key: (x.shape[1], x.shape[2]) for key, x in jax.eval_shape(embed, params, batch([0])).items()}
    manifest = Manifest(
        feature_parts(checkpoint, dataset),
        {key: shapes[key] for key in cameras},
        len(frames),
        config.dtype,
        shard_frames,
    )
    out = Path(config.out)
    claim_folder(out, manifest)
    missing = manifest.missing(out)
    done = manifest.frames - sum(len(held) for _, held in missing)
    tokens = functools.partial(_flat_tokens(checkpoint.config), params)
    with progress("image tokens", manifest.frames, unit="frame", done=done) as advance:
        for path, held in missing:
            write_shard(path, _records(tokens, batch, held, config.batch_size, mesh, advance), len(held))
    return FeatureCache(out, manifest)


def _flat_tokens(config: ModelConfig) -> Callable[[Params, Images], Array]:
    """All cameras' tokens in the policy's order as one row a frame, `[B, n]` in bfloat16."""

    @jax.jit
    def run(params: Params, images: Mapping[str, Array]) -> Array:
        tokens = embed_images(params, images, config=config)
        rows = [tokens[key].reshape(tokens[key].shape[0], -1) for key in config.visual_keys if key in tokens]
        return jnp.concatenate(rows, axis=1).astype(jnp.bfloat16)

    return run


def _records(
    run: Callable[[Images], Array],
    batch: Callable[[Sequence[int]], Images],
    frames: range,
    batch_size: int,
    mesh: Mesh,
    advance: Advance,
) -> Iterator[bytes]:
    """The records of these frames; a batch is decoded while the devices compute the one before."""
    pending: list[tuple[Array, int]] = []

    def finish() -> Iterator[bytes]:
        tokens, count = pending.pop(0)
        yield from (row.tobytes() for row in np.asarray(tokens)[:count])
        advance(count)

    for start in range(0, len(frames), batch_size):
        chosen = frames[start : start + batch_size]
        pending.append((run(shard_batch(batch(chosen), mesh)), len(chosen)))
        if len(pending) > 1:
            yield from finish()
    yield from finish()


def _images(
    dataset: LeRobotDataset, transforms: Transforms, cameras: Mapping[str, str], frames: Sequence[int], size: int
) -> Images:
    """These frames' images `[size, H, W, 3]` by policy camera, filled up with the last one: one shape compiles once."""
    filled = [*frames, *[frames[-1]] * (size - len(frames))]
    images = {key: {frame: dataset.image(frame, name) for frame in frames} for key, name in cameras.items()}
    return {key: transforms.normalize_image(key, np.stack([held[f] for f in filled])) for key, held in images.items()}


def camera_map(checkpoint: Checkpoint, dataset: LeRobotDataset) -> dict[str, str]:
    """The dataset's camera of every policy camera that it has."""
    policy = checkpoint.policy
    rename_map = checkpoint.processors.rename_map
    return match_cameras(dataset.camera_keys, policy.camera_keys, rename_map, policy.empty_cameras)


def feature_parts(checkpoint: Checkpoint, dataset: LeRobotDataset) -> dict[str, Any]:
    """All that the image tokens depend on, as JSON; two equal ones mean the same tokens."""
    config, cameras, normalizer = checkpoint.config, camera_map(checkpoint, dataset), checkpoint.processors.normalizer
    modes: dict[str, Any] = {}
    for key in cameras:
        modes[key] = mode = normalizer.mode(key)
        if mode != "IDENTITY":
            stats = {name: np.asarray(x).tolist() for name, x in sorted(normalizer.stats.get(key, {}).items())}
            modes[key] = {"mode": mode, "eps": normalizer.eps, "stats": stats}
    parts = {
        "weights": _weights_hash(checkpoint),
        "vision_config": {**dataclasses.asdict(config.vision), "scale_factor": config.scale_factor},
        "resize_imgs_with_padding": config.resize_imgs_with_padding,
        "vision_positions": config.vision_positions,
        "image_normalization": modes,
        "cameras": cameras,
        "rename_map": dict(checkpoint.processors.rename_map),
        **_dataset_parts(dataset),
    }
    return json.loads(json.dumps(parts))


def _vision_entries(checkpoint: Checkpoint) -> list[Entry]:
    return [entry for entry in table(checkpoint.config) if entry.path[0] in VISION_PARAMS]


def _vision_params(checkpoint: Checkpoint) -> Params:
    read = checkpoint.tensors.read
    return unflatten_dict(
        {e.path: np.ascontiguousarray(e.from_torch(read(e.key)), np.float32) for e in _vision_entries(checkpoint)}
    )


def _weights_hash(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for key in sorted(entry.key for entry in _vision_entries(checkpoint)):
        tensor = checkpoint.tensors.read(key)
        digest.update(f"{key} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _dataset_parts(dataset: LeRobotDataset) -> dict[str, Any]:
    root, meta = dataset.root, dataset.root / "meta"
    names = {path.relative_to(root).as_posix() for path in (meta / "episodes").rglob("*.parquet")}
    names |= {f"meta/{path.name}" for path in meta.glob("episodes*.jsonl")}
    for episode in dataset.metadata.episodes:
        names |= {episode.data_file, *(file for file, _ in episode.videos.values())}
    sizes = {name: (root / name).stat().st_size if (root / name).is_file() else None for name in sorted(names)}
    return {
        "dataset_info": hashlib.sha256((meta / "info.json").read_bytes()).hexdigest(),
        "dataset_files": {
            "count": len(sizes),
            "bytes": sum(size or 0 for size in sizes.values()),
            "sha256": hashlib.sha256(json.dumps(sizes).encode()).hexdigest(),
        },
    }


def open_features(
    root: str | Path,
    checkpoint: Checkpoint,
    dataset: LeRobotDataset,
    *,
    rename_map: Mapping[str, str] | None = None,
    stats_from: str | None = None,
) -> FeatureCache:
    """The cache in `root` if its tokens are those of this policy and dataset; DatasetError says what differs."""
    command = ["python", "-m", "jaxreflow.data.features", str(dataset.root), "--policy", str(checkpoint.directory)]
    config = checkpoint.config
    command += ["--vision-positions", config.vision_positions] if config.vision_positions != "exact" else []
    command += ["--vlm", str(checkpoint.vlm_dir)] if checkpoint.vlm_dir else []
    command += ["--rename-map", json.dumps(dict(rename_map))] if rename_map else []
    command += ["--stats-from", stats_from] if stats_from else []

    def advice(out: str) -> str:
        return f"run `{shlex.join([*command, '--out'])} {out}`"

    folder = local_copy(root)
    if not folder.is_dir():
        raise DatasetError(f"--dataset.features {root}: no such folder; {advice(shlex.quote(str(root)))}")
    manifest = read_manifest(folder)
    changed = differences(feature_parts(checkpoint, dataset), manifest.parts)
    if changed:
        raise DatasetError(
            f"--dataset.features {root}: made for something else: {'; '.join(changed)}; {advice('ANOTHER_FOLDER')} and "
            "give that"
        )
    try:
        return FeatureCache(folder, manifest)
    except DatasetError as error:
        raise DatasetError(f"--dataset.features {error}; {advice(shlex.quote(str(root)))}, which goes on") from error


def check_serves(cache: FeatureCache, checkpoint: Checkpoint, dataset: LeRobotDataset) -> None:
    """DatasetError if the cache of one policy does not hold the image tokens of another."""
    changed = differences(feature_parts(checkpoint, dataset), cache.manifest.parts)
    if changed:
        raise DatasetError(
            f"--features {cache.root}: not the image tokens of {checkpoint.directory}: {'; '.join(changed)}; leave it out: "
            "policies that see differently are measured on the frames themselves"
        )


def check_vision_frozen(trained: Params) -> None:
    """ConfigError if what feature caches are made with is among the trained parameters."""
    moving = [name for name in VISION_PARAMS if name in trained]
    if moving:
        raise ConfigError(
            f"--dataset.features: expected a frozen vision tower and connector, found {' and '.join(moving)} among the "
            "trained parameters, so that cached image tokens would soon be wrong; leave it out, or train the expert only "
            "(--trainable expert in reflow, --policy.train-expert-only True in finetune)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the cache is complete, 1 after an error."""
    return run(_main, argv)


def _main(args: list[str]) -> int:
    config = parse(FeaturesConfig, args, prog="python -m jaxreflow.data.features", about=__doc__ or "")
    cache = compute_features(config)
    manifest = cache.manifest
    print(f"{cache.root}: {manifest.frames} frames x {manifest.frame_bytes:,} bytes, for {', '.join(manifest.cameras)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
