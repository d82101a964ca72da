"""A network whose layers are some of another's: which ones, and its parameters among the other's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import ParamPath, param_shapes
from jaxreflow.model.types import Params

Choice = Literal["first", "spaced"]


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """The original's layer behind every layer, of the VLM's text model and of the expert; None: all of them, in order."""

    text: tuple[int, ...] | None = None
    expert: tuple[int, ...] | None = None

    def original(self, path: ParamPath) -> ParamPath:
        """The path, in the original, of the parameter that has this path here."""
        match path:
            case ("text_model", "layers", index, *rest) if self.text is not None:
                return ("text_model", "layers", str(self.text[int(index)]), *rest)
            case ("expert", "layers", index, *rest) if self.expert is not None:
                return ("expert", "layers", str(self.expert[int(index)]), *rest)
        return path

    def view(self, params: Params, config: ModelConfig) -> Params:
        """Those of the original's parameters that the network of `config` has, under its own paths; nothing is copied."""
        if self == ALL_LAYERS:
            return params
        flat = flatten_dict(params)
        paths = {path: self.original(path) for path in param_shapes(config)}
        return unflatten_dict({path: flat[original] for path, original in paths.items() if original in flat})


ALL_LAYERS = LayerChoice()


def choose_layers(kinds: Sequence[str], count: int, choice: Choice) -> tuple[int, ...]:
    """`count` of the layers whose kinds of attention are given, such that the i-th that is kept is of the i-th kind.

    "first" keeps the first ones. "spaced" keeps the first and the last of each kind as far as it can, and between them layers
    at even distances.

    Raises:
        ConfigError: there are fewer layers.
    """
    total = len(kinds)
    if not 1 <= count <= total:
        raise ConfigError(f"expected 1 to {total} layers, found {count}")
    if choice == "first":
        return tuple(range(count))
    latest = _latest(kinds, count)
    kept: list[int] = []
    for i in range(count):
        ideal = i * (total - 1) / max(count - 1, 1)
        fitting = [j for j in range(kept[-1] + 1 if kept else 0, latest[i] + 1) if kinds[j] == kinds[i]]
        kept.append(min(fitting, key=lambda layer: abs(layer - ideal)))
    return tuple(kept)


def _latest(kinds: Sequence[str], count: int) -> list[int]:
    """For each place the last layer of its kind that leaves layers of their kinds to the places after it."""
    latest: list[int] = []
    before = len(kinds)
    for kind in reversed(kinds[:count]):
        before = max(j for j in range(before) if kinds[j] == kind)
        latest.insert(0, before)
    return latest
