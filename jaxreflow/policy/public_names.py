"""What a policy and a folder are called in reports and on the hub: names, but no paths of this machine."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from jaxreflow.support.hub import HUB_NAME
from jaxreflow.support.storage import is_remote

# The hub client's cache: where a policy from the hub lies while it is used.
_IN_CACHE = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/.*)?")
ABSOLUTE = re.compile(r"(?:file:/)?/[^/\s]+/.*|~[\w.-]*/.*|[A-Za-z]:[\\/].*|(?:gs|s3)://.*", re.DOTALL)
# A checkpoint's own folders say nothing: RUN/checkpoints/STEP/pretrained_model is named after RUN.
_NAMELESS = re.compile(r"pretrained_model|last|\d+|checkpoints|initial_policy|snapshots|[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class PolicyName:
    """What a policy is called in public: `OWNER/NAME` and commit of a hub repository, or the name of its folder."""

    name: str
    on_hub: bool
    commit: str | None = None


def name_policy(path: str, directory: str | None = None) -> PolicyName:
    """The public name of a policy that was asked for by `path` and read from `directory`, where that is known."""
    if directory is None or is_remote(path):
        # `runs/teacher` looks like a hub name; the folder was there first.
        on_hub = bool(HUB_NAME.fullmatch(path)) and not Path(path).is_dir()
        return PolicyName(path if on_hub else folder_name(path), on_hub)
    if found := _IN_CACHE.fullmatch(directory):
        return PolicyName(f"{found[1]}/{found[2]}", True, found[3])
    on_hub = bool(HUB_NAME.fullmatch(directory))  # A folder's is absolute: this file was published before.
    return PolicyName(directory if on_hub else folder_name(directory), on_hub)


def is_folder(name: str) -> bool:
    """Whether what may be a hub name is a path of this machine."""
    return bool(ABSOLUTE.fullmatch(name)) or Path(name).is_dir()


def folder_name(path: str) -> str:
    """The last part of a path that names something: `teacher` of `/data/teacher/checkpoints/last/pretrained_model`."""
    parts = PureWindowsPath(path).parts if "\\" in path else PurePosixPath(path).parts
    named = [part for part in parts if not _NAMELESS.fullmatch(part) and part not in ("/", "~", ".", "..")]
    return named[-1] if named else "policy"
