"""Success rates by `lerobot-eval`: its batches, and the table beside `jaxreflow.sim`; a stand-in runs in its place."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.recipe import lerobot_eval
from benchmarks.recipe.lerobot_eval import EvalConfig, read_batches
from jaxreflow.errors import CheckpointError, ConfigError, SimulationError
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.sim.results import Result, append_result

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
def program(tmp_path: Path, monkeypatch) -> Path:
    """The `bin` of an environment with LeRobot 0.6.1; `jaxreflow.sim` runs nothing."""
    (tmp_path / "bin").mkdir()
    for name, text in (("lerobot-eval", STAND_IN.format(python=sys.executable)), ("python", "#!/bin/sh\necho 0.6.1\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(lerobot_eval, "run_trials", lambda config: "")
    return tmp_path / "bin" / "lerobot-eval"


def settings(program: Path, out: Path) -> EvalConfig:
    return EvalConfig(
        program, (POLICIES / "teacher", POLICIES / "student"), "metaworld:button-press-topdown-v3", (10, 1), episodes=4, batch=2,
        out=out / "docs",
    )  # fmt: skip


def calls(program: Path) -> list[str]:
    return (program.parent / "calls").read_text().splitlines()


def own_result(policy: Path, options: dict, **changes) -> Result:
    """A result of `jaxreflow.sim`."""
    fields = {
        "policy": "elsewhere", "sha256": load_saved_policy(policy).tensors.sha256, "num_steps": 1, "n_action_steps": 10,
        "env": "metaworld", "task": "button-press-topdown-v3", "options": options, "seed": 100_000, "episodes": 4,
        "success": (0, 1, 1, 1),
    }  # fmt: skip
    return Result(**{**fields, **changes})


def test_episodes_run_once_and_fill_the_page(program: Path, tmp_path: Path) -> None:
    config = settings(program, tmp_path)
    stock = {"render": "stock", "max_steps": 500}
    # Only the first has the same weights, pictures, length and timing as LeRobot's episodes.
    append_result(tmp_path / "docs" / "results" / "stock_pictures.jsonl", own_result(POLICIES / "student", stock))
    for other in (
        own_result(POLICIES / "teacher", stock),
        own_result(POLICIES / "student", {"render": "fast", "max_steps": 500}),
        own_result(POLICIES / "student", {"render": "stock", "max_steps": 200}),
        own_result(POLICIES / "student", stock, delay=20, execution="asynchronous"),
    ):
        append_result(tmp_path / "docs" / "results" / "stock_pictures.jsonl", other)
    lerobot_eval.evaluate(config)
    lerobot_eval.evaluate(config)
    assert calls(program) == ["10 10 100000", "10 10 100002", "1 10 100000", "1 10 100002"]
    batches = read_batches(tmp_path / "docs" / "results" / "lerobot_eval.jsonl")
    assert [batch.success for batch in batches] == [(1, 1), (1, 1), (0, 1), (0, 1)]
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| task | policy | executed | LeRobot 0.6.1 | jaxreflow.sim | the same as LeRobot 0.6.1 |" in page
    assert "| teacher@10 | 10 | 1.00 [0.51, 1.00] of 4 |  | 0 of 0 |" in page
    assert "| student@1 | 10 | 0.50 [0.15, 0.85] of 4 | 0.75 [0.30, 0.95] of 4 | 3 of 4 |" in page


def test_more_episodes_in_larger_batches_run_only_what_is_missing(program: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(settings(program, tmp_path), policy=(POLICIES / "teacher",), num_steps=(10,))
    lerobot_eval.evaluate(dataclasses.replace(config, seed=100_003, episodes=1))
    lerobot_eval.evaluate(dataclasses.replace(config, episodes=9, batch=4))
    assert calls(program) == ["10 10 100003", "10 10 100000", "10 10 100004", "10 10 100008"]
    batches = read_batches(tmp_path / "docs" / "results" / "lerobot_eval.jsonl")
    assert [len(batch.success) for batch in batches] == [1, 3, 4, 1]
    assert "of 9 |" in (tmp_path / "docs" / "results.md").read_text()


def test_policies_are_told_apart_by_their_weights(program: Path, tmp_path: Path) -> None:
    """Their folders may have one name, and what lies in a folder may change."""
    for name in ("teacher", "student"):
        shutil.copytree(POLICIES / name, tmp_path / name / "pretrained_model")
    first, second = (tmp_path / name / "pretrained_model" for name in ("teacher", "student"))
    config = dataclasses.replace(settings(program, tmp_path), policy=(first, second), num_steps=(1,), episodes=2)
    lerobot_eval.evaluate(config)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page.count("| teacher@1 | 10 |") == page.count("| student@1 | 10 |") == 1
    shutil.copyfile(second / "model.safetensors", first / "model.safetensors")
    first.rename(first.parent / "moved")
    lerobot_eval.evaluate(dataclasses.replace(config, policy=(first.parent / "moved",)))
    assert len(calls(program)) == 2, "these weights have run"
    shutil.copyfile(POLICIES / "teacher" / "model.safetensors", second / "model.safetensors")
    lerobot_eval.evaluate(dataclasses.replace(config, policy=(second,), seed=100_002))
    assert len(calls(program)) == 3


def test_versions_before_0_6_have_episodes_of_their_own(program: Path, tmp_path: Path) -> None:
    (program.parent / "python").write_text("#!/bin/sh\necho 0.4.4\n")
    lerobot_eval.evaluate(settings(program, tmp_path))
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| executed | LeRobot 0.4.4 | jaxreflow.sim |\n" in page
    (program.parent / "python").write_text("#!/bin/sh\necho 0.10.0\n")
    lerobot_eval.evaluate(settings(program, tmp_path))
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| LeRobot 0.10.0 | LeRobot 0.4.4 | jaxreflow.sim | the same as LeRobot 0.10.0 |\n" in page


def test_jaxreflow_runs_the_same_episodes_with_the_same_pictures(program: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(lerobot_eval, "run_trials", asked.append)
    lerobot_eval.evaluate(settings(program, tmp_path))
    (config,) = asked
    assert (config.num_steps, config.n_action_steps, config.episodes, config.seed) == ((10, 1), (10,), 4, 100_000)
    assert (config.options.render, config.options.max_steps) == ("stock", 500)
    assert config.out == tmp_path / "docs" / "results" / "stock_pictures.jsonl"


def test_a_failure_shows_what_lerobot_says(program: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(settings(program, tmp_path), env="metaworld:door-open-v3")
    with pytest.raises(SimulationError, match="exit status 1: no such door"):
        lerobot_eval.evaluate(config)
    program.write_text(program.read_text().replace('"successes": success}', '"successes": success[1:]}'))
    with pytest.raises(SimulationError, match="asked for 2 episodes, and told of 1"):
        lerobot_eval.evaluate(settings(program, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": (1, 2, 3)}, r"one for each of the 2 policies, found \(1, 2, 3\)"),
        ({"num_steps": (10, 0)}, r"--num-steps must be at least 1, found \(10, 0\)"),
        ({"batch": 0}, "--batch must be at least 1, found 0"),
        ({"episodes": 0}, "--episodes must be at least 1, found 0"),
        ({"n_action_steps": 0}, "--n-action-steps must be at least 1, found 0"),
        ({"env": "metaworld:reach-v3,push-v3"}, "expected one task that LeRobot has"),
        (
            {"env": "metaworld:wall-detour"},
            "LeRobot has, as metaworld:button-press-topdown-v3, found 'metaworld:wall-detour'",
        ),
        ({"seed": -5}, "--seed must be at least 0, found -5"),
    ],
)
def test_bad_settings_are_refused(program: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(settings(program, tmp_path), **changes)


@pytest.mark.parametrize("name", ["AlohaTransferCube-v0", "insertion"])
def test_a_task_that_the_simulation_does_not_have_is_refused_before_lerobot_runs(
    program: Path, tmp_path: Path, name: str
) -> None:
    config = dataclasses.replace(settings(program, tmp_path), env=f"aloha:{name}")
    with pytest.raises(ConfigError, match=f"aloha has no task '{name}'; expected transfer-cube"):
        lerobot_eval.evaluate(config)
    assert not (program.parent / "calls").exists()
    assert not (tmp_path / "docs").exists()


def test_missing_and_damaged_files_are_named(program: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no nowhere"):
        lerobot_eval.evaluate(settings(Path("nowhere"), tmp_path))
    with pytest.raises(CheckpointError, match="nowhere"):
        lerobot_eval.evaluate(dataclasses.replace(settings(program, tmp_path), policy=(Path("nowhere"),) * 2))
    results = tmp_path / "docs" / "results" / "lerobot_eval.jsonl"
    results.parent.mkdir(parents=True)
    results.write_text('{"lerobot": "0.6.1", "ru')
    with pytest.raises(ConfigError, match=r"lerobot_eval.jsonl:1: no batch of `lerobot-eval`.*remove the line"):
        lerobot_eval.evaluate(settings(program, tmp_path))
    (program.parent / "python").write_text("#!/bin/sh\necho no package lerobot >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"environment with LeRobot, found none in .*: no package lerobot"):
        lerobot_eval.evaluate(settings(program, tmp_path))
    (program.parent / "python").unlink()
    with pytest.raises(ConfigError, match=r"in the bin of an environment, found no .*bin/python"):
        lerobot_eval.evaluate(settings(program, tmp_path))
