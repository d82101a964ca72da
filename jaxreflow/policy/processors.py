"""LeRobot's pre- and postprocessing files: what they say, and how they are written so that LeRobot reads them again.

The files' bytes are the source of truth: `Processors` is parsed from them, a change rewrites them, `save` writes them.
What came from a checkpoint and was not changed therefore goes back byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import ProcessorError
from jaxreflow.policy.config import LARGEST, Feature, PolicyConfig, features_to_json
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.normalization import Normalizer, check_mode, check_normalizer, state_width, stats_advice
from jaxreflow.policy.statistics import as_vector, format_tensors, parse_tensors
from jaxreflow.support.strict_json import parse_json
from jaxreflow.support.typed_json import from_json

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
RENAME, NEW_LINE, TOKENIZER = "rename_observations_processor", "smolvla_new_line_processor", "tokenizer_processor"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
# Batch dimensions and devices are the caller's matter here; the steps change no value.
NEUTRAL = ("to_batch_processor", "device_processor")
TOKENIZER_FOLDER = "tokenizer"
# A tokenizer of a large vocabulary has 30 MB, statistics have some kilobytes.
MAX_FILE_BYTES = 1 << 28
_STATE_FILE = re.compile(r"[\w-][\w.-]*\.safetensors")

Files = Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """LeRobot's tokenizer step: `name` is a hub name or a folder, also one inside the checkpoint."""

    name: str | None
    max_length: int
    truncation: bool = True


@dataclasses.dataclass(frozen=True)
class Processors:
    """What a checkpoint's processor files ask for; `files` holds their contents by relative path."""

    rename_map: Mapping[str, str]
    newline: bool
    tokenizer: TokenizerSettings
    normalizer: Normalizer
    unnormalizer: Normalizer
    files: Files = dataclasses.field(repr=False)

    def with_statistics(self, stats: Mapping[str, Mapping[str, np.ndarray]]) -> Processors:
        """The same pipelines with other statistics, in the policy's names."""
        files = dict(self.files)
        state = format_tensors(stats)
        for name, registered in ((PREPROCESSOR, NORMALIZER), (POSTPROCESSOR, UNNORMALIZER)):
            pipeline = json.loads(files[name])
            for index, step in enumerate(pipeline["steps"]):
                if step["registry_name"] == registered:
                    step.setdefault("state_file", f"{Path(name).stem}_step_{index}_{registered}.safetensors")
                    files[step["state_file"]] = state
            files[name] = dump_pipeline(pipeline)
        return parse_processors(files)

    def with_rename_map(self, rename_map: Mapping[str, str]) -> Processors:
        """The same pipelines with another map from observation names to the policy's."""
        if dict(rename_map) == dict(self.rename_map):
            return self
        pipeline = json.loads(self.files[PREPROCESSOR])
        steps = [step for step in pipeline["steps"] if step["registry_name"] != RENAME]
        if len(steps) == len(pipeline["steps"]):
            raise ProcessorError(
                f"{PREPROCESSOR} has no {RENAME} step to hold --rename-map; rename the dataset's features instead"
            )
        next(s for s in pipeline["steps"] if s["registry_name"] == RENAME)["config"] = {"rename_map": dict(rename_map)}
        return parse_processors({**self.files, PREPROCESSOR: dump_pipeline(pipeline)})

    def check(self, policy: PolicyConfig, advice: str | None = None) -> None:
        """Checks the statistics of every feature that is normalised on the way in or out; `advice` is `stats_advice`'s.

        Raises:
            ProcessorError: statistics are missing, of the wrong shape, not finite or negative, or too wide for the policy.
        """
        advice = advice or stats_advice()
        check_normalizer(self.normalizer, policy, [*policy.used_inputs, ACTION], PREPROCESSOR, advice)
        check_normalizer(self.unnormalizer, policy, [ACTION], POSTPROCESSOR, advice)
        width = state_width(self.normalizer) or 0
        if width > policy.max_state_dim:
            raise ProcessorError(
                f"{PREPROCESSOR}: `{STATE}` has {width} dimensions, more than the padded width {policy.max_state_dim} "
                "(`max_state_dim` in config.json), so LeRobot cannot run the policy either; take statistics of a narrower state"
            )

    @property
    def fixes_state_width(self) -> bool:
        """Whether states must be as wide as their statistics: not if they stay as they are, or one number holds for all."""
        return self.normalizer.mode(STATE) != "IDENTITY" and state_width(self.normalizer) != 1

    def save(self, out: Path) -> None:
        """Writes the processor files into the folder `out`."""
        for name, content in self.files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def read_processor_files(directory: Path) -> Files:
    """The processor files of a checkpoint by relative path; empty if it has none, as before LeRobot 0.4.

    Raises:
        ProcessorError: one pipeline or a state file is missing.
    """
    present = [name for name in (PREPROCESSOR, POSTPROCESSOR) if (directory / name).is_file()]
    if not present:
        return {}
    files: dict[str, bytes] = {}
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if name not in present:
            raise ProcessorError(
                f"{directory / name}: no such file, though {present[0]} is there; copy the checkpoint again"
            )
        files[name] = _read(directory / name)
        for step in _steps(name, files[name]):
            state = step.get("state_file")
            if state is None:
                continue
            # Weights under this name would be overwritten when the processors are saved.
            if not _STATE_FILE.fullmatch(str(state)) or state == "model.safetensors":
                raise ProcessorError(
                    f"{name}: `state_file` must be a safetensors file of the processors beside it, found {state!r}; repair it, "
                    "or get the policy from a source that you trust"
                )
            if not (directory / state).is_file():
                raise ProcessorError(
                    f"{directory / state}: no such file, but {name} names it; copy the checkpoint again"
                )
            files[state] = _read(directory / state)
    for path in sorted((directory / TOKENIZER_FOLDER).rglob("*")):
        if path.is_file():
            files[path.relative_to(directory).as_posix()] = _read(path)
    return files


def _read(path: Path) -> bytes:
    """A file that is held in memory as long as the policy."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ProcessorError(
            f"{path} has {size} bytes, expected at most {MAX_FILE_BYTES}: no processor of LeRobot's has so many"
        )
    return path.read_bytes()


def parse_processors(files: Files) -> Processors:
    """The pipelines that processor files describe.

    Raises:
        ProcessorError: a step is unknown, missing, or asks for what cannot be honoured; the message names it.
    """
    pre = _by_name(PREPROCESSOR, files, (RENAME, NEW_LINE, TOKENIZER, NORMALIZER, *NEUTRAL), (TOKENIZER, NORMALIZER))
    post = _by_name(POSTPROCESSOR, files, (UNNORMALIZER, *NEUTRAL), (UNNORMALIZER,))
    order = [name for name in pre if name not in NEUTRAL]
    if (RENAME in order and order[0] != RENAME) or (
        NEW_LINE in order and order.index(NEW_LINE) > order.index(TOKENIZER)
    ):
        raise ProcessorError(
            f"{PREPROCESSOR}: steps must come in the order {RENAME}, {NEW_LINE}, {TOKENIZER}; found {', '.join(order)}"
        )
    try:
        return Processors(
            rename_map=_parse_rename_map(pre.get(RENAME, {}).get("config") or {}),
            newline=NEW_LINE in pre,
            tokenizer=_parse_tokenizer(pre[TOKENIZER]["config"]),
            normalizer=_parse_normalizer(PREPROCESSOR, pre[NORMALIZER], files),
            unnormalizer=_parse_normalizer(POSTPROCESSOR, post[UNNORMALIZER], files),
            files=files,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ProcessorError(
            f"{PREPROCESSOR} or {POSTPROCESSOR}: a step's config has the wrong form: {error!r}"
        ) from error


def create_processors(policy: PolicyConfig, stats: Mapping[str, Mapping[str, np.ndarray]]) -> Processors:
    """The pipelines that LeRobot 0.4.4 makes for a policy, with statistics in the policy's names."""
    tokenizer = {
        "max_length": policy.tokenizer_max_length,
        "task_key": "task",
        "padding_side": "right",
        "padding": policy.pad_language_to,
        "truncation": True,
        "tokenizer_name": policy.vlm_model_name,
    }
    normal = {"eps": 1e-8, "features": {}, "norm_map": dict(policy.normalization_mapping)}
    device = {"device": policy.carried.get("device") or "cpu", "float_dtype": None}
    pre = [
        (RENAME, {"rename_map": {}}),
        ("to_batch_processor", {}),
        (NEW_LINE, {}),
        (TOKENIZER, tokenizer),
        ("device_processor", device),
        (NORMALIZER, normal | {"features": features_to_json({**policy.input_features, **policy.output_features})}),
    ]
    post = [
        (UNNORMALIZER, normal | {"features": features_to_json(policy.output_features)}),
        ("device_processor", device | {"device": "cpu"}),
    ]
    files = {
        name: dump_pipeline(
            {"name": Path(name).stem, "steps": [{"registry_name": step, "config": config} for step, config in steps]}
        )
        for name, steps in ((PREPROCESSOR, pre), (POSTPROCESSOR, post))
    }
    return parse_processors(files).with_statistics(stats)


def dump_pipeline(pipeline: dict[str, Any]) -> bytes:
    """A pipeline as a processor file holds it."""
    return json.dumps(pipeline, indent=2).encode()


def _steps(name: str, content: bytes) -> list[dict[str, Any]]:
    try:
        steps = parse_json(content)["steps"]
        if not all(isinstance(step, dict) and isinstance(step.get("config") or {}, dict) for step in steps):
            raise TypeError("a step or its config is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise ProcessorError(
            f"{name}: not a pipeline in LeRobot's form ({error!r}); copy or download it again"
        ) from error
    return steps


def _by_name(name: str, files: Files, known: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for index, step in enumerate(_steps(name, files[name])):
        registered = step.get("registry_name")
        if registered not in known:
            raise ProcessorError(
                f"{name}: step {index} is {registered or step.get('class')!r}, which jaxreflow cannot run; "
                f"it knows {', '.join(known)}"
            )
        if registered in found and registered not in NEUTRAL:
            raise ProcessorError(f"{name}: step {registered!r} occurs twice, expected once")
        if (step.get("config") or {}).get("float_dtype") not in (None, "float32"):
            raise ProcessorError(
                f"{name}: {registered!r} casts to {step['config']['float_dtype']!r}; "
                "observations are processed in float32: set `float_dtype` to null"
            )
        found[registered] = step
    missing = [step for step in needed if step not in found]
    if missing:
        raise ProcessorError(f"{name}: no step {', '.join(missing)}; found {', '.join(found) or 'none'}")
    return found


def _parse_rename_map(config: Mapping[str, Any]) -> dict[str, str]:
    return from_json(dict[str, str], config.get("rename_map", {}), "rename_map")


def _parse_tokenizer(config: Mapping[str, Any]) -> TokenizerSettings:
    if config.get("task_key", "task") != "task":
        raise ProcessorError(f'{PREPROCESSOR}: {TOKENIZER}: `task_key` must be "task", found {config["task_key"]!r}')
    length = from_json(int, config["max_length"], "max_length")
    if not 1 <= length <= LARGEST:
        raise ProcessorError(f"{PREPROCESSOR}: {TOKENIZER}: `max_length` must be from 1 to {LARGEST}, found {length}")
    name = from_json(str | None, config.get("tokenizer_name"), "tokenizer_name")
    # Padding and its side are not read: padded rows are masked and take no position, so neither changes any result.
    return TokenizerSettings(name, length, bool(config.get("truncation", True)))


def _parse_normalizer(name: str, step: Mapping[str, Any], files: Files) -> Normalizer:
    config = step["config"]
    features = {
        key: Feature(str(f["type"]), tuple(int(n) for n in f["shape"])) for key, f in config["features"].items()
    }
    keys = config.get("normalize_observation_keys")
    stats = parse_tensors(files[step["state_file"]], step["state_file"]) if "state_file" in step else {}
    return Normalizer(
        features=features,
        norm_map={kind: check_mode(mode, name) for kind, mode in config["norm_map"].items()},
        # An image's have two trailing axes in LeRobot, whose images are channels first; channels last here.
        stats={key: {stat: as_vector(value) for stat, value in group.items()} for key, group in stats.items()},
        eps=from_json(float, config.get("eps", 1e-8), "eps", floats="finite"),
        observation_keys=tuple(keys) if keys is not None else None,
    )
