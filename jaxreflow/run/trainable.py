"""What a `--trainable` says: parts of the network that are trained themselves, and parts of which adapters are trained."""

from __future__ import annotations

import dataclasses

from jaxreflow.errors import ConfigError
from jaxreflow.model.params import PARTS
from jaxreflow.training.lora import LoraConfig

AS_POLICY, BY_ADAPTERS = "as-policy", ":lora"
# Of a student with the network of its teacher, and of one with a network of its own.
_DEFAULT, _DEFAULT_COMPACT = "expert", "expert+connector+language"


def parts_of(trainable: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `PARTS` of the network that a `--trainable` names: those that are trained themselves, and those by adapters."""
    parts = trainable.split("+")
    names = [part.removesuffix(BY_ADAPTERS) for part in parts]
    if "expert" not in names or not set(names) <= set(PARTS) or len(set(names)) < len(names):
        others = ", ".join(part for part in PARTS if part != "expert")
        raise ConfigError(
            f"--trainable {trainable}: expected {AS_POLICY}, or expert and, joined by +, any of {others}, such as "
            f"expert+connector+language; {BY_ADAPTERS} behind a part trains adapters of it"
        )
    return tuple(part for part in parts if part in PARTS), tuple(
        name for name, part in zip(names, parts, strict=True) if part not in PARTS
    )


def adapters_of(trainable: str | None, lora: LoraConfig) -> LoraConfig:
    """`lora` with the targets that a `--trainable` names, if it names any."""
    parts = () if trainable in (None, AS_POLICY) else parts_of(trainable)[1]
    targets = tuple(name for part in parts for name in PARTS[part])
    return dataclasses.replace(lora, targets=targets) if targets else lora


def check_trainable(trainable: str | None, lora: LoraConfig) -> None:
    """ConfigError for a `--trainable` that names no parts of the network, or does not go with `lora`."""
    if trainable is None:
        return
    by_adapters = trainable != AS_POLICY and bool(parts_of(trainable)[1])
    if by_adapters and not lora.rank:
        raise ConfigError(f"--trainable {trainable} trains adapters, whose --lora.rank is missing: give it, such as 16")
    if by_adapters and lora.targets != LoraConfig().targets:
        raise ConfigError(
            f"--trainable {trainable} and --lora.targets both say which layers have adapters: leave one of them out"
        )
    if lora.rank and not by_adapters and trainable != "expert":
        raise ConfigError(
            f"--trainable {trainable} and --lora.rank {lora.rank} exclude each other: with adapters, --lora.targets says what "
            f"is trained; or say which parts have them, such as expert+language{BY_ADAPTERS}"
        )


def whole_parts(trainable: str | None, lora: LoraConfig, *, compact: bool) -> tuple[str, ...] | None:
    """The parts that are trained themselves; none with `--lora.targets`; None: what the policy's config says."""
    if trainable == AS_POLICY:
        return None
    if lora.rank and not (trainable and parts_of(trainable)[1]):
        return ()
    return parts_of(trainable or (_DEFAULT_COMPACT if compact else _DEFAULT))[0]
