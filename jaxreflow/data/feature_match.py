"""Whose image tokens a cache holds: what they depend on, and refusals of another policy's or dataset's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxreflow.data.feature_cache import FeatureCache, FeatureManifest
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.manifests import differences
from jaxreflow.data.matching import match_cameras
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.model.types import Params
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.policy.weights import Entry, parameter_table
from jaxreflow.support.storage import local_copy

VISION_PARAMS = ("vision_model", "connector")


def camera_map(saved: SavedPolicy, dataset: LeRobotDataset) -> dict[str, str]:
    """The dataset's camera of every policy camera that it has."""
    policy = saved.policy
    rename_map = saved.processors.rename_map
    dataset.refuse_depth(policy.visual_keys, rename_map)
    return match_cameras(dataset.camera_keys, policy.visual_keys, rename_map, policy.empty_cameras)


def feature_parts(saved: SavedPolicy, dataset: LeRobotDataset) -> dict[str, Any]:
    """All that the image tokens depend on, as JSON; two equal ones mean the same tokens."""
    config, cameras, normalizer = saved.config, camera_map(saved, dataset), saved.processors.normalizer
    modes: dict[str, Any] = {}
    for key in cameras:
        modes[key] = mode = normalizer.mode(key)
        if mode != "IDENTITY":
            stats = {name: np.asarray(x).tolist() for name, x in sorted(normalizer.stats.get(key, {}).items())}
            modes[key] = {"mode": mode, "eps": normalizer.eps, "stats": stats}
    parts = {
        "weights": _weights_hash(saved),
        "vision_config": {**dataclasses.asdict(config.vision), "scale_factor": config.scale_factor},
        "resize_imgs_with_padding": config.resize_imgs_with_padding,
        "vision_positions": config.vision_positions,
        "image_normalization": modes,
        "cameras": cameras,
        "rename_map": dict(saved.processors.rename_map),
        **_dataset_parts(dataset),
    }
    return json.loads(json.dumps(parts))


def _vision_entries(saved: SavedPolicy) -> list[Entry]:
    return [entry for entry in parameter_table(saved.config) if entry.path[0] in VISION_PARAMS]


def vision_params(saved: SavedPolicy) -> Params:
    """The parameters of vision tower and connector in float32."""
    read = saved.tensors.read
    return unflatten_dict(
        {e.path: np.ascontiguousarray(e.from_torch(read(e.key)), np.float32) for e in _vision_entries(saved)}
    )


def _weights_hash(saved: SavedPolicy) -> str:
    digest = hashlib.sha256()
    for key in sorted(entry.key for entry in _vision_entries(saved)):
        tensor = saved.tensors.read(key)
        digest.update(f"{key} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _dataset_parts(dataset: LeRobotDataset) -> dict[str, Any]:
    root, meta = dataset.root, dataset.root / "meta"
    names = {path.relative_to(root).as_posix() for path in (meta / "episodes").rglob("*.parquet")}
    names |= {f"meta/{path.name}" for path in meta.glob("episodes*.jsonl")}
    names |= {*dataset.metadata.data_files(), *dataset.metadata.named_files()}
    for episode in dataset.metadata.episodes:
        names |= {file for file, _ in episode.videos.values()}
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
    saved: SavedPolicy,
    dataset: LeRobotDataset,
    *,
    rename_map: Mapping[str, str] | None = None,
    stats_from: str | None = None,
    option: str = "--dataset.features",
) -> FeatureCache:
    """The cache in `root` if its tokens are those of this policy and dataset; DatasetError says what differs.

    Errors call it by `option`, the one that named it.
    """
    command = ["python", "-m", "jaxreflow.data.features", str(dataset.root), "--policy", str(saved.directory)]
    config = saved.config
    command += ["--vision-positions", config.vision_positions] if config.vision_positions != "exact" else []
    if saved.derived_from is not None and not sees_as(saved, saved.derived_from):
        assert config.resize_imgs_with_padding is not None
        command += ["--image-size", str(config.resize_imgs_with_padding[0])]
    command += ["--vlm", str(saved.vlm_dir)] if saved.vlm_dir else []
    command += ["--rename-map", json.dumps(dict(rename_map))] if rename_map else []
    command += ["--stats-from", stats_from] if stats_from not in (None, "policy") else []

    def advice(out: str) -> str:
        return f"run `{shlex.join([*command, '--out'])} {out}`"

    folder = local_copy(root)
    if not folder.is_dir():
        raise DatasetError(f"{option} {root}: no such folder; {advice(shlex.quote(str(root)))}")
    manifest = FeatureManifest.read(folder)
    changed = differences(feature_parts(saved, dataset), manifest.parts)
    if changed:
        raise DatasetError(
            f"{option} {root}: made for something else: {'; '.join(changed)}; {advice('ANOTHER_FOLDER')} and give that"
        )
    try:
        return FeatureCache(folder, manifest)
    except DatasetError as error:
        raise DatasetError(f"{option} {error}; {advice(shlex.quote(str(root)))}, which goes on") from error


def check_serves(cache: FeatureCache, saved: SavedPolicy, dataset: LeRobotDataset) -> None:
    """DatasetError if the cache of one policy does not hold the image tokens of another."""
    changed = differences(feature_parts(saved, dataset), cache.manifest.parts)
    if changed:
        raise DatasetError(
            f"--features {cache.root}: not the image tokens of {saved.directory}: {'; '.join(changed)}; leave it out: "
            "policies that see differently are measured on the frames themselves"
        )


def sees_as(saved: SavedPolicy, other: SavedPolicy) -> bool:
    """Whether two policies with the same vision weights make the same tokens of an image."""
    return saved.config.resize_imgs_with_padding == other.config.resize_imgs_with_padding


def check_vision_frozen(trained: Params, option: str) -> None:
    """ConfigError if what the cache that `option` names is made with is among the trained parameters."""
    moving = [name for name in VISION_PARAMS if name in trained]
    if moving:
        raise ConfigError(
            f"{option}: expected a frozen vision tower and connector, found {' and '.join(moving)} among the "
            "trained parameters, so that cached image tokens would soon be wrong; leave it out, or train neither "
            "(such as --trainable expert+language in reflow, --policy.train-expert-only True in finetune)"
        )
