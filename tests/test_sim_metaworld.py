"""Meta-World: layouts by seed, experts, pictures, recording and evaluation by the command line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.sim.__main__ import main
from jaxreflow.sim.metaworld import MetaWorldEnv
from jaxreflow.sim.metaworld_experts import make_expert
from jaxreflow.sim.results import read_results

TEACHER = "tests/assets/teacher"
pytestmark = pytest.mark.filterwarnings("ignore:Constant")


@pytest.fixture(scope="module")
def gl() -> None:
    """Skips where nothing can be rendered; on a CI machine that is an error."""
    try:
        env = MetaWorldEnv("handle-press-v3")
        env.render()
        env.close()
    except SimulationError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def unseen(task: str, max_steps: int = 200) -> MetaWorldEnv:
    env = MetaWorldEnv(task, max_steps=max_steps)
    env.renders = False
    return env


def succeeds(env: MetaWorldEnv, seed: int) -> tuple[bool, np.ndarray]:
    """Whether the expert succeeds, and the hand's path."""
    expert = make_expert(env.task, np.random.default_rng(seed))
    observation, _ = env.reset(seed=seed)
    path = [observation["agent_pos"][:3]]
    while True:
        observation, _, success, truncated, info = env.step(expert(env.raw_observation))
        path.append(observation["agent_pos"][:3])
        if success or truncated:
            assert info["is_success"] == success
            return success, np.array(path)


@pytest.mark.parametrize("task", ["button-press-topdown-v3", "handle-press-v3", "drawer-close-v3"])
def test_scripted_expert_succeeds(task: str) -> None:
    env = unseen(task)
    assert all(succeeds(env, seed)[0] for seed in range(3))


def test_wall_is_passed_on_both_sides_and_the_side_does_not_show_at_first() -> None:
    env = unseen("wall-detour")
    runs = [succeeds(env, seed) for seed in range(6)]
    assert all(success for success, _ in runs)
    widest = [path[np.abs(path[:, 0]).argmax(), 0] for _, path in runs]
    assert min(widest) < -0.2
    assert max(widest) > 0.2
    # Straight on for at least three steps: sideways, the hand moves by less than a centimetre.
    assert all(np.abs(path[:4, 0] - path[0, 0]).max() < 0.01 for _, path in runs)


def test_wall_stops_who_goes_straight_on() -> None:
    env = unseen("wall-detour", max_steps=120)
    env.reset(seed=1)
    for _ in range(120):
        goal = env.raw_observation[-3:] - env.raw_observation[:3]
        *_, success, truncated, _ = env.step(np.append(np.clip(10 * goal, -1, 1), 0))
    assert truncated
    assert not success
    assert env.raw_observation[1] < 0.75


def test_layout_depends_on_the_seed_only() -> None:
    env = unseen("wall-detour")
    first = env.reset(seed=3)[0]["agent_pos"], env.raw_observation
    other = env.reset(seed=4)[0]["agent_pos"], env.raw_observation
    again = unseen("wall-detour").reset(seed=3)[0]["agent_pos"]
    np.testing.assert_allclose(again, first[0], atol=1e-9)
    assert np.abs(other[1] - first[1]).max() > 0.01


def test_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="no task 'juggle-v3'; expected one of wall-detour"):
        MetaWorldEnv("juggle-v3")


@pytest.mark.usefixtures("gl")
def test_pictures_show_the_scene() -> None:
    env = MetaWorldEnv("handle-press-v3", size=48)
    first = env.reset(seed=0)[0]["pixels"]
    for _ in range(15):
        last = env.step(np.array([1.0, 0, 0, 0]))[0]["pixels"]
    env.close()
    assert first.shape == (48, 48, 3)
    assert first.std() > 20
    assert np.abs(last.astype(int) - first).mean() > 1


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_recorded_demonstrations_are_a_dataset(tmp_path: Path) -> None:
    env = "metaworld:handle-press-v3,wall-detour"
    args = ["record", "--env", env, "--episodes", "1", "1", "--out", str(tmp_path / "data"), "--workers", "1"]
    assert main([*args, "--options.size", "48"]) == 0
    dataset = LeRobotDataset.open(tmp_path / "data")
    assert [e.task for e in dataset.episodes] == ["Press a handle down", "Bypass a wall and reach a goal"]
    last = dataset.frame(dataset.episodes[0].last, dataset.camera_keys)
    assert last["observation.image"].shape == (48, 48, 3)
    actions = dataset.action_chunk(dataset.episodes[0].first, 20)[0]
    assert np.abs(actions).max() <= 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_policies_are_compared_and_results_are_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    args = ["--policy", TEACHER, TEACHER, "--num-steps", "2", "1", "--n-action-steps", "25", "--episodes", "2"]
    args += ["--env", "metaworld:handle-press-v3", "--parallel", "2", "--out", str(out), "--options.max-steps", "60"]
    assert main([*args, "--video", str(tmp_path / "video")]) == 0
    table = capsys.readouterr().out
    first, second = read_results(out)
    assert (first.num_steps, second.num_steps) == (2, 1)
    assert first.sha256 == second.sha256
    assert len(first.success) == len(first.steps) == 2
    assert len(list((tmp_path / "video").glob("*.mp4"))) >= 2
    assert "| teacher@2 | 25 |" in table
    before = out.read_text()
    assert main(args) == 0
    assert capsys.readouterr().out == table
    assert out.read_text() == before


def test_damaged_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    out.write_text(json.dumps({"policy": "x"}) + "\n")
    assert main(["--policy", TEACHER, "--env", "metaworld:handle-press-v3", "--out", str(out)]) == 1
    assert f"{out}:1" in capsys.readouterr().err
