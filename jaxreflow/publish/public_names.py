"""What a JSON file says of the machine that it was written on once it is published: names, but no paths and no addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxreflow.policy.public_names import ABSOLUTE, folder_name, name_policy
from jaxreflow.support.hub import HUB_NAME

_ADDRESS = re.compile(r".+:\d+(?=,\d+,\d+$)")
_HUB_FIELDS = frozenset({"repo_id", "push_to_hub", "vlm_model_name", "pretrained_path"})
_PROSE_FIELDS = frozenset({"early_task", "rename_map", "normalization_mapping"})


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
    return folder_name(value) if isinstance(value, str) and ABSOLUTE.fullmatch(value) else value
