"""JSON that a stranger may have written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

# Far more than any file of LeRobot's has, and few enough for everything that walks through a document.
_DEEPEST = 64


def parse_json(text: str | bytes) -> Any:
    """A JSON document; ValueError if it is none, names a key twice, or is nested more than 64 deep."""
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"nested more than {_DEEPEST} deep") from error
    level = [document]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
    if level:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {name!r} occurs twice")
    return found


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
