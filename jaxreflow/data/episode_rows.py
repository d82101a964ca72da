"""Rows of the chosen episodes of a LeRobotDataset: numeric columns, and which frame of which episode each row is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxreflow.data.columns import read_columns
from jaxreflow.data.episodes import INDEX_COLUMNS, check_episodes, pick_episodes
from jaxreflow.data.metadata import Episode, FeatureSpec, Metadata
from jaxreflow.errors import DatasetError
from jaxreflow.policy.names import ACTION, STATE


class EpisodeRows:
    """The columns of the chosen episodes, which stand one after another; `places` says where each row lies."""

    def __init__(self, metadata: Metadata, episodes: Sequence[int] | None, *, with_times: bool) -> None:
        """Reads the columns that everybody needs; DatasetError if they are not there. `with_times`: timestamps for videos."""
        self.metadata = metadata
        self.root = metadata.root
        self.episodes = metadata.episodes if episodes is None else pick_episodes(metadata.episodes, episodes, self.root)
        self._lengths = np.array([episode.length for episode in self.episodes], np.int64)
        self._firsts = np.array([episode.first for episode in self.episodes], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        check_episodes(metadata, self.episodes)
        # LeRobot looks at timestamps only where there are videos.
        times = ("timestamp",) if with_times and any(episode.videos for episode in self.episodes) else ()
        names = [*INDEX_COLUMNS, *(key for key in ("frame_index", *times, STATE, ACTION) if key in self.features)]
        self._columns, self.places = read_columns(metadata, self.episodes, names)
        if "frame_index" not in self.features:
            counted = np.arange(self.num_frames) - np.repeat(self._starts, self._lengths)
            self._columns["frame_index"] = counted[:, None]
        unknown = set(np.unique(self._columns["task_index"])) - set(metadata.tasks)
        if unknown:
            raise DatasetError(
                f"{self.root}: task_index {min(unknown)} is not among the {len(metadata.tasks)} tasks of "
                "meta/tasks.parquet (tasks.jsonl before v3.0); download it again"
            )

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.metadata.fps

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """All features by name."""
        return self.metadata.features

    @property
    def num_frames(self) -> int:
        """Number of frames in the selected episodes."""
        return int(self._lengths.sum())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The distinct tasks of the selected frames, in the order of their task index."""
        return tuple(self.metadata.tasks[int(index)] for index in np.unique(self.column("task_index")))

    def frame_indices(self, episodes: Sequence[int] | None = None) -> Int[np.ndarray, " n"]:
        """Global indices of all frames of these episodes (original episode indices), or of all selected ones."""
        chosen = self.episodes if episodes is None else pick_episodes(self.episodes, episodes, self.root)
        return np.concatenate([np.arange(episode.first, episode.last + 1) for episode in chosen])

    def rows(self, frames: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Positions of global frame indices in the columns; DatasetError names one that no selected episode has."""
        which = np.maximum(np.searchsorted(self._firsts, frames, side="right") - 1, 0)
        offset = frames - self._firsts[which]
        wrong = (offset < 0) | (offset >= self._lengths[which])
        if wrong.any():
            raise DatasetError(
                f"{self.root}: frame {frames[wrong][0]} is in none of the {len(self.episodes)} selected episodes"
            )
        return self._starts[which] + offset

    def last_rows(self) -> Int[np.ndarray, " num_frames"]:
        """For every row of the columns, the row of its episode's last frame."""
        return np.repeat(self._starts + self._lengths - 1, self._lengths)

    def column(self, name: str) -> np.ndarray:
        """A numeric feature of all selected frames, `[num_frames, *shape]`, floats as float32; read once."""
        if name not in self._columns:
            if name not in self.features or name in self.metadata.visual_keys:
                raise DatasetError(f"{self.root}: no numeric feature {name!r}, only {', '.join(self.features)}")
            self._columns |= read_columns(self.metadata, self.episodes, [name])[0]
        return self._columns[name]

    def action_chunk(
        self, frame: int, chunk_size: int, key: str = ACTION
    ) -> tuple[Float32[np.ndarray, "{chunk_size} d"], Bool[np.ndarray, " {chunk_size}"]]:
        """The actions of `frame` and the `chunk_size - 1` after it, and which of them lie past the episode's end.

        Those repeat the episode's last action, as LeRobot's `delta_timestamps` do.
        """
        row = self._row(frame)
        wanted = np.arange(row, row + chunk_size)
        episode = self._position(row)
        last = self._starts[episode] + self._lengths[episode] - 1
        return self.column(key)[np.minimum(wanted, last)], wanted > last

    @property
    def data_files(self) -> tuple[str, ...]:
        """The parquet files that hold the rows of the selected episodes."""
        return self.places.files

    def describe(self, index: int) -> str:
        """A global frame index in words: frame and episode."""
        return self.describe_row(self._row(index))

    def describe_row(self, row: int) -> str:
        """A row of the columns in words: frame and episode."""
        return f"frame {int(self.column('frame_index')[row, 0])} of episode {self.episode_of(row).index}"

    def episode_of(self, row: int) -> Episode:
        """The episode of a row of the columns."""
        return self.episodes[self._position(row)]

    def index_of(self, row: int) -> int:
        """The global frame index of a row of the columns."""
        return self.episode_of(row).first + row - int(self._starts[self._position(row)])

    def _row(self, frame: int) -> int:
        return int(self.rows(np.array([frame]))[0])

    def _position(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1
