"""The parity table: bounds by quantity, what was measured, and its rendering.

python -m tests.parity.report        prints build/parity.json as markdown, the first table for docs/parity.md
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

MEASUREMENTS = Path("build/parity.json")
VERSIONS = ("0.4.4", "0.6.1")
# By version of LeRobot, variant and quantity.
Measured = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """How one compared quantity is measured: `bound` holds for the largest error, divided by

    - "exact": nothing, and any difference is 1;
    - "unit": the largest of 1 and the reference's magnitude;
    - "magnitude": the reference's largest magnitude, per tensor;
    - "norm": the reference's Euclidean norm, errors taken as a norm too.
    """

    about: str
    scale: str
    bound: float


QUANTITIES = {
    "images": Quantity("resized, padded images", "unit", 1e-6),
    "image_mask": Quantity("image masks", "exact", 0.0),
    "tokens": Quantity("tokens and their mask", "exact", 0.0),
    "state": Quantity("normalised, padded state", "unit", 1e-6),
    "actions": Quantity("normalised, padded actions", "unit", 1e-6),
    "vision": Quantity("image tokens", "magnitude", 1e-5),
    "context": Quantity("context K and V, per layer, valid rows", "magnitude", 1e-5),
    "velocity": Quantity("velocity at given t", "magnitude", 1e-5),
    "sample": Quantity("samples of 1, 2 and 10 steps, given noise", "magnitude", 1e-4),
    "chunk": Quantity("the policy's 10-step chunk, in dataset units", "magnitude", 1e-4),
    "guided_chunk": Quantity("chunks of 1, 2, 5, 10 steps with real-time chunking", "magnitude", 1e-4),
    "loss": Quantity("loss, both reductions", "magnitude", 1e-6),
    "gradient": Quantity("gradient of every trainable tensor", "magnitude", 1e-4),
    "update": Quantity("clip, AdamW and schedule on given gradients", "magnitude", 1e-6),
    "trained": Quantity("change of weights over 5 whole steps", "norm", 1e-2),
    "train_loss": Quantity("losses of these 5 steps", "magnitude", 1e-4),
    "shifted_vision": Quantity("image tokens, shifted positions", "magnitude", 1e-5),
    "shifted_chunk": Quantity("action chunk, shifted positions", "magnitude", 1e-4),
    "bfloat16_velocity": Quantity("velocity, bfloat16 compute against float32", "norm", 3e-2),
    "bfloat16_chunk": Quantity("10-step chunk, bfloat16 compute against float32", "norm", 3e-2),
    "student_float32": Quantity("exported student in LeRobot, cast to float32", "magnitude", 1e-4),
    "student_stored": Quantity("exported student in LeRobot, stored dtypes", "norm", 3e-2),
}


def relative_error(found: np.ndarray, expected: np.ndarray, scale: str) -> float:
    """Error of `found` as `Quantity` defines it; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    if scale == "exact":
        return float(not np.array_equal(found, expected))
    difference, reference = found.astype(np.float64) - expected, expected.astype(np.float64)
    if not np.isfinite(difference).all():
        return float("inf")
    if scale == "norm":
        return float(np.linalg.norm(difference) / max(np.linalg.norm(reference), 1e-30))
    magnitude = max(float(np.abs(reference).max(initial=0.0)), 1.0 if scale == "unit" else 1e-30)
    return float(np.abs(difference).max(initial=0.0) / magnitude)


def number(value: float) -> str:
    """A bound or error in short."""
    return "exact" if value == 0.0 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def read() -> Measured:
    """What was measured, by LeRobot's version, variant and quantity; empty before the first comparison."""
    kept = json.loads(MEASUREMENTS.read_text()) if MEASUREMENTS.is_file() else {}
    return {version: kept[version] for version in VERSIONS if version in kept}


def keep(version: str, measured: dict[str, dict[str, float]]) -> None:
    """Replaces what was measured with this version of LeRobot, and keeps the other versions."""
    MEASUREMENTS.parent.mkdir(exist_ok=True)
    MEASUREMENTS.write_text(json.dumps({**read(), version: measured}, indent=1) + "\n")


def render(measured: Measured) -> str:
    """Markdown tables: the worst error by quantity and version, then for each version all errors by variant."""
    columns = [f"{version}: variants | largest error | of variant" for version in measured]
    lines = ["| quantity | bound | " + " | ".join(columns) + " |", "| --- | --- |" + " --- |" * 3 * len(columns)]
    for name, quantity in QUANTITIES.items():
        cells = [_worst(name, rows) for rows in measured.values()]
        if any(cells):
            filled = [cell or "0 | | -" for cell in cells]
            lines.append(f"| {quantity.about} | {number(quantity.bound)} | " + " | ".join(filled) + " |")
    for version, rows in measured.items():
        names = [name for name in QUANTITIES if any(name in row for row in rows.values())]
        lines += ["", f"| LeRobot {version} | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
        for variant, row in rows.items():
            lines.append(f"| {variant} | " + " | ".join(number(row[n]) if n in row else "" for n in names) + " |")
    return "\n".join(lines)


def _worst(name: str, rows: dict[str, dict[str, float]]) -> str:
    """How many variants measured a quantity, its largest error and whose it is; empty where no variant did."""
    errors = {variant: row[name] for variant, row in rows.items() if name in row}
    if not errors:
        return ""
    worst = max(errors, key=lambda variant: errors[variant])
    return f"{len(errors)} | {number(errors[worst])} | {worst if errors[worst] else '-'}"


def main() -> None:
    measured = read()
    if not measured:
        raise SystemExit(f"{MEASUREMENTS} is missing: run `make parity` first")
    print(render(measured))


if __name__ == "__main__":
    main()
