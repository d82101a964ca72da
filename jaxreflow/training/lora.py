"""LoRA (arXiv 2106.09685): a linear layer's kernel W [in, out] becomes `W + (alpha / rank) A B`, of which only A and B are trained.

Kernels are merged before the network runs, so that there is one network and one path through it; the adapters are what an update
changes, and what is exported is the merged kernel.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import PROJECTIONS, ParamPath, param_shapes
from jaxreflow.model.types import Params

A, B = "lora_A", "lora_B"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) are trained, everything else is frozen; exported weights are merged."""

    rank: int = 0
    """Rank of the adapters; 0: off, parameters are trained themselves."""
    alpha: float | None = None
    """Adapters count alpha / rank times (default: the rank, so once)."""
    targets: tuple[str, ...] = ("expert", *PROJECTIONS)
    """Linear layers to adapt: names or regular expressions of any part of a parameter's path, such as q_proj, expert.layers.0 or
    text_model.*[qv]_proj."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"--lora.rank must not be negative, found {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ConfigError(f"--lora.alpha must be positive, found {self.alpha}")
        for target in self.targets:
            try:
                _pattern(target)
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"--lora.targets {target}: not a regular expression ({error})") from error
        if not self.targets:
            raise ConfigError("--lora.targets names nothing: give names of linear layers, or leave it out")

    @property
    def scale(self) -> float:
        """The factor of A B in a merged kernel."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def adapted_kernels(config: LoraConfig, network: ModelConfig) -> frozenset[ParamPath]:
    """Paths of the kernels that the targets name.

    Raises:
        ConfigError: a target names no linear layer; it says which are nearest.
    """
    names: dict[str, list[ParamPath]] = {}
    for path, shape in param_shapes(network).items():
        kernel = path[-1] == "kernel" and len(shape) == 2
        names.setdefault(".".join(path[:-1]), []).extend([path] if kernel else [])
    found: set[ParamPath] = set()
    for target in config.targets:
        matching = [name for name in names if _pattern(target).fullmatch(name)]
        kernels = [path for name in matching for path in names[name]]
        if not kernels:
            linear = {name for name, paths in names.items() if paths}
            parts = {part for name in linear for part in name.split(".") if not part.isdigit()}
            nearest = difflib.get_close_matches(target, sorted(parts | linear), cutoff=0.4)
            what = f"{matching[0]}, which is no linear layer" if matching else "nothing"
            raise ConfigError(
                f"--lora.targets {target}: expected linear layers of the policy, found {what}; "
                f"nearest are {', '.join(nearest or sorted(parts))}"
            )
        found.update(kernels)
    return frozenset(found)


def _pattern(target: str) -> re.Pattern[str]:
    """Matches the names of which the target is a part: whole words between dots."""
    return re.compile(rf"(.*\.)?({target})(\..*)?")


def adapter_shapes(config: LoraConfig, network: ModelConfig) -> dict[ParamPath, tuple[int, ...]]:
    """Every adapter's path, which is its kernel's with another last name, and its shape: A [in, rank], B [rank, out]."""
    shapes: dict[ParamPath, tuple[int, ...]] = {}
    kernels = adapted_kernels(config, network)
    for path, shape in param_shapes(network).items():
        if path in kernels:
            shapes[*path[:-1], A] = (shape[0], config.rank)
            shapes[*path[:-1], B] = (config.rank, shape[1])
    return shapes


def init_adapters(key: Key[Array, ""], config: LoraConfig, network: ModelConfig) -> Params:
    """A uniform within 1 / sqrt(in), as PEFT draws it (Kaiming's with a = sqrt(5)), and B zero: at first nothing is changed."""
    shapes = adapter_shapes(config, network)

    def init(key: Array, path: ParamPath) -> Array:
        if path[-1] == B:
            return jnp.zeros(shapes[path])
        bound = shapes[path][0] ** -0.5
        return jax.random.uniform(key, shapes[path], minval=-bound, maxval=bound)

    keys = jax.random.split(key, len(shapes))
    return unflatten_dict({path: init(k, path) for k, path in zip(keys, shapes, strict=True)})


@functools.partial(jax.jit, static_argnames="scale")
def merge_adapters(base: Params, trained: Params, *, scale: float) -> Params:
    """What the network runs with: the kernels `W + scale A B` in float32, and the trained parameters that are no adapters."""
    flat = flatten_dict(trained)

    def merge(path: ParamPath, kernel: Array) -> Array:
        change = jnp.matmul(flat[*path[:-1], A], flat[*path[:-1], B], precision="highest")
        return kernel + scale * change

    whole = {path: leaf for path, leaf in flat.items() if path[-1] not in (A, B)}
    return unflatten_dict(whole | {path: merge(path, kernel) for path, kernel in flatten_dict(base).items()})
