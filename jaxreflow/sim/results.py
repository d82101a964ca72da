"""Closed-loop results: as JSON lines in a file, and as a table with intervals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import ConfigError
from jaxreflow.sim.intervals import mcnemar, paired_difference, wilson


@dataclasses.dataclass(frozen=True)
class Result:
    """One policy on one task: what was run, and each episode's success and number of steps."""

    policy: str
    sha256: str
    num_steps: int
    n_action_steps: int
    env: str
    task: str
    options: dict[str, Any]
    seed: int
    episodes: int
    success: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must be equal for a result to stand for a run; a policy is its weights, wherever they lie."""
        return (
            self.sha256,
            self.num_steps,
            self.n_action_steps,
            self.env,
            self.task,
            tuple(sorted(self.options.items())),
            self.seed,
            self.episodes,
        )

    @property
    def contender(self) -> tuple[str, int]:
        """The policy at its number of Euler steps."""
        return self.sha256, self.num_steps

    @property
    def label(self) -> str:
        """The policy's folder, or its run's where the folder has the name that all exports have."""
        path = Path(self.policy)
        parts = [part for part in path.parts if part not in ("pretrained_model", "checkpoints", "last")]
        return f"{parts[-1] if parts else path.name}@{self.num_steps}"


def read_results(path: Path) -> Iterator[Result]:
    """The results in a file, none if there is no such file; ConfigError names a damaged line."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            result = Result(**{**fields, "success": tuple(fields["success"]), "steps": tuple(fields["steps"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path}:{number}: no result of `python -m jaxreflow.sim` ({error!r}); remove the line"
            ) from error
        yield result


def append_result(path: Path, result: Result) -> None:
    """Adds a line to the file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def pooled(results: Sequence[Result]) -> np.ndarray:
    """Success of all episodes of all tasks, in the order of `results`."""
    return np.concatenate([np.array(result.success, np.bool_) for result in results])


def comparison_table(results: Sequence[Result]) -> str:
    """A Markdown table: a line per policy and `n_action_steps`, success with Wilson's 95 % interval on each task and over all.

    The last columns compare with the first policy at the same `n_action_steps`, on the same episodes: the difference with
    Newcombe's 95 % interval and its one-sided lower 95 % bound, and McNemar's exact p.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    reference = results[0].contender
    heads = ["policy", "n_action_steps", *tasks, "all", "difference", "lower bound", "McNemar p"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    for contender, executed in dict.fromkeys((r.contender, r.n_action_steps) for r in results):
        own = _cells(results, contender, executed)
        cells = [own[0].label, str(executed), *(_rate(pooled([result])) for result in own), _rate(pooled(own))]
        if contender == reference:
            cells += ["", "", ""]
        else:
            cells += _comparison(pooled(_cells(results, reference, executed)), pooled(own))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(results: Sequence[Result], contender: tuple[str, int], executed: int) -> list[Result]:
    return [r for r in results if r.contender == contender and r.n_action_steps == executed]


def _rate(success: np.ndarray) -> str:
    rate = wilson(int(success.sum()), len(success))
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _comparison(reference: np.ndarray, own: np.ndarray) -> list[str]:
    difference = paired_difference(reference, own)
    bound = paired_difference(reference, own, confidence=0.90).low
    return [
        f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
        f"{bound:+.3f}",
        f"{mcnemar(reference, own):.2g}",
    ]
