"""Where `info.json` says that a LeRobotDataset's files are: its path templates, which a stranger may have written."""

from __future__ import annotations

import re
import string
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from jaxreflow.errors import DatasetError

# What LeRobot writes behind a field's name in a path template: nothing, or a number's width, such as 03d.
_FORMAT_SPEC = re.compile(r"(0?\d{1,2})?d?")


@dataclass(frozen=True)
class FileLayout:
    """What `info.json` says about files."""

    root: Path
    data_path: str
    video_path: str
    video_keys: tuple[str, ...]
    chunks_size: int

    def path(self, template: str, **fields: Any) -> str:
        """Fills a path template of `info.json`; DatasetError if it is more than names of fields, or leaves the dataset's folder."""
        try:
            _check_template(template, fields)
            relative = template.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{self.root}/meta/info.json: path template {template!r} cannot be filled from {sorted(fields)} "
                f"({error}); write it as LeRobot does, such as {{chunk_index:03d}}"
            ) from error
        # Lexical on purpose: the files of a hub snapshot are symlinks to blobs outside the folder.
        path = PureWindowsPath(relative)
        if path.anchor or ".." in path.parts or not path.parts or "\0" in relative:
            raise DatasetError(
                f"{self.root}/meta/info.json: path template {template!r} gives {relative!r}, which leaves the "
                "dataset's folder; repair it, or get the dataset from a source that you trust"
            )
        return relative


def _check_template(template: str, fields: Collection[str]) -> None:
    """ValueError unless a template names nothing but fields: `str.format` would also follow attributes and pad to any width."""
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and name not in fields:
            raise ValueError(f"expected a field's name, found {name!r}")
        if conversion or (spec and not _FORMAT_SPEC.fullmatch(spec)):
            raise ValueError(f"{name!r}: expected no format but a number's width, found {spec or conversion!r}")
