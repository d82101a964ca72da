"""What is wrong with the weights of a checkpoint: names, and dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxreflow.policy.saved import WEIGHTS
from jaxreflow.support.safetensors_file import TensorFile

from .dtypes import rounded_before, rounded_by_lerobot
from .finding import BY_FIX, Finding
from .inspection import group_keys
from .repair import wrappers


def names(file: TensorFile) -> Iterator[Finding]:
    """What wrappers have left in the names of the tensors."""
    wrapped = sum(key != stored for key, stored in file.stored_keys.items())
    if wrapped:
        yield Finding(
            "error",
            f"{WEIGHTS}: {wrapped} names hold `{wrappers(file)}`",
            "the policy was saved from inside torch.compile, DataParallel or PEFT: LeRobot finds these tensors under no name "
            "it knows",
            f"take it out of the names: {_repair(file)}",
        )


def dtypes(file: TensorFile, used: set[str]) -> Iterator[Finding]:
    """Dtypes, of the tensors that are `used`, that LeRobot would not write."""
    kinds = {name: {str(file.dtype(key)) for key in keys} for name, keys in group_keys(used).items()}
    text, vision = kinds.get("text model", set()), kinds.get("vision tower", set())
    if text == {"bfloat16"} and vision == {"float32"}:
        yield Finding(
            "note",
            f"{WEIGHTS}: the vision tower is stored in float32, the text model in bfloat16",
            "the policy was trained with load_vlm_weights false; LeRobot casts on loading, so only the file is larger",
        )
    odd = {f"{name}: {dtype}" for name, found in kinds.items() for dtype in found - {"float32", "bfloat16"}}
    if len(vision) > 1:
        odd.add(f"vision tower: {' and '.join(sorted(vision))}")
    if odd:
        yield Finding(
            "warning",
            f"{WEIGHTS}: unusual dtypes: {'; '.join(sorted(odd))}",
            "LeRobot writes float32 and bfloat16, one of them per tower; another tool has changed this file",
            f"compare its actions with those of the checkpoint it came from; to store what LeRobot makes of it: {_repair(file)}",
        )


def module_dtypes(file: TensorFile, own: dict[str, np.dtype]) -> Iterator[Finding]:
    """Tensors in other dtypes than those of LeRobot's modules, `own`."""
    if wide := rounded_by_lerobot(file, own):
        yield Finding(
            "warning",
            f"{WEIGHTS}: {_counts(wide)} stored in float32, where LeRobot's modules are bfloat16",
            "LeRobot rounds them on loading, so the policy acts otherwise there than these values do here; and the file is "
            "larger than it need be",
            f"store them as LeRobot loads them: {_repair(file)}",
        )
    if narrow := rounded_before(file, own):
        yield Finding(
            "warning",
            f"{WEIGHTS}: {_counts(narrow)} stored in bfloat16, where LeRobot's modules are float32",
            "another tool has rounded them; what it took away is not in this file",
            "take the checkpoint that this one was made from, or compare their actions",
        )


def _counts(keys: list[str]) -> str:
    return ", ".join(f"{name} ({len(found)} tensors)" for name, found in group_keys(keys).items())


def _repair(file: TensorFile) -> str:
    """What repairs a file of weights: shards and adapters are left as they are."""
    if file.sources == (file.path,):
        return BY_FIX
    return (
        "save it in one file by SmolVLAPolicy.from_pretrained(DIR).save_pretrained(NEW), then run "
        "`python -m convert doctor NEW --fix`"
    )
