"""Every command of the studies, and of the documents, is one that its program takes, so that none fails after hours."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipe import compact, latency
from benchmarks.recipe.__main__ import RecipeConfig, run
from benchmarks.recipe.lab import Lab
from benchmarks.recipe.lerobot_eval import EvalConfig
from benchmarks.recipe.miss import MissConfig
from benchmarks.recipe.see_first import SeeFirstConfig
from benchmarks.recipe.sides import SidesConfig
from benchmarks.recipe.snapflow import SnapFlowConfig
from jaxreflow.data.features import FeaturesConfig
from jaxreflow.evaluate.options import EvaluateConfig
from jaxreflow.run.flags import read_settings
from jaxreflow.sim.closed_loop import SimConfig
from jaxreflow.sim.record import RecordConfig
from jaxreflow.support.command_line import parse

CONFIGS = Path(__file__).parents[1] / "configs"
PROGRAMS: dict[str, type[Any]] = {
    "jaxreflow.sim": SimConfig,
    "jaxreflow.sim record": RecordConfig,
    "jaxreflow.data.features": FeaturesConfig,
    "jaxreflow.evaluate": EvaluateConfig,
    "benchmarks.recipe": RecipeConfig,
    "benchmarks.recipe.lerobot_eval": EvalConfig,
    "benchmarks.recipe.miss": MissConfig,
    "benchmarks.recipe.see_first": SeeFirstConfig,
    "benchmarks.recipe.sides": SidesConfig,
    "benchmarks.recipe.snapflow": SnapFlowConfig,
}


def understood(command: tuple[str | Path, ...]) -> Any:
    """The settings that a command gives to its program."""
    first, second, *rest = map(str, command)
    if first == "train.py":
        return read_settings(CONFIGS / f"{second}.py", rest)
    name = second
    if rest[0] == "record":
        name, rest = f"{name} record", rest[1:]
    return parse(PROGRAMS[name], rest, prog=name, about="")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | Path, ...]]:
    """What the labs would run; nothing does."""
    found: list[tuple[str | Path, ...]] = []

    monkeypatch.setattr(Lab, "run", lambda _lab, _name, _product, *command: found.append(command))
    return found


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(
    ("study", "least"), [("recipe", 100), ("rival", 20), ("aloha", 15), ("width", 20), ("compact", 25), ("latency", 3)]
)
def test_programs_take_every_command(
    study: Any, least: int, smoke: bool, commands: list, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(compact, "VLM", compact.VLM.absolute())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "write_latency", lambda *_: None)  # There is nothing to draw.
    run(RecipeConfig(study=study, smoke=smoke))
    assert len(commands) >= least
    for command in commands:
        understood(command)


def documented() -> list[tuple[str, str]]:
    """Page and words of the commands in blocks of code; a line that ends in a backslash goes on."""
    found = []
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        text = re.sub(r"\\\n\s*", " ", page.read_text())
        for line in re.findall(r"(?m)^(?: {4}|)python -m (.+)$", text):
            name = line.split()[0]
            if name in PROGRAMS and "..." not in line and "--help" not in line:
                # What stands in brackets may be left out, and a comment ends the command.
                found.append((page.name, re.sub(r"[][]", "", line.partition("  #")[0])))
    return found


def test_the_documents_have_commands_of_most_programs() -> None:
    names = {words.split()[0] for _, words in documented()}
    assert len(documented()) > 30
    assert names >= {"jaxreflow.sim", "jaxreflow.evaluate", "benchmarks.recipe", "benchmarks.recipe.lerobot_eval"}


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{page}-{words}") for page, words in documented()])
def test_programs_take_the_commands_of_the_documents(words: str) -> None:
    understood(("-m", *shlex.split(words)))
