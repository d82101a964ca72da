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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow.data.advice import FEATURES_OPTIONS
from jaxreflow.data.feature_cache import SHARD_FRAMES, FeatureCache, FeatureManifest
from jaxreflow.data.feature_match import camera_map, feature_parts, vision_params
from jaxreflow.data.lerobot import TOLERANCE_S, LeRobotDataset
from jaxreflow.data.shards import write_shard
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.model import embed_images
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Params
from jaxreflow.policy.compact import compact_policy
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.support.command_line import parse, run
from jaxreflow.support.console import Advance, progress
from jaxreflow.support.mesh import check_batch_size, make_mesh, replicate, shard_batch
from jaxreflow.support.storage import check_path
from jaxreflow.support.tyro_rules import RenameMap

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
    image_size: int | None = None
    """Width and height of the images: those of a student's --student.image-size (default: as the policy)."""
    tolerance_s: float = TOLERANCE_S
    """Seconds between a timestamp and the frame of its video, as for train.py."""

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
    dataset = LeRobotDataset.open(config.dataset, tolerance_s=config.tolerance_s, options=FEATURES_OPTIONS)
    frames = dataset.frame_indices()
    if not np.array_equal(frames, np.arange(len(frames))):
        raise DatasetError(f"{dataset.root}: expected frames 0 to {len(frames) - 1}, found gaps between episodes")
    saved = load_saved_policy(
        config.policy,
        revision=config.revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
    )
    saved = compact_policy(saved, image_size=config.image_size, option="--image-size")
    transforms = saved.load_transforms()
    cameras = camera_map(saved, dataset)
    dataset.check_cameras(list(cameras.values()))
    params = replicate(stored_in_compute_dtype(vision_params(saved), saved.config), mesh)

    def batch(chosen: Sequence[int]) -> Images:
        return _images(dataset, transforms, cameras, chosen, config.batch_size)

    # The first batch says how many tokens an image has; nothing is computed for it.
    embed = functools.partial(embed_images, config=saved.config)
    shapes = {key: (x.shape[1], x.shape[2]) for key, x in jax.eval_shape(embed, params, batch([0])).items()}
    manifest = FeatureManifest(
        cameras={key: shapes[key] for key in cameras},
        frames=len(frames),
        shard_frames=shard_frames,
        parts=feature_parts(saved, dataset),
        dtype=config.dtype,
    )
    out = Path(config.out)
    manifest.claim(out, out)
    missing = manifest.missing(out)
    done = manifest.frames - sum(len(held) for _, held in missing)
    tokens = functools.partial(_flat_tokens(saved.config), params)
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the cache is complete, 1 after an error."""
    return run(_main, argv, out_of_memory="lower --batch-size")


def _main(args: list[str]) -> int:
    config = parse(FeaturesConfig, args, prog="python -m jaxreflow.data.features", about=__doc__ or "")
    cache = compute_features(config)
    manifest = cache.manifest
    print(f"{cache.root}: {manifest.frames} frames x {manifest.frame_bytes:,} bytes, for {', '.join(manifest.cameras)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
