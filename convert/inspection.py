"""What a checkpoint holds, from its headers: components, tensors, parameters, dtypes, config, statistics."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import JaxReflowError
from jaxreflow.model.params import PROJECTIONS
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.fitting import misdeclared_state
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.normalization import Normalizer
from jaxreflow.policy.processors import POSTPROCESSOR, PREPROCESSOR, parse_processors, read_processor_files
from jaxreflow.policy.saved import WEIGHTS, find_saved_policy, policy_tensors, read_policy_config, vlm_home
from jaxreflow.policy.statistics import BUFFER_PREFIXES, stats_in_weights
from jaxreflow.policy.vlm import load_vlm
from jaxreflow.policy.weights import EXPERT, TEXT, VISION, VLM, check_tensors, dead_tensors, parameter_table
from jaxreflow.run.programs import trainable_by_policy
from jaxreflow.support.safetensors_file import TensorFile

COMPONENTS: dict[str, tuple[str, ...]] = {
    "vision tower": (VISION,),
    "connector": (VLM + "model.connector.",),
    "text model": (TEXT,),
    "lm_head": (VLM + "lm_head.",),
    "expert": (EXPERT,),
    "projections": tuple(f"model.{name}." for name in PROJECTIONS),
    "statistics": BUFFER_PREFIXES,
}
_ORDER = ("mean", "std", "min", "max")


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of the network: counts of tensors and parameters, tensors by dtype, tensors alike in all layers folded."""

    name: str
    tensors: int
    parameters: int
    trainable: int
    dead: int
    dtypes: dict[str, int]
    shapes: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` prints; `statistics` by processor file, feature and statistic."""

    directory: str
    bytes: int
    sha256: str
    metadata: dict[str, str] | None
    tensors: int
    parameters: int
    trainable: int
    dead: dict[str, tuple[int, ...]]
    components: list[Component]
    policy: dict[str, Any]
    network: dict[str, Any]
    statistics: dict[str, dict[str, dict[str, Any]]]
    problems: list[str]


def inspect_checkpoint(source: str | Path, *, revision: str | None = None, vlm: Path | None = None) -> Inspection:
    """Reads config, headers and processor files of a folder or hub repository.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the config; all of them are listed.
        ConfigError: the policy is no SmolVLA, or asks for what cannot be honoured.
    """
    directory = find_saved_policy(source, revision)
    policy = read_policy_config(directory)
    file = policy_tensors(directory)
    config = network_of(policy, load_vlm(policy, vlm_home(directory, file), vlm).config)
    check_tensors(file, config)
    trainable = trainable_by_policy(policy, config)
    trained = {entry.key for entry in parameter_table(config) if trainable(entry.path)}
    dead = {key: shape for key, shape in dead_tensors(config).items() if key in file.stored_keys}
    components = [_component(name, keys, file, trained, dead) for name, keys in group_keys(file.keys).items()]
    statistics, problems = _statistics(directory, policy, file)
    network = [part for part in components if part.name != "statistics"]
    return Inspection(
        directory=str(directory),
        bytes=file.path.stat().st_size,
        sha256=file.sha256,
        metadata=file.metadata,
        tensors=sum(part.tensors for part in network),
        parameters=sum(part.parameters for part in network),
        trainable=sum(part.trainable for part in network),
        dead=dead,
        components=components,
        policy=policy.to_json(),
        network=dataclasses.asdict(config),
        statistics=statistics,
        problems=problems,
    )


def group_keys(keys: Iterable[str]) -> dict[str, list[str]]:
    """A checkpoint's keys by component; components without any are left out."""
    groups: dict[str, list[str]] = {}
    known = list(keys)
    for name, prefixes in COMPONENTS.items():
        if found := [key for key in known if key.startswith(prefixes)]:
            groups[name] = found
    return groups


def _component(name: str, keys: list[str], file: TensorFile, trained: set[str], dead: Iterable[str]) -> Component:
    def count(wanted: Callable[[str], bool]) -> int:
        return sum(math.prod(file.shape(key)) for key in keys if wanted(key))

    unused = set(dead)
    return Component(
        name=name,
        tensors=len(keys),
        parameters=count(lambda _: True),
        trainable=count(trained.__contains__),
        dead=count(unused.__contains__),
        dtypes=dict(Counter(str(file.dtype(key)) for key in keys)),
        shapes=_fold(keys, file),
    )


def _fold(keys: list[str], file: TensorFile) -> dict[str, dict[str, Any]]:
    """Tensors of the same name, shape and dtype in several layers as one line, the layer's number as `*`."""
    folded: dict[tuple[str, tuple[int, ...], str], int] = Counter()
    for key in keys:
        folded[re.sub(r"\.layers\.\d+\.", ".layers.*.", key), file.shape(key), str(file.dtype(key))] += 1
    lines: dict[str, dict[str, Any]] = {}
    for (name, shape, dtype), count in folded.items():
        twice = sum(other == name for other, _, _ in folded) > 1
        lines[f"{name} ({dtype}, {list(shape)})" if twice else name] = {
            "shape": list(shape), "dtype": dtype, "layers": count if "*" in name else None,
        }  # fmt: skip
    return lines


def _statistics(
    directory: Path, policy: PolicyConfig, file: TensorFile
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    """Statistics by file, feature and name, with the mode that reads them; and what is wrong with them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        files = read_processor_files(directory)
        if not files:
            return _old_statistics(policy, file)
        processors = parse_processors(files)
        found = {PREPROCESSOR: _features(processors.normalizer), POSTPROCESSOR: _features(processors.unnormalizer)}
        processors.check(policy)
    except JaxReflowError as error:
        return found, [str(error)]
    misdeclared = misdeclared_state(policy, processors)
    return found, [misdeclared] if misdeclared else []


def _old_statistics(policy: PolicyConfig, file: TensorFile) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    features = {**policy.input_features, **policy.output_features}
    stats = stats_in_weights({k: file.read(k) for k in file.keys if k.startswith(BUFFER_PREFIXES)}, features)
    if not stats:
        return {}, [f"neither processor files nor buffers in {WEIGHTS} hold statistics; see `python -m convert doctor`"]
    normalizer = Normalizer(features, policy.normalization_mapping, stats)
    return {f"{WEIGHTS} (buffers, as before LeRobot 0.4)": _features(normalizer)}, []


def _features(normalizer: Normalizer) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys([STATE, *normalizer.features, ACTION, *normalizer.stats])
    used = [key for key in keys if key in normalizer.stats or normalizer.mode(key) != "IDENTITY"]
    return {key: {"mode": normalizer.mode(key), **_numbers(normalizer.stats.get(key, {}))} for key in used}


def _numbers(stats: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    names = sorted(stats, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: np.ravel(stats[name]).tolist() for name in names}
