"""The chosen episodes of a LeRobotDataset: which they are, and whether all that they need is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from jaxreflow.data.advice import DatasetOptions
from jaxreflow.data.metadata import Episode, Metadata
from jaxreflow.errors import DatasetError
from jaxreflow.support.lfs import is_lfs_pointer, lfs_advice

# What every dataset has, and what LeRobot reads only where there are videos, or never.
INDEX_COLUMNS = ("episode_index", "task_index")
OPTIONAL_COLUMNS = ("frame_index", "timestamp")
# Pointers of Git LFS are smaller than this, and videos are larger.
_SMALL_BYTES = 1024
_log = logging.getLogger(__name__)


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


def check_counts(metadata: Metadata, options: DatasetOptions) -> None:
    """DatasetError where fewer episodes are listed than `info.json` counts; a warning where counts differ otherwise."""
    listed = (len(metadata.episodes), sum(episode.length for episode in metadata.episodes))
    counted = (metadata.total_episodes, metadata.total_frames)
    both = (
        f"{metadata.root}: meta/info.json counts {counted[0]} episodes with {counted[1]} frames, but meta/episodes* list "
        f"{listed[0]} with {listed[1]}"
    )
    if listed[0] < counted[0]:
        go_on = f", or name some of those listed with {options.episodes}" if options.episodes else ""
        raise DatasetError(f"{both}: a part of the copy is missing; copy or download the dataset again{go_on}")
    if any(count and count != found for count, found in zip(counted, listed, strict=True)):
        _log.warning("%s; all that are listed are used", both)


def check_episodes(metadata: Metadata, episodes: Sequence[Episode]) -> None:
    """DatasetError if episodes overlap, or columns that every dataset needs are not there or have several entries."""
    root, features = metadata.root, metadata.features
    if any(episode.length < 1 for episode in episodes) or any(b.first <= a.last for a, b in pairwise(episodes)):
        raise DatasetError(f"{root}/meta/episodes*: episodes are empty or overlap; download it again")
    absent = [key for key in INDEX_COLUMNS if key not in features]
    if absent:
        raise DatasetError(f"{root}: meta/info.json lacks the feature {absent[0]!r} of every LeRobotDataset")
    wrong = [key for key in (*INDEX_COLUMNS, *OPTIONAL_COLUMNS) if key in features and features[key].shape != (1,)]
    if wrong:
        raise DatasetError(
            f"{root}/meta/info.json: the shape of {wrong[0]!r} must be [1], found {list(features[wrong[0]].shape)}"
        )


def check_videos(
    metadata: Metadata, episodes: Sequence[Episode], cameras: Sequence[str], options: DatasetOptions
) -> None:
    """DatasetError if a video that these cameras need is missing, or only a pointer of Git LFS."""
    videos = [key for key in cameras if metadata.features[key].dtype == "video"]
    needed: dict[str, int] = {}
    for episode in episodes:
        for key in videos:
            if key not in episode.videos:
                raise DatasetError(
                    f"{metadata.root}/meta/episodes* name no video of camera {key!r} for episode {episode.index}; "
                    f"copy or download meta/ again{options.leave_out()}"
                )
            needed.setdefault(episode.videos[key][0], episode.index)
    missing = [file for file in needed if not metadata.has_file(file)]
    if missing:
        raise DatasetError(
            f"{metadata.root / missing[0]} is missing, episode {needed[missing[0]]} needs it by meta/info.json "
            f"({len(missing)} of {len(needed)} videos are missing); copy or download it{options.leave_out()}"
        )
    for file in needed:
        path = metadata.root / file
        if path.stat().st_size < _SMALL_BYTES and is_lfs_pointer(path):
            raise DatasetError(lfs_advice(path))
