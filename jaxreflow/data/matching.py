"""How a dataset's columns meet a policy's inputs: camera names, dimensions, padding."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from jaxreflow.errors import DatasetError

if TYPE_CHECKING:
    from jaxreflow.data.lerobot import LeRobotDataset
    from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.names import ACTION, STATE

_log = logging.getLogger(__name__)


def pad_last(x: Float32[np.ndarray, "... d"], dim: int) -> Float32[np.ndarray, "... {dim}"]:
    """Zero-pads the last axis to `dim`; DatasetError where it is longer."""
    if x.shape[-1] > dim:
        raise DatasetError(f"a vector of {x.shape[-1]} entries does not fit the policy's {dim} padded dimensions")
    # Not np.pad, whose own bookkeeping takes as long as all else in an example but its images.
    padded = np.zeros((*x.shape[:-1], dim), x.dtype)
    padded[..., : x.shape[-1]] = x
    return padded


def dataset_key(policy_key: str, rename_map: Mapping[str, str]) -> str:
    """The dataset's name of a policy feature, under a map from dataset names to policy names."""
    return next((source for source, target in rename_map.items() if target == policy_key), policy_key)


def match_cameras(
    dataset_cameras: Sequence[str], policy_cameras: Sequence[str], rename_map: Mapping[str, str], empty_cameras: int
) -> dict[str, str]:
    """Maps the policy's cameras, in its order, to those of the dataset; absent ones are left out.

    As in LeRobot, either side's names must contain the other's, and one camera must match; the model stands in for at
    most `empty_cameras` absent ones. DatasetError proposes the `--rename-map` that would match.
    """
    targets = {source: rename_map.get(source, source) for source in dataset_cameras}
    for source, target in rename_map.items():
        if target in policy_cameras and source not in targets:
            raise DatasetError(
                f"--rename-map: the dataset has no camera {source!r}; it has "
                f"{', '.join(map(repr, dataset_cameras)) or 'none'}"
            )
    doubled = sorted({target for target in targets.values() if list(targets.values()).count(target) > 1})
    if doubled:
        raise DatasetError(
            f"--rename-map gives several of the dataset's cameras the name {doubled[0]!r}; names must differ"
        )
    sources = {target: source for source, target in targets.items()}
    matched = {camera: sources[camera] for camera in policy_cameras if camera in sources}
    missing = [camera for camera in policy_cameras if camera not in sources]
    unmatched = [source for source, target in targets.items() if target not in policy_cameras]
    if not matched or (missing and unmatched):
        raise DatasetError(_proposal(dataset_cameras, policy_cameras, rename_map, missing, unmatched))
    if missing:
        _log.warning(
            "the dataset has no %s: %d of %d stood in for by an empty camera (empty_cameras), the others left out",
            ", ".join(missing),
            min(len(missing), empty_cameras),
            len(missing),
        )
    return matched


def _proposal(
    dataset_cameras: Sequence[str],
    policy_cameras: Sequence[str],
    rename_map: Mapping[str, str],
    missing: Sequence[str],
    unmatched: Sequence[str],
) -> str:
    found = f"the policy's config.json has the cameras {list(policy_cameras)}, the dataset's info.json {list(dataset_cameras)}"
    if rename_map:
        found += f" (renamed by {json.dumps(dict(rename_map))})"
    if not missing or not unmatched:
        return f"{found}: a policy needs at least one camera that the dataset has"
    kept = {source: target for source, target in rename_map.items() if source not in unmatched}
    proposal = json.dumps(kept | dict(zip(unmatched, missing, strict=False)))
    return f"{found}; if these are the same views, add --rename-map '{proposal}'"


def check_features(dataset: LeRobotDataset, policy: PolicyConfig, rename_map: Mapping[str, str] | None = None) -> None:
    """DatasetError where the dataset lacks the state or the action, or their dimensions are not the policy's."""
    for key, dim in ((STATE, policy.state_dim), (ACTION, policy.action_dim)):
        name = dataset_key(key, rename_map or {})
        feature = dataset.features.get(name)
        if feature is None:
            raise DatasetError(
                f"{dataset.root}/meta/info.json: the dataset has no feature {name!r}, which the policy needs; it has "
                f"{', '.join(dataset.features)}; rename one with --rename-map"
            )
        if feature.shape != (dim,):
            raise DatasetError(
                f"{dataset.root}/meta/info.json: {name!r} has shape {list(feature.shape)}, "
                f"the policy's {key!r} has [{dim}] in its config.json: "
                "the policy was made for another robot or another action space"
            )
