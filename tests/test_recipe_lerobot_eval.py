"""Success rates by `lerobot-eval`: its batches, and the table beside `jaxreflow.sim`; a stand-in runs in its place."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from benchmarks.recipe import lerobot_eval
from benchmarks.recipe.lerobot_eval import EvalConfig, read_batches
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.sim.results import Result

POLICIES = Path("benchmarks/recipe/policies")
STAND_IN = """#!{python}
import json, pathlib, sys
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
policy = pathlib.Path(flags["policy.path"])
processor = json.loads((policy / "policy_preprocessor.json").read_text())
names = [step["config"]["tokenizer_name"] for step in processor["steps"] if "tokenizer_name" in step["config"]]
assert names == [str(policy / "vlm")] == [flags["policy.vlm_model_name"]], names
if flags["env.task"] == "door-open-v3":
    sys.exit("no such door")
assert (flags["env.type"], flags["env.task"]) == ("metaworld", "button-press-topdown-v3"), flags
seeds = range(int(flags["seed"]), int(flags["seed"]) + int(flags["eval.n_episodes"]))
success = [bool(seed % 2 or flags["policy.num_steps"] == "10") for seed in seeds]
out = pathlib.Path(flags["output_dir"])
out.mkdir()
(out / "eval_info.json").write_text(json.dumps({{"per_task": [{{"metrics": {{"successes": success}}}}]}}))
with open(pathlib.Path(__file__).parent / "calls", "a") as calls:
    print(flags["policy.num_steps"], flags["policy.n_action_steps"], flags["seed"], file=calls)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The `bin` of an environment with LeRobot 0.6.1."""
    (tmp_path / "bin").mkdir()
    for name, text in (("lerobot-eval", STAND_IN.format(python=sys.executable)), ("python", "#!/bin/sh\necho 0.6.1\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "bin" / "lerobot-eval"


def settings(program: Path, out: Path) -> EvalConfig:
    return EvalConfig(
        program, (POLICIES / "teacher", POLICIES / "student"), "metaworld:button-press-topdown-v3", (10, 1), episodes=4, batch=2,
        out=out,
    )  # fmt: skip


def test_batches_run_once_and_fill_the_page(program: Path, tmp_path: Path) -> None:
    config = settings(program, tmp_path / "docs")
    own = Result(
        policy="elsewhere/student", sha256="", num_steps=1, n_action_steps=10, env="metaworld", task="button-press-topdown-v3",
        options={}, seed=100_000, episodes=4, success=(0, 1, 1, 1),
    )  # fmt: skip
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "stock_pictures.jsonl").write_text(json.dumps(dataclasses.asdict(own)) + "\n")
    lerobot_eval.run(config)
    lerobot_eval.run(config)
    calls = (program.parent / "calls").read_text().splitlines()
    assert calls == ["10 10 100000", "10 10 100002", "1 10 100000", "1 10 100002"]
    batches = read_batches(tmp_path / "docs" / "results" / "lerobot_eval.jsonl")
    assert [batch.success for batch in batches] == [(1, 1), (1, 1), (0, 1), (0, 1)]
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| task | policy | executed | LeRobot 0.6.1 | jaxreflow.sim | the same as LeRobot 0.6.1 |" in page
    assert "| teacher@10 | 10 | 1.00 [0.51, 1.00] of 4 |  | 0 of 0 |" in page
    assert "| student@1 | 10 | 0.50 [0.15, 0.85] of 4 | 0.75 [0.30, 0.95] of 4 | 3 of 4 |" in page


def test_a_failure_shows_what_lerobot_says(program: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(settings(program, tmp_path), env="metaworld:door-open-v3")
    with pytest.raises(SimulationError, match="exit status 1: no such door"):
        lerobot_eval.run(config)


def test_bad_settings_are_refused(program: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a number for each policy: expected 2, found 1"):
        dataclasses.replace(settings(program, tmp_path), num_steps=(1,))
    with pytest.raises(ConfigError, match=r"multiple of --batch \(3\), found 4"):
        dataclasses.replace(settings(program, tmp_path), batch=3)
    with pytest.raises(ConfigError, match="found no nowhere"):
        lerobot_eval.run(settings(Path("nowhere"), tmp_path))
