"""How a dataset's columns meet a policy's inputs: camera names, dimensions, padding."""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from jaxreflow.errors import DatasetError

if TYPE_CHECKING:
    from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.policy.names import ACTION, EMPTY_CAMERA, STATE

_log = logging.getLogger(__name__)


def pad_last(x: Float32[np.ndarray, "... d"], dim: int) -> Float32[np.ndarray, "... {dim}"]:
    """Zero-pads the last axis to `dim`; DatasetError where it is longer."""
    if x.shape[-1] > dim:
        raise DatasetError(f"a vector of {x.shape[-1]} entries does not fit the policy's {dim} padded dimensions")
    # Not np.pad, whose own bookkeeping takes as long as all else in an example but its images.
    padded = np.zeros((*x.shape[:-1], dim), x.dtype)
    padded[..., : x.shape[-1]] = x
    return padded


def dataset_key(policy_key: str, rename_map: Mapping[str, str], names: Container[str]) -> str:
    """The dataset's name of a policy feature, under a map from dataset names to policy names; `names` are the dataset's.

    As in LeRobot, an entry of the map whose name the dataset does not have changes nothing.
    """
    sources = (source for source, target in rename_map.items() if target == policy_key and source in names)
    return next(sources, policy_key)


def match_cameras(
    dataset_cameras: Sequence[str], policy_cameras: Sequence[str], rename_map: Mapping[str, str], empty_cameras: int
) -> dict[str, str]:
    """Maps the policy's cameras, in its order, to those of the dataset; absent ones and foreign ones are left out.

    As in LeRobot, one camera must match, and without a map either side's names must contain the other's. The model stands in
    for at most `empty_cameras` absent ones. DatasetError proposes the `--rename-map` that would match.
    """
    targets = {source: rename_map.get(source, source) for source in dataset_cameras}
    _check_distinct(targets, rename_map)
    sources = {target: source for source, target in targets.items()}
    matched = {camera: sources[camera] for camera in policy_cameras if camera in sources}
    missing = [camera for camera in policy_cameras if camera not in sources and not camera.startswith(EMPTY_CAMERA)]
    foreign = [source for source, target in targets.items() if target not in policy_cameras]
    unknown = [
        source
        for source, target in rename_map.items()
        if source not in targets and target in policy_cameras and target in missing
    ]
    if not matched or (missing and foreign and not rename_map):
        raise DatasetError(_mismatch(dataset_cameras, policy_cameras, rename_map, matched, missing, foreign, unknown))
    if unknown:
        _log.warning("the rename map has %s, which is no camera of the dataset's", ", ".join(unknown))
    if missing:
        _log.warning(
            "the dataset has no %s: %d of %d stood in for by an empty camera (empty_cameras), the others left out",
            ", ".join(missing),
            min(len(missing), empty_cameras),
            len(missing),
        )
    if foreign:
        _log.warning("the policy has no camera %s: left out, as in LeRobot", ", ".join(foreign))
    return matched


def _check_distinct(targets: Mapping[str, str], rename_map: Mapping[str, str]) -> None:
    """DatasetError where several of the dataset's cameras get one name."""
    for target in targets.values():
        same = [source for source, other in targets.items() if other == target]
        if len(same) > 1:
            proposal = json.dumps({**rename_map, **{source: f"{source}.unused" for source in same[1:]}})
            raise DatasetError(
                f"the rename map gives several of the dataset's cameras, {', '.join(same)}, the name {target!r}; names must "
                f"differ: to take {same[0]}, give --rename-map '{proposal}'"
            )


def _mismatch(
    dataset_cameras: Sequence[str],
    policy_cameras: Sequence[str],
    rename_map: Mapping[str, str],
    matched: Mapping[str, str],
    missing: Sequence[str],
    foreign: Sequence[str],
    unknown: Sequence[str],
) -> str:
    found = f"the policy's config.json has the cameras {list(policy_cameras)}, the dataset's info.json {list(dataset_cameras)}"
    if rename_map:
        found += f" (renamed by {json.dumps(dict(rename_map))})"
    if unknown:
        found += f"; the dataset has no camera {', '.join(map(repr, unknown))}"
    if not missing or not foreign:
        return f"{found}: a policy needs at least one camera that the dataset has"
    kept = {source: target for source, target in rename_map.items() if source not in (*foreign, *unknown)}
    proposal = json.dumps(kept | dict(zip(foreign, missing, strict=False)))
    message = f"{found}; if these are the same views, add --rename-map '{proposal}'"
    if matched:
        camera, source = next(iter(matched.items()))
        message += f"; to do without {', '.join(foreign)}, add --rename-map '{json.dumps({source: camera})}'"
    return message


def check_features(
    dataset: LeRobotDataset, *, state_dim: int | None, action_dim: int, rename_map: Mapping[str, str]
) -> None:
    """DatasetError where the dataset lacks the state or the action, or their dimensions are not the policy's (None: any)."""
    for key, dim, where in ((STATE, state_dim, "statistics"), (ACTION, action_dim, "config.json")):
        name = dataset_key(key, rename_map, dataset.features)
        feature = dataset.features.get(name)
        if feature is None:
            raise DatasetError(
                f"{dataset.root}/meta/info.json: the dataset has no feature {name!r}, which the policy needs; it has "
                f"{', '.join(dataset.features)}; rename one with --rename-map"
            )
        if dim is not None and feature.shape != (dim,):
            raise DatasetError(
                f"{dataset.root}/meta/info.json: {name!r} has shape {list(feature.shape)}, "
                f"the policy's {key!r} has [{dim}] in its {where}: "
                "the policy was made for another robot or another action space"
            )
