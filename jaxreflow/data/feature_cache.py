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

from jaxreflow.data.shards import check_counts, open_shards, publish, shard_files
from jaxreflow.errors import DatasetError
from jaxreflow.support.strict_json import parse_json

MANIFEST = "manifest.json"
FORMAT = 1
# 126 MB of one camera's tokens at full size: little work is lost when a run is killed.
SHARD_FRAMES = 1024
TOKEN_DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache holds: `parts` is all that the tokens depend on, `cameras` their shape `[P, D]` by policy camera.

    `dtype` is that of the computation; it is not among the parts, as tokens are stored rounded in any case.
    """

    parts: Mapping[str, Any]
    cameras: Mapping[str, tuple[int, int]]
    frames: int
    dtype: str
    shard_frames: int = SHARD_FRAMES

    @property
    def key(self) -> str:
        """sha256 over the parts."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    @property
    def frame_bytes(self) -> int:
        """Size of one record."""
        return sum(rows * width for rows, width in self.cameras.values()) * TOKEN_DTYPE.itemsize

    def shards(self, root: Path) -> list[tuple[Path, range]]:
        """The file of every shard and its frames."""
        return shard_files(root, self.frames, self.shard_frames)

    def missing(self, root: Path) -> list[tuple[Path, range]]:
        """The shards that are not there yet."""
        return [(path, frames) for path, frames in self.shards(root) if not path.exists()]


class FeatureCache:
    """Random access to the image tokens of a finished cache, by global frame index; picklable, opens files when asked."""

    def __init__(self, root: Path | str, manifest: Manifest) -> None:
        """DatasetError where a shard is missing."""
        self.root, self.manifest = Path(root), manifest
        missing = manifest.missing(self.root)
        if missing:
            done = len(manifest.shards(self.root)) - len(missing)
            raise DatasetError(
                f"{self.root} is unfinished: expected {done + len(missing)} shards, found {done} (the first one missing "
                f"is {missing[0][0].name})"
            )
        self._records = open_shards(manifest.shards(self.root))

    @classmethod
    def open(cls, root: Path | str) -> FeatureCache:
        """Opens the cache in the folder `root`; DatasetError if it is none, damaged or unfinished."""
        return cls(root, read_manifest(Path(root)))

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


def read_manifest(root: Path) -> Manifest:
    """The manifest of the cache in `root`; DatasetError if it is missing, damaged or of another format."""
    path = root / MANIFEST
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
        version, key = fields.pop("format"), fields.pop("key")
        if version != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, found {version}")
        fields["cameras"] = {name: (int(rows), int(width)) for name, (rows, width) in fields["cameras"].items()}
        check_counts(fields["frames"], fields["shard_frames"])
        manifest = Manifest(**fields)
        if manifest.key != key:
            raise ValueError(f"key: expected {manifest.key}, found {key}")
    except (OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(
            f"{path}: expected the manifest of a feature cache ({type(error).__name__}: {error}); check the path, or "
            "make the cache with `python -m jaxreflow.data.features`"
        ) from error
    return manifest


def claim_folder(root: Path, manifest: Manifest) -> None:
    """Makes `root` the folder of this cache, or finds that it is already; DatasetError if it holds anything else."""
    if (root / MANIFEST).exists():
        before, now = (_to_json(each) for each in (read_manifest(root), manifest))
        parts = differences(now.pop("parts"), before.pop("parts"))
        changed = [*parts, *differences(now, before)] if parts else differences(now, before)
        if changed:
            raise DatasetError(f"{root} holds another cache: {'; '.join(changed)}; choose another --out, or remove it")
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root} is there already and no feature cache; choose another --out, or remove it")
    else:
        root.mkdir(parents=True, exist_ok=True)
        publish(root / MANIFEST, lambda path: path.write_text(json.dumps(_to_json(manifest), indent=2) + "\n"))


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The entries in which two mappings differ, in words."""
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return [f"{name}: expected {_short(expected.get(name))}, found {_short(found.get(name))}" for name in names]


def _to_json(manifest: Manifest) -> dict[str, Any]:
    fields = {"format": FORMAT, "key": manifest.key, **dataclasses.asdict(manifest)}
    return json.loads(json.dumps(fields))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
