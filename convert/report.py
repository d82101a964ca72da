"""What `inspect` and `doctor` found, as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .doctor import Finding
from .inspection import Component, Inspection

# The fields of config.json that say what the policy is; `--json` prints all.
CONFIG_FIELDS = (
    "vlm_model_name",
    "load_vlm_weights",
    "num_vlm_layers",
    "num_expert_layers",
    "expert_width_multiplier",
    "attention_mode",
    "self_attn_every_n_layers",
    "chunk_size",
    "n_action_steps",
    "num_steps",
    "max_state_dim",
    "max_action_dim",
    "resize_imgs_with_padding",
    "empty_cameras",
    "add_image_special_tokens",
    "prefix_length",
    "tokenizer_max_length",
    "adapt_to_pi_aloha",
    "train_expert_only",
    "freeze_vision_encoder",
    "train_state_proj",
)
_LARGEST = 3
_FEW = 16


def format_inspection(found: Inspection, *, every_shape: bool = False) -> str:
    """The report; of each component the largest tensors, or all of them."""
    parts = [_totals(found), _components(found), _shapes(found, every_shape), _config(found), _statistics(found)]
    sections = [*map(list, parts), [f"problem: {problem}" for problem in found.problems]]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _totals(found: Inspection) -> Iterator[str]:
    share = 100 * found.trainable / found.parameters
    yield found.directory
    yield f"{found.parameters:,} parameters, {found.trainable:,} trainable ({share:.2f} %), {found.tensors:,} tensors"
    yield f"model.safetensors: {found.bytes:,} bytes, sha256 {found.sha256}, metadata {found.metadata or 'none'}"


def _components(found: Inspection) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("component", "tensors", "parameters", "trainable", "dead weight", "dtypes")]
    rows += [_row(part) for part in found.components]
    yield from _table(rows)
    yield ""
    yield f"dead weight: {len(found.dead)} tensors that nothing reads, in training or acting; they stay in the file:"
    yield "  " + ", ".join(_short(key) for key in found.dead)


def _row(part: Component) -> tuple[str, ...]:
    dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in part.dtypes.items())
    counts = (f"{n:,}" if n else "-" for n in (part.parameters, part.trainable, part.dead))
    return (part.name, f"{part.tensors:,}", *counts, dtypes)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, len(row) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _shapes(found: Inspection, every: bool) -> Iterator[str]:
    yield "tensors (layers alike as *)" if every else "largest tensors (all with --shapes)"
    for part in found.components:
        lines = list(part.shapes.items())
        if not every:
            lines = sorted(lines, key=lambda line: -_size(line[1]))[:_LARGEST]
        for name, line in lines:
            layers = f"{line['layers']} x " if line["layers"] else ""
            yield f"  {_short(name)}  {layers}{line['shape']} {line['dtype']}"


def _size(line: dict[str, Any]) -> int:
    size = 1
    for n in line["shape"]:
        size *= n
    return size


def _short(key: str) -> str:
    return key.removeprefix("model.").removeprefix("vlm_with_expert.").removesuffix(".weight")


def _config(found: Inspection) -> Iterator[str]:
    yield "config"
    for kind in ("input_features", "output_features"):
        for key, feature in found.policy[kind].items():
            mode = found.policy["normalization_mapping"].get(feature["type"], "IDENTITY")
            yield f"  {key}: {feature['type']} {feature['shape']}, {mode}"
    for name in CONFIG_FIELDS:
        if name in found.policy:
            yield f"  {name}: {found.policy[name]}"
    kinds = found.network["expert_layer_kinds"]
    yield f"  expert layers: {len(kinds)} of width {found.network['expert_hidden_size']} ({', '.join(kinds)})"


def _statistics(found: Inspection) -> Iterator[str]:
    for file, features in found.statistics.items():
        yield f"statistics in {file}"
        for key, group in features.items():
            names = [name for name in group if name != "mode"]
            if group["mode"] == "IDENTITY":
                yield f"  {key}: not used ({', '.join(names)})"
                continue
            yield f"  {key}: {group['mode']}{'' if names else ', no statistics'}"
            for name in names:
                yield f"    {name:5} {_numbers(group[name])}"


def _numbers(values: list[float]) -> str:
    if len(values) <= _FEW:
        return " ".join(f"{value:.4g}" for value in values)
    return f"{min(values):.4g} .. {max(values):.4g} ({len(values)} values)"


def format_findings(directory: Path, findings: list[Finding], repaired: list[str]) -> str:
    """The findings as text, errors first."""
    lines = [f"repaired: {what}" for what in repaired]
    order = ("error", "warning", "note")
    for finding in sorted(findings, key=lambda finding: order.index(finding.severity)):
        lines += ["", f"{finding.severity}: " + finding.what.replace("\n", "\n  ")]
        lines += [f"  means: {finding.means}"] if finding.means else []
        lines += [f"  do: {finding.do}"] if finding.do else []
    count = sum(finding.severity != "note" for finding in findings)
    verdict = f"{count} finding{'' if count == 1 else 's'}" if count else "nothing is wrong"
    return "\n".join([*lines, "", f"{directory}: {verdict}"]).lstrip("\n")
