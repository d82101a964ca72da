"""Image tokens of a dataset on disk: shards of raw bfloat16, and a manifest that says what they were made from.

    manifest.json                 what the tokens depend on (`parts`), their shapes, how many frames
    shard-00003.arrayrecord       the tokens of frames `3 * shard_frames ...`, one record a frame, cameras one after another

Record i is the frame with global index i. This module knows no model: `jaxreflow.data.features` fills the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxreflow.data.manifests import Manifest
from jaxreflow.data.shards import open_shards
from jaxreflow.errors import DatasetError

# 126 MB of one camera's tokens at full size: little work is lost when a run is killed.
SHARD_FRAMES = 1024
TOKEN_DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureManifest(Manifest):
    """What a cache holds: `parts` is all that the tokens depend on, `cameras` their shape `[P, D]` by policy camera.

    `dtype` is that of the computation; it is not among the parts, as tokens are stored rounded in any case.
    """

    KIND = "feature cache"
    PROGRAM = "python -m jaxreflow.data.features"
    OUT = "--out"

    parts: Mapping[str, Any]
    dtype: str
    shard_frames: int = SHARD_FRAMES

    @property
    def seal(self) -> dict[str, str]:
        """`key`: sha256 over the parts."""
        return {"key": hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()}

    @property
    def frame_bytes(self) -> int:
        """Size of one record."""
        return sum(rows * width for rows, width in self.cameras.values()) * TOKEN_DTYPE.itemsize


class FeatureCache:
    """Random access to the image tokens of a finished cache, by global frame index; picklable, opens files when asked."""

    def __init__(self, root: Path | str, manifest: FeatureManifest) -> None:
        """DatasetError where a shard is missing."""
        self.root, self.manifest = Path(root), manifest
        missing = manifest.missing(self.root)
        if missing:
            done = len(manifest.shards(self.root)) - len(missing)
            raise DatasetError(
                f"{self.root} is unfinished: expected {done + len(missing)} shards, found {done} "
                f"(the first one missing is {missing[0][0].name})"
            )
        self._records = open_shards(manifest.shards(self.root))

    @classmethod
    def open(cls, root: Path | str) -> FeatureCache:
        """Opens the cache in the folder `root`; DatasetError if it is none, damaged or unfinished."""
        return cls(root, FeatureManifest.read(Path(root)))

    def __getitem__(self, frame: int) -> dict[str, np.ndarray]:
        """Tokens `[P, D]` in bfloat16 of every camera; DatasetError names a frame that cannot be read."""
        try:
            record = self._records[frame]
            if len(record) != self.manifest.frame_bytes:
                raise ValueError(f"expected {self.manifest.frame_bytes} bytes, found {len(record)}")
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise DatasetError(
                f"{self.root}: frame {frame} of {self.manifest.frames} cannot be read ({error}); delete its shard and "
                "run the command that made the cache again"
            ) from error
        tokens, result, start = np.frombuffer(record, TOKEN_DTYPE), {}, 0
        for key, shape in self.manifest.cameras.items():
            result[key] = tokens[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return result


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """By which cached image tokens teacher and student see."""

    teacher: FeatureCache | None = None
    """Of the teacher, and of a student that sees alike; None: computed from images."""
    student: FeatureCache | None = None
    """Of a student that does not see as its teacher."""
    student_sees_images: bool = False
    """Whether such a student computes its tokens from images, while the teacher's are cached."""

    @property
    def leave_images(self) -> bool:
        """Whether there is a policy left that needs images."""
        return self.teacher is None or self.student_sees_images

    def at(self, frame: int) -> dict[str, dict[str, np.ndarray]]:
        """What the caches add to the example of a frame: `image_tokens`, and `student_tokens` where the student's differ."""
        own: dict[str, dict[str, np.ndarray]] = {}
        if self.teacher is not None:
            own["image_tokens"] = self.teacher[frame]
        if self.student is not None or self.student_sees_images:
            own["student_tokens"] = {} if self.student is None else self.student[frame]
        return own


NO_TOKENS = ImageTokens()
