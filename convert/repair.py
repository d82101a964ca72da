"""What `doctor --fix` changes in a checkpoint; the original stays beside it as *.bak."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from jaxreflow.errors import CheckpointError, JaxReflowError
from jaxreflow.policy.adapters import is_adapter
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import DEFAULT_VLM, PolicyConfig
from jaxreflow.policy.config_fields import POLICY_FIELDS
from jaxreflow.policy.fitting import fit_state
from jaxreflow.policy.names import STATE
from jaxreflow.policy.processors import POSTPROCESSOR, PREPROCESSOR, parse_processors, read_processor_files
from jaxreflow.policy.real_time_chunking import fitting_rtc_config
from jaxreflow.policy.saved import (
    CONFIG,
    WEIGHTS,
    load_processors,
    policy_tensors,
    read_config_fields,
    read_policy_config,
)
from jaxreflow.policy.statistics import BUFFER_PREFIXES
from jaxreflow.policy.vlm import has_weights, load_vlm
from jaxreflow.policy.weights import check_tensors
from jaxreflow.support.safetensors_file import DTYPES, TensorFile, make_header

from .dtypes import own_dtypes, repairable

T = TypeVar("T")

COMPILED = "_orig_mod."
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ARTEFACTS = tuple(name for name, (use, _) in POLICY_FIELDS.items() if use == "legacy")


def repair(directory: Path, *, vlm: Path | None = None) -> list[str]:
    """Repairs what can be, where that is safe; returns what was done. Unreadable files are left alone.

    These are config.json, tensor names, tensor dtypes (for which the VLM's config is needed), processor files that are
    missing although their statistics lie among the weights, and a declared state of another width than its statistics.

    Raises:
        CheckpointError: a file cannot be written; it is then as it was.
    """
    fields = _readable(read_config_fields, directory / CONFIG)
    done = [] if fields is None else _repair_config(directory, fields)
    # Every step reads the files as the one before has left them.
    done += _repair_names(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `examine` says what they say
        policy = _readable(read_policy_config, directory)
        if policy is not None:
            done += _repair_dtypes(directory, policy, vlm)
            done += _write_processors(directory, policy)
            done += _repair_state(directory, policy)
    return done


def _readable(read: Callable[[Path], T], path: Path) -> T | None:
    try:
        return read(path)
    except JaxReflowError:  # `examine` says why
        return None


def _own_weights(directory: Path) -> TensorFile | None:
    """The file that may be repaired: shards and adapters are left as they are."""
    path = directory / WEIGHTS
    return _readable(TensorFile, path) if path.is_file() else None


def lacks_vlm_weights(fields: dict[str, Any]) -> bool:
    """Whether LeRobot would build the VLM in float32 although the name in the config leads to its weights."""
    name = fields.get("vlm_model_name", DEFAULT_VLM)
    return not fields.get("load_vlm_weights", False) and isinstance(name, str) and has_weights(name)


def names_an_adapter(directory: Path, fields: dict[str, Any]) -> bool:
    """Whether the config says that the weights are an adapter's, although they are whole."""
    return bool(fields.get("use_peft")) and not is_adapter(directory)


def _repair_config(directory: Path, fields: dict[str, Any]) -> list[str]:
    path = directory / CONFIG
    artefacts = [name for name in ARTEFACTS if name in fields]
    done = [f"{path.name}: removed {', '.join(artefacts)}"] if artefacts else []
    fixed = {name: value for name, value in fields.items() if name not in artefacts}
    if lacks_vlm_weights(fields):
        fixed["load_vlm_weights"] = True
        done.append(f"{path.name}: set load_vlm_weights to true")
    if names_an_adapter(directory, fields):
        fixed["use_peft"] = False
        done.append(f"{path.name}: set use_peft to false")
    found, steps = fields.get("rtc_config"), fields.get("num_steps", 10)
    if isinstance(steps, int) and fitting_rtc_config(found, steps) != found:
        fixed["rtc_config"] = fitting_rtc_config(found, steps)
        done.append(f"{path.name}: lowered max_guidance_weight in rtc_config to num_steps, {steps}")
    if not done:
        return []
    with _replacing(path) as (target, backup):
        target.write(json.dumps(fixed, indent=4).encode())
    return [*done, f"{path.name}: the original is {backup.name}"]


def _repair_names(directory: Path) -> list[str]:
    file = _own_weights(directory)
    renamed = 0 if file is None else sum(key != stored for key, stored in file.stored_keys.items())
    if file is None or not renamed:
        return []
    header, path = file.clean_header, file.path
    with _replacing(path) as (target, backup), path.open("rb") as source:
        target.write(len(header).to_bytes(8, "little") + header)
        source.seek(8 + len(file.header))
        shutil.copyfileobj(source, target, 2**24)
    return [
        f"{path.name}: {wrappers(file)} taken out of {renamed} names",
        f"{path.name}: the original is {backup.name}",
    ]


def wrappers(file: TensorFile) -> str:
    """What wrappers have put into the names of the tensors, such as `_orig_mod.`."""
    found = {stored.replace(key, "") for key, stored in file.stored_keys.items() if key in stored and key != stored}
    return ", ".join(sorted(found)) or COMPILED


def _repair_dtypes(directory: Path, policy: PolicyConfig, vlm: Path | None) -> list[str]:
    file = _own_weights(directory)
    if file is None:
        return []
    try:
        files = load_vlm(policy, directory, vlm)
        config = network_of(policy, files.config)
        check_tensors(file, config)
        own = own_dtypes(file, config, policy, files)
        cast = {key: own[key] for key in repairable(file, own)}
    except JaxReflowError:  # `examine` says why
        return []
    if not cast:
        return []
    stored = {key: cast.get(key, file.dtype(key)) for key in file.keys}
    infos = {
        key: {
            "dtype": NAMES[dtype],
            "shape": file.shape(key),
            "data_offsets": (0, math.prod(file.shape(key)) * dtype.itemsize),
        }
        for key, dtype in stored.items()
    }
    text = make_header(infos, file.metadata)
    with _replacing(file.path) as (target, backup):
        target.write(len(text).to_bytes(8, "little") + text)
        for key, dtype in stored.items():
            target.write(file.read(key).astype(dtype, copy=False).tobytes())
    name = file.path.name
    return [f"{name}: {len(cast)} tensors stored as LeRobot loads them", f"{name}: the original is {backup.name}"]


def _write_processors(directory: Path, policy: PolicyConfig) -> list[str]:
    file = _readable(policy_tensors, directory)
    buffers = file is not None and any(key.startswith(BUFFER_PREFIXES) for key in file.keys)
    # Old Aloha policies were adapted and normalised in another order: their files must not look sound.
    if file is None or not buffers or policy.adapt_to_pi_aloha or _readable(read_processor_files, directory) != {}:
        return []
    processors = _readable(lambda _: load_processors(directory, policy, file), directory)
    if processors is None:
        return []
    processors.save(directory)
    return [f"wrote {PREPROCESSOR} and {POSTPROCESSOR} with the statistics among the weights"]


def _repair_state(directory: Path, policy: PolicyConfig) -> list[str]:
    """Declares the state with the width of its statistics, in config.json and in the preprocessor."""
    files = _readable(read_processor_files, directory)
    processors = _readable(lambda _: parse_processors(files), directory) if files else None
    fitted, changed = (policy, processors) if processors is None else fit_state(policy, processors)
    if changed is None or fitted is policy:
        return []
    fields = read_config_fields(directory / CONFIG)
    declared = {"type": "STATE", "shape": [fitted.state_dim]}
    fields["input_features"] = {**(fields.get("input_features") or {}), STATE: declared}
    done = [f"{CONFIG}: the shape of {STATE} set to [{fitted.state_dim}], as in the statistics"]
    for name, content in ((CONFIG, json.dumps(fields, indent=4).encode()), (PREPROCESSOR, changed.files[PREPROCESSOR])):
        if content != (directory / name).read_bytes():
            with _replacing(directory / name) as (target, backup):
                target.write(content)
            done.append(f"{name}: the original is {backup.name}")
    return done


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file to be written in place of `path`, and the backup's path; `path` is as it was if writing fails."""
    backup = path.with_name(f"{path.name}.bak")
    number = 2
    while backup.exists():
        backup, number = path.with_name(f"{path.name}.bak{number}"), number + 1
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as target:
            yield target, backup
        shutil.copymode(path, temporary)
        path.rename(backup)
        temporary.rename(path)
    except OSError as error:
        if not path.exists() and backup.exists():
            backup.rename(path)
        raise CheckpointError(f"{path}: cannot be repaired ({error}); it is as it was") from error
    finally:
        temporary.unlink(missing_ok=True)
