"""The chosen episodes of a LeRobotDataset: which they are, and whether all that they need is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from jaxreflow.data.metadata import Episode, Metadata
from jaxreflow.errors import DatasetError

INDEX_COLUMNS = ("frame_index", "timestamp", "task_index")


def pick_episodes(available: Sequence[Episode], wanted: Sequence[int], root: Path) -> tuple[Episode, ...]:
    """The episodes of these indices, in their order; DatasetError if one is not there, or none is wanted."""
    by_index = {episode.index: episode for episode in available}
    unknown = sorted(set(wanted) - set(by_index))
    if unknown or not len(wanted):
        raise DatasetError(
            f"{root}: episodes {unknown or 'none'} asked for, expected some of the {len(by_index)} "
            f"from {min(by_index)} to {max(by_index)}"
        )
    return tuple(by_index[index] for index in sorted(set(wanted)))


def check_episodes(metadata: Metadata, episodes: Sequence[Episode], *, with_videos: bool) -> None:
    """DatasetError if episodes overlap, every dataset's features are not there, or a file that these need is missing."""
    root, features = metadata.root, metadata.features
    if any(episode.length < 1 for episode in episodes) or any(b.first <= a.last for a, b in pairwise(episodes)):
        raise DatasetError(f"{root}/meta/episodes*: episodes are empty or overlap; download it again")
    absent = [key for key in ("episode_index", *INDEX_COLUMNS) if key not in features]
    if absent:
        raise DatasetError(f"{root}: meta/info.json lacks the feature {absent[0]!r} of every LeRobotDataset")
    wrong = [key for key in ("episode_index", *INDEX_COLUMNS) if features[key].shape != (1,)]
    if wrong:
        raise DatasetError(
            f"{root}/meta/info.json: the shape of {wrong[0]!r} must be [1], found {list(features[wrong[0]].shape)}"
        )
    needed: dict[str, int] = {}
    for episode in episodes:
        videos = [video for video, _ in episode.videos.values()] if with_videos else []
        for file in (episode.data_file, *videos):
            needed.setdefault(file, episode.index)
    # Not pathlib's, which raises where a name is longer than the system allows.
    missing = [file for file in needed if not os.path.isfile(root / file)]  # noqa: PTH113
    if missing:
        raise DatasetError(
            f"{root / missing[0]} is missing, episode {needed[missing[0]]} needs it by meta/info.json "
            f"({len(missing)} of {len(needed)} files are missing); copy or download it, "
            "or leave its episodes out with --dataset.episodes"
        )
