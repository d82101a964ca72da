"""The manifest beside the shards of a folder: what they hold and what was asked for, so that nothing else goes on there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jaxreflow.data.shards import check_counts, publish, shard_files
from jaxreflow.errors import DatasetError
from jaxreflow.support.strict_json import parse_json
from jaxreflow.support.typed_json import from_json

MANIFEST = "manifest.json"
FORMAT = 1
M = TypeVar("M", bound="Manifest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """`frames` frames in shards of `shard_frames`; `cameras` maps each to the two sizes of its array."""

    KIND: ClassVar[str]
    """What the folder is."""
    PROGRAM: ClassVar[str]
    """The command that makes it."""
    OUT: ClassVar[str]
    """Its argument that names the folder."""

    cameras: Mapping[str, tuple[int, int]]
    frames: int
    shard_frames: int

    @property
    def seal(self) -> dict[str, str]:
        """What the file holds beside the fields and `format`; it follows from them."""
        return {}

    def shards(self, folder: Path) -> list[tuple[Path, range]]:
        """The file of every shard and its frames."""
        return shard_files(folder, self.frames, self.shard_frames)

    def missing(self, folder: Path) -> list[tuple[Path, range]]:
        """The shards that are not there yet."""
        return [(path, frames) for path, frames in self.shards(folder) if not path.exists()]

    @classmethod
    def read(cls: type[M], folder: Path) -> M:
        """The manifest in `folder`; DatasetError if it is missing, damaged or of another format."""
        path = folder / MANIFEST
        try:
            document = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict):
                raise TypeError(f"expected an object, found {_short(document)}")
            if document.get("format") != FORMAT:
                raise ValueError(f"format: expected {FORMAT}, found {_short(document.get('format'))}")
            names = {field.name for field in dataclasses.fields(cls)}
            manifest: M = from_json(cls, {name: document[name] for name in document if name in names})
            check_counts(manifest.frames, manifest.shard_frames)
            others = {name: value for name, value in document.items() if name not in names and name != "format"}
            if wrong := differences(manifest.seal, others):
                raise ValueError("; ".join(wrong))
        except (OSError, ValueError, TypeError) as error:
            raise DatasetError(
                f"{path}: expected the manifest of a {cls.KIND} ({type(error).__name__}: {error}); "
                f"check the path, or make it with `{cls.PROGRAM}`"
            ) from error
        return manifest

    def claim(self, root: Path, folder: Path) -> None:
        """Makes `folder`, in or at `root`, that of these shards, or finds that it is already; DatasetError if it is taken."""
        if (folder / MANIFEST).exists():
            now, before = (_plain(dataclasses.asdict(each)) for each in (self, type(self).read(folder)))
            changed = []
            for name, value in now.items():
                pair = (value, before[name]) if isinstance(value, dict) else ({name: value}, {name: before[name]})
                changed += differences(*pair)
            if changed:
                raise DatasetError(
                    f"{root} holds another {self.KIND}: {'; '.join(changed)}; choose another {self.OUT}, or remove it"
                )
        elif root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DatasetError(f"{root} is there already and no {self.KIND}; choose another {self.OUT}, or remove it")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": FORMAT, **self.seal, **dataclasses.asdict(self)}, indent=2) + "\n"
            publish(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The entries in which two mappings differ, in words."""
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return [f"{name}: expected {_short(expected.get(name))}, found {_short(found.get(name))}" for name in names]


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(fields))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
