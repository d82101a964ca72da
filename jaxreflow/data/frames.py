"""Which frames are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxreflow.data.loader import TrainingSource
from jaxreflow.errors import DatasetError

ALL, EARLY = "all", "early"


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` places, spread evenly, ends included."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def early_positions(source: TrainingSource, task: str, frames: int) -> list[int]:
    """Positions in `source` of the first frames of every episode of `task`; DatasetError if there is none."""
    positions = {int(frame): i for i, frame in enumerate(source.frames)}
    here = [episode for episode in source.dataset.episodes if episode.first in positions]
    found = [positions[e.first + k] for e in here if e.task == task for k in range(min(frames, e.length))]
    if not found:
        tasks = ", ".join(sorted({repr(episode.task) for episode in here}))
        raise DatasetError(f"--early-task {task!r}: no held-out episode has this task, only {tasks}; give one of them")
    return found


def frame_sets(source: TrainingSource, frames: int, early_task: str | None, early_frames: int) -> dict[str, list[int]]:
    """Positions of the sets `all` and, where a task is given, `early`."""
    sets = {ALL: spread(len(source), frames)}
    return sets | {EARLY: early_positions(source, early_task, early_frames)} if early_task else sets


def episode_of(source: TrainingSource) -> Int[np.ndarray, " n"]:
    """For every position of `source`, a number that its episode has for itself."""
    firsts = np.array([episode.first for episode in source.dataset.episodes])
    return np.searchsorted(firsts, source.frames, side="right") - 1


def pairs_apart(source: TrainingSource, distance: int, wanted: int) -> list[tuple[int, int]]:
    """Pairs of positions `distance` frames apart in the same episode, at most `wanted`, spread evenly."""
    positions = {int(frame): i for i, frame in enumerate(source.frames)}
    episode = episode_of(source)
    found = [
        (i, positions[frame + distance])
        for frame, i in positions.items()
        if frame + distance in positions and episode[positions[frame + distance]] == episode[i]
    ]
    return [found[k] for k in spread(len(found), wanted)] if found else []


def pick(positions: Sequence[int], wanted: int) -> list[int]:
    """At most `wanted` of these positions, spread evenly."""
    return [positions[k] for k in spread(len(positions), wanted)]
