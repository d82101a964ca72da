"""What a file may say of the machine that it was written on once it is published: names, but no paths and no addresses."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jaxreflow.support.hub import HUB_NAME

# The hub client's cache: where a policy from the hub lies while it is used.
_IN_CACHE = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?")
_ABSOLUTE = re.compile(r"(?:file:/)?/[^/\s]+/.*|~[\w.-]*/.*|[A-Za-z]:[\\/].*|(?:gs|s3)://.*", re.DOTALL)
_ADDRESS = re.compile(r".+:\d+(?=,\d+,\d+$)")
_HUB_FIELDS = frozenset({"repo_id", "push_to_hub", "vlm_model_name", "pretrained_path"})
_PROSE_FIELDS = frozenset({"early_task", "rename_map", "normalization_mapping"})
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
    if directory is None:
        # `runs/teacher` looks like a hub name; the folder was there first.
        on_hub = bool(HUB_NAME.fullmatch(path)) and not Path(path).is_dir()
        return PolicyName(path if on_hub else folder_name(path), on_hub)
    if found := _IN_CACHE.fullmatch(directory):
        return PolicyName(f"{found[1]}/{found[2]}", True, found[3])
    on_hub = bool(HUB_NAME.fullmatch(directory))  # A folder's is absolute: this file was published before.
    return PolicyName(directory if on_hub else folder_name(directory), on_hub)


def is_folder(name: str) -> bool:
    """Whether what may be a hub name is a path of this machine."""
    return bool(_ABSOLUTE.fullmatch(name)) or Path(name).is_dir()


def folder_name(path: str) -> str:
    """The last part of a path that names something: `teacher` of `/data/teacher/checkpoints/last/pretrained_model`."""
    parts = PureWindowsPath(path).parts if "\\" in path else PurePosixPath(path).parts
    named = [part for part in parts if not _NAMELESS.fullmatch(part) and part not in ("/", "~", ".", "..")]
    return named[-1] if named else "policy"


def public_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A `train_config.json` without paths and addresses; a policy from the hub has its name and its commit."""
    source = source_of(fields)
    public = {name: _public(name, value) for name, value in fields.items()}
    for kind in ("teacher", "policy"):
        asked = fields.get(kind)
        if isinstance(asked, dict) and isinstance(asked.get("path"), str):
            named = name_policy(asked["path"], source.get("path"))
            public[kind] |= {"path": named.name, **({"revision": named.commit} if named.commit else {})}
            if source:
                public["source"] |= {"path": named.name}
    return public


def source_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a `train_config.json` tells of the policy that the run started from: its `path` and the `sha256` of its weights."""
    source = settings.get("source")
    return source if isinstance(source, dict) else {}


def _public(name: str, value: Any) -> Any:
    if name in _PROSE_FIELDS:
        return value
    if isinstance(value, dict):
        return {key: _public(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_public(name, each) for each in value]
    if not isinstance(value, str):
        return value
    if name == "distributed":
        return _ADDRESS.sub("HOST:PORT", value)
    if name in _HUB_FIELDS and HUB_NAME.fullmatch(value):
        return value
    return folder_name(value) if "/" in value or "\\" in value else value


def without_absolute_paths(value: Any) -> Any:
    """A JSON document in which an absolute path is the name of its folder."""
    if isinstance(value, dict):
        return {key: without_absolute_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    return folder_name(value) if isinstance(value, str) and _ABSOLUTE.fullmatch(value) else value


def replace_names(text: str, names: Mapping[str, str]) -> str:
    """A page's or a JSON document's `text` with names put for whole paths: not within others, nor in a picture's base64."""
    for path in (path for path in names if "/" in path or "\\" in path):
        for written in dict.fromkeys((html.escape(path), json.dumps(path)[1:-1], path)):
            whole = rf"(?<![\w+/=-]){re.escape(written)}(?![\w+/=-])"
            text = re.sub(whole, names[path].replace("\\", r"\\"), text)
    return text
