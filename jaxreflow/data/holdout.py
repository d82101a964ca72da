"""Which episodes are held out of training."""

from __future__ import annotations

import numpy as np

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError, DatasetError


def holdout_split(dataset: LeRobotDataset, fraction: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits the episodes into training and held-out ones (original indices), reproducibly, by task.

    Of a task with several episodes, `fraction` of them, at least one and not all, are held out; episodes whose task
    occurs once count together as one task.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held-out fraction: expected 0 <= fraction < 1, found {fraction}")
    groups: dict[str, list[int]] = {}
    for episode in dataset.episodes:
        groups.setdefault(episode.task, []).append(episode.index)
    strata = [group for group in groups.values() if len(group) > 1]
    strata.append([group[0] for group in groups.values() if len(group) == 1])
    random = np.random.default_rng(seed)
    held: set[int] = set()
    for stratum in strata:
        count = min(max(round(fraction * len(stratum)), 1), len(stratum) - 1) if fraction and len(stratum) > 1 else 0
        held.update(int(index) for index in random.permutation(stratum)[:count])
    if fraction and not held:
        raise DatasetError(
            f"{dataset.root}/meta/episodes*: one episode is too few to hold one out; set the held-out fraction to 0"
        )
    train = tuple(episode.index for episode in dataset.episodes if episode.index not in held)
    return train, tuple(sorted(held))
