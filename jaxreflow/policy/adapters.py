"""A policy's weights, whole: a file, its shards, or a LoRA adapter that is merged into its base while it is read.

LeRobot 0.6 saves an adapter as PEFT does: `adapter_config.json`, `adapter_model.safetensors`, and the policy's config and
processors beside them. The base's folder or hub name stands in `adapter_config.json`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import CheckpointError
from jaxreflow.support.safetensors_file import INDEX, TensorFile
from jaxreflow.support.strict_json import parse_json

WEIGHTS = "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Names of one adapter's two factors, of linear layers and convolutions, and of embeddings.
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(\.weight)?")
_MERGE_IT = (
    "merge it in LeRobot, where it was trained: "
    "PeftModel.from_pretrained(SmolVLAPolicy.from_pretrained(BASE), ADAPTER).merge_and_unload().save_pretrained(OUT); then copy "
    "the adapter's config.json and policy_* files into OUT, and run `python -m convert doctor OUT --fix`"
)
# Settings that make more of an adapter than `W + scale B A`.
_OTHER_KINDS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with a bias of its own",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "LoRA with replicated layers",
}
# Ways to begin an adapter that take something off the base first: PEFT does so again whenever it loads one.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq")


def is_adapter(directory: Path) -> bool:
    """Whether a policy's folder holds an adapter and no weights of its own: full weights are full weights."""
    full = (directory / WEIGHTS).is_file() or (directory / (WEIGHTS + INDEX)).is_file()
    return not full and (directory / ADAPTER_CONFIG).is_file()


def open_weights(
    directory: Path, find_base: Callable[[str, str | None], Path], adapters: tuple[Path, ...] = ()
) -> TensorFile:
    """The tensors of a policy's folder; `find_base` gives the local folder of an adapter's base by name and revision.

    `adapters` are those whose base this folder is.

    Raises:
        CheckpointError: files are missing or damaged, or the adapter is of a kind that cannot be merged here.
    """
    if not is_adapter(directory):
        return TensorFile(directory / WEIGHTS)
    settings = _read_settings(directory / ADAPTER_CONFIG)
    name = str(settings["base_model_name_or_path"])
    try:
        folder = find_base(name, settings.get("revision"))
        if folder.resolve() in (*adapters, directory.resolve()):
            raise CheckpointError(f"{name} is the adapter itself")
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory / ADAPTER_CONFIG}: the adapter's base cannot be had ({error}); put the base's folder or hub name into "
            "base_model_name_or_path there"
        ) from error
    base = open_weights(folder, find_base, (*adapters, directory.resolve()))
    return MergedFile(base, directory, settings)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
        settings["peft_type"]
        for pattern, alpha in {"": settings.get("lora_alpha", 8), **(settings.get("alpha_pattern") or {})}.items():
            re.compile(pattern), float(alpha)
    except (OSError, ValueError, KeyError, TypeError, re.error) as error:
        raise CheckpointError(
            f"{path}: no settings of an adapter ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    other = _other_kind(settings)
    if other:
        raise CheckpointError(
            f"{path}: expected a LoRA adapter, found {other}, which jaxreflow cannot merge; {_MERGE_IT}"
        )
    if not settings.get("base_model_name_or_path"):
        raise CheckpointError(f"{path}: base_model_name_or_path is missing; put the base's folder or hub name there")
    return dict(settings)


def _other_kind(settings: Mapping[str, Any]) -> str | None:
    """What an adapter is if it is more than `W + scale B A`; None where that is all."""
    if settings["peft_type"] != "LORA":
        return str(settings["peft_type"])
    start = str(settings.get("init_lora_weights"))
    if start.lower().startswith(_CHANGES_BASE):
        return f"LoRA that {start} began, which changes the base's weights"
    return next((kind for name, kind in _OTHER_KINDS.items() if settings.get(name)), None)


class MergedFile(TensorFile):
    """The base's tensors with an adapter's changes: `W + scale B A`, in float32, then in the base's dtype, as PEFT merges.

    Tensors that the adapter holds whole (PEFT's `modules_to_save`, biases) replace the base's.
    """

    def __init__(self, base: TensorFile, directory: Path, settings: Mapping[str, Any]) -> None:
        self._base, self._settings = base, settings
        self._adapter = TensorFile(directory / ADAPTER_WEIGHTS)
        self.path, self.sources = directory / ADAPTER_WEIGHTS, (directory / ADAPTER_CONFIG, *self._adapter.sources)
        self.header, self.metadata, self.stored_keys = base.header, base.metadata, base.stored_keys
        self._infos, self._places = base._infos, base._places
        self._factors: dict[str, dict[str, str]] = {}
        self._whole: dict[str, str] = {}
        for key in self._adapter.keys:
            factor = _FACTOR.fullmatch(_without_adapter_name(key))
            if factor is None:
                self._whole[_without_adapter_name(key)] = key
            else:
                self._factors.setdefault(f"{factor[1]}.weight", {})[factor[3]] = key
        self._check()

    @property
    def folder(self) -> Path:
        """The base's."""
        return self._base.folder

    def _check(self) -> None:
        strange = sorted({*self._factors, *self._whole} - set(self.keys))
        if strange:
            raise CheckpointError(
                f"{self.path}: adapts {', '.join(strange[:5])}, which its base {self._base.path} does not have; give the base "
                "that it was trained on"
            )
        for key, parts in self._factors.items():
            if set(parts) != {"A", "B"}:
                raise CheckpointError(f"{self.path}: {key} has only lora_{'/'.join(parts)}; copy or download it again")
            if self._change_shape(parts) != math.prod(self.shape(key)):
                raise CheckpointError(f"{self.path}: the adapter of {key} has another shape than its base's tensor")
        for key, stored in self._whole.items():
            if self._adapter.shape(stored) != self.shape(key):
                raise CheckpointError(f"{self.path}: {key} has another shape than its base's tensor")

    def _change_shape(self, parts: Mapping[str, str]) -> int:
        a, b = self._adapter.shape(parts["A"]), self._adapter.shape(parts["B"])
        return math.prod(a[1:]) * b[0] if len(a) > 1 and len(b) > 1 and a[0] == b[1] else -1

    def read(self, key: str) -> np.ndarray:
        """A merged tensor, in the base's dtype."""
        if key in self._whole:
            return self._adapter.read(self._whole[key]).astype(self.dtype(key))
        stored = self._base.read(key)
        if key not in self._factors:
            return stored
        parts = self._factors[key]
        a, b = (self._adapter.read(parts[name]).astype(np.float32) for name in ("A", "B"))
        change = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
        if ".lora_embedding_" in parts["A"]:
            change = change.T
        merged = stored.astype(np.float32) + np.float32(self._scale(key, len(a))) * change.reshape(stored.shape)
        return merged.astype(stored.dtype)

    def _scale(self, key: str, rank: int) -> float:
        """PEFT's: alpha / rank, or alpha / sqrt(rank) of rank-stabilised LoRA; a module may have an alpha of its own."""
        module, alpha = key.removesuffix(".weight"), self._settings.get("lora_alpha", 8)
        for pattern, own in (self._settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = own
                break
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the base's and the adapter's, with the adapter's settings."""
        settings = self.sources[0].read_bytes()
        parts = (self._base.sha256.encode(), self._adapter.sha256.encode(), settings)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _without_adapter_name(key: str) -> str:
    """PEFT's names of wrapped modules as the base has them."""
    return re.sub(r"\.(base_layer|modules_to_save|default)(?=\.|$)", "", key)
