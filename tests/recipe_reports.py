"""A lab with reports that nobody measured."""

import json
from pathlib import Path

from benchmarks.recipe.lab import SMOKE, Lab


def make_lab(path: Path) -> Lab:
    return Lab(path / "root", SMOKE)


def write_report(lab: Lab, name: str, error: float) -> None:
    estimate = {"value": error, "low": error - 0.01, "high": error + 0.01}
    roles = [(role, steps) for role in ("teacher", "student") for steps in (10, 2, 1)]
    fidelity = [
        {
            "name": role,
            "num_steps": steps,
            "frames": frames,
            "error": estimate,
            "padded_error": error / 10,
            "episode_errors": [error**2, 4 * error**2],
            "episode_references": [1.0, 4.0],
        }
        for role, steps in roles
        for frames in ("all", "early")
    ]
    spread = [{"name": role, "num_steps": steps, "energy": 0.5, "spread_kept": 0.9} for role, steps in roles]
    measures = {"fidelity": fidelity, "distributions": spread, "consistency": {"ratio": 1.02}}
    (lab.results / name).mkdir(parents=True)
    (lab.results / name / "report.json").write_text(json.dumps({"measures": measures}))
