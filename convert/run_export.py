"""A training run's checkpoint -> LeRobot's layout: its training state on the weights that the run started from.

Of a run with LoRA, the state holds adapters, which are merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxreflow.errors import CheckpointError, ConfigError
from jaxreflow.model.types import Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.compact import kept_layers, select_tensors
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.saved import (
    TRAIN_CONFIG,
    SavedPolicy,
    find_saved_policy,
    load_saved_policy,
    policy_tensors,
    read_policy_config,
    save_pretrained,
)
from jaxreflow.policy.weights import parameter_table
from jaxreflow.run.checkpoints import POLICY_DIR, STATE_DIR, CheckpointStore, last_step
from jaxreflow.run.trainable import adapters_of
from jaxreflow.support.safetensors_file import TensorFile
from jaxreflow.support.strict_json import parse_json
from jaxreflow.training.lora import LoraConfig, adapted_kernels, adapter_shapes, merge_adapters

from .orbax import TreeReader

CHECKPOINTS = "checkpoints"


def is_run(path: Path) -> bool:
    """Whether the folder is a training run's."""
    return (path / CHECKPOINTS).is_dir()


def export_run(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    ema: bool = False,
    teacher: str | None = None,
    teacher_revision: str | None = None,
    vlm: Path | None = None,
) -> int:
    """Writes the weights of a step (default: the last), raw or averaged, as a policy folder; returns the step.

    Frozen weights come from where the run started, or from `teacher` if that was moved; config and processors from
    the policy folder beside the training state.

    Raises:
        CheckpointError: the step, its average or its starting weights are missing or others, or `out` is not empty.
    """
    directory = run / CHECKPOINTS
    step = _find_step(directory, step)
    with contextlib.closing(CheckpointStore(directory)) as store:
        meta, folder = store.read_meta(step), store.path(step)
    source, settings = meta["source"], meta["config"]
    started_from = _find_start(teacher or source["path"], teacher_revision)
    start = policy_tensors(started_from)
    if start.sha256 != source["sha256"]:
        raise CheckpointError(
            f"{start.path}: sha256 {start.sha256[:12]}, but the run started from {source['path']} with "
            f"{source['sha256'][:12]}, whose frozen weights it shares; put that file back or name it by --teacher"
        )
    saved = load_saved_policy(folder / POLICY_DIR, vlm=vlm or settings.get("vlm"))
    saved = dataclasses.replace(saved, tensors=_own_layers(start, read_policy_config(started_from), saved, settings))
    lora = _read_lora(folder, settings, saved)
    reader = _open_state(folder / STATE_DIR / "state", "ema" if ema else "trainable", saved, lora)
    params = unflatten_dict({leaf: reader.read(leaf) for leaf in reader.shapes})
    if lora.rank:
        params = merge_adapters(_read_kernels(saved, lora), params, scale=lora.scale)
    train_config = _read_settings(folder / POLICY_DIR / TRAIN_CONFIG, settings)
    save_pretrained(
        out,
        saved,
        jax.device_get(params),
        train_config={**train_config, "export": "ema" if ema else "raw"},
    )
    return step


def _own_layers(start: TensorFile, policy: PolicyConfig, saved: SavedPolicy, settings: dict[str, Any]) -> TensorFile:
    """Of the tensors that the run started from, those of the student's layers."""
    choice = settings.get("student", {}).get("layers", "first")
    original = network_of(policy, saved.vlm.config)
    return select_tensors(start, saved.config, kept_layers(policy, original, saved.config, choice))


def _find_step(directory: Path, step: int | None) -> int:
    found = last_step(directory) if step is None else step
    there = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / STATE_DIR).is_dir())
    if found is None or found not in there:
        wanted = f"no checkpoint of step {found}" if found is not None else "no complete checkpoint"
        raise CheckpointError(f"{directory}: {wanted}; found the steps {', '.join(map(str, there)) or 'none'}")
    return found


def _find_start(path: str, revision: str | None) -> Path:
    try:
        return find_saved_policy(path, revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"the weights that the run started from are not where they were: {error}; if they were moved, give their "
            "folder by --teacher DIR"
        ) from error


def _read_lora(folder: Path, settings: dict[str, Any], saved: SavedPolicy) -> LoraConfig:
    """The run's adapters; a run from before there were any has none."""
    try:
        fields = settings.get("lora", {})
        lora = LoraConfig(**{**fields, "targets": tuple(fields["targets"])} if fields else {})
        lora = adapters_of(settings.get("trainable"), lora)
        adapted_kernels(lora, saved.config)
        return lora
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: the run's settings of `lora` cannot be read ({error}); copy it again"
        ) from error


def _read_kernels(saved: SavedPolicy, lora: LoraConfig) -> Params:
    """The kernels that the adapters change, in float32, as the run started from them."""
    kernels, read = adapted_kernels(lora, saved.config), saved.tensors.read
    entries = [entry for entry in parameter_table(saved.config) if entry.path in kernels]
    return unflatten_dict({e.path: np.ascontiguousarray(e.from_torch(read(e.key)), np.float32) for e in entries})


def _open_state(path: Path, name: str, saved: SavedPolicy, lora: LoraConfig) -> TreeReader:
    try:
        reader = TreeReader(path, name)
    except CheckpointError as error:
        hint = "; a run with --ema-decay 0 keeps no moving average: leave --ema out" if name == "ema" else ""
        raise CheckpointError(f"{error}{hint}") from error
    shapes = {entry.path: entry.shape for entry in parameter_table(saved.config)}
    adapters = adapter_shapes(lora, saved.config) if lora.rank else {}
    if lora.rank:
        kernels = adapted_kernels(lora, saved.config)
        shapes = {path: shape for path, shape in shapes.items() if path not in kernels} | adapters
    foreign = [leaf for leaf, shape in reader.shapes.items() if shapes.get(leaf) != shape]
    found = len(adapters.keys() & reader.shapes.keys())
    if not foreign and found < len(adapters):
        raise CheckpointError(
            f"{path}: expected {len(adapters)} adapters, as the run's `lora` settings name, "
            f"found {found}; copy the run again"
        )
    if foreign:
        lines = "\n  ".join(
            f"{'/'.join(leaf)}: expected {list(shapes.get(leaf, ())) or 'nothing'}, found {list(reader.shapes[leaf])}"
            for leaf in foreign
        )
        raise CheckpointError(f"{path} does not fit the policy beside it ({len(foreign)} problems):\n  {lines}")
    return reader


def _read_settings(path: Path, default: dict[str, object]) -> dict[str, object]:
    if not path.is_file():
        return default
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); remove it or copy it again") from error
