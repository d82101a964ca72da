"""Aloha's TransferCube: places by seed, two ways to hand over, pictures, success and handover, recording."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.sim.__main__ import main
from jaxreflow.sim.aloha import GRACE, INSTRUCTIONS, AlohaEnv, StockEnv
from jaxreflow.sim.environment import EnvOptions


@pytest.fixture(scope="module")
def env() -> AlohaEnv:
    """One environment a process: gym-aloha keeps the cube's place in a global."""
    env = AlohaEnv("transfer-cube")
    env.renders = False
    return env


@pytest.fixture(scope="module")
def gl(env: AlohaEnv) -> None:
    """Skips where nothing can be rendered; on a CI machine that is an error."""
    try:
        env.render()
    except SimulationError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def demonstrate(env: AlohaEnv, seed: int) -> tuple[list[float], list[np.ndarray], dict]:
    """Rewards, actions, and what was said last."""
    expert = env.expert(np.random.default_rng(seed))
    env.reset(seed=seed)
    rewards, actions, over = [], [], False
    while not over:
        actions.append(expert())
        _, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        over = terminated or truncated
    return rewards, actions, info


def test_the_expert_hands_over_in_two_ways(env: AlohaEnv) -> None:
    runs = [demonstrate(env, seed) for seed in range(4)]
    assert all(info == {"is_success": True, "handover": True} for *_, info in runs)
    assert all(len(rewards) < 130 and max(rewards) == 4 for rewards, *_ in runs)
    # The left wrist turns by 90 degrees to one side or the other, and not before the way may show.
    wrists = np.array([actions[-1][5] for _, actions, _ in runs])
    assert {-1.0, 1.0} == set(np.sign(wrists))
    assert (np.abs(wrists) > 1.0).all()
    assert max(np.abs(actions).max() for _, actions, _ in runs) > 1.0, "targets reach beyond the declared [-1, 1]"


def test_success_is_gym_alohas_and_an_episode_goes_on_for_the_handover(env: AlohaEnv, monkeypatch) -> None:
    monkeypatch.setattr(env, "_left_grips", lambda: False)
    rewards, _, info = demonstrate(env, 0)
    assert info == {"is_success": True, "handover": False}
    assert len(rewards) == rewards.index(4) + 1 + GRACE
    monkeypatch.setattr(env, "_left_grips", lambda: True)
    rewards, _, info = demonstrate(env, 0)
    assert (rewards[-1], info["handover"]) == (4, True)


def test_the_cubes_place_depends_on_the_seed_only(env: AlohaEnv) -> None:
    places = []
    for seed in (3, 4, 3):
        env.reset(seed=seed)
        places.append(env.cube)
    np.testing.assert_array_equal(places[0], places[2])
    assert np.abs(places[0] - places[1]).max() > 0.01
    # gym-aloha's own ranges.
    assert all(0 <= x <= 0.2 and 0.4 <= y <= 0.6 for x, y, _ in places)


def test_a_robot_that_holds_stays_where_it_was_sent(env: AlohaEnv) -> None:
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.hold(), observation["agent_pos"])
    target = observation["agent_pos"] + 0.05
    env.step(target)
    np.testing.assert_array_equal(env.hold(), target)
    env.max_steps, steps = 5, env.max_steps
    over = [env.step(env.hold())[3] for _ in range(4)]
    env.max_steps = steps
    assert over == [False, False, False, True]


def test_an_episode_whose_physics_break_has_failed_and_the_next_one_is_as_ever(env: AlohaEnv) -> None:
    env.reset(seed=1)
    random = np.random.default_rng(0)
    for _ in range(env.max_steps):
        observation, reward, terminated, _, info = env.step(random.uniform(-300, 300, 14))
        if terminated:
            break
    assert terminated, "MuJoCo stands everything"
    assert (reward, info) == (0.0, {"is_success": False, "handover": False})
    assert np.isfinite(observation["agent_pos"]).all()
    *_, info = demonstrate(env, 0)
    assert info == {"is_success": True, "handover": True}


def test_mujoco_is_told_how_to_render_before_the_expert_imports_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    show = "import jaxreflow.sim.aloha_expert, mujoco.gl_context, os; print(os.environ['MUJOCO_GL'])"
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "egl"


def test_other_tasks_are_named() -> None:
    with pytest.raises(ConfigError, match="aloha has no task 'insertion'; expected transfer-cube"):
        AlohaEnv("insertion")


@pytest.mark.usefixtures("gl")
def test_pictures_show_the_cube(env: AlohaEnv) -> None:
    env.renders = True
    red = []
    for seed in (0, 1):
        picture = env.reset(seed=seed)[0]["pixels"]["top"].astype(int)
        assert picture.shape == (72, 96, 3), "the same view as 480 x 640"
        red.append(np.argwhere((picture[..., 0] > 150) & (picture[..., 1] < 90)).mean(0))
    env.renders = False
    assert np.abs(red[0] - red[1]).max() > 1
    options = EnvOptions(render="stock")
    assert AlohaEnv.cameras(options) == {"observation.images.top": (480, 640)}
    assert options.of("aloha").max_steps == 400


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_it_is_gym_alohas_environment_step_by_step() -> None:
    """Reset, positions, reward and pictures, beside gym-aloha's own environment with the same actions."""
    ours = AlohaEnv("transfer-cube", render="stock")
    ours.renders = False
    demonstrate(ours, 0)
    actions = demonstrate(ours, 0)[1]
    ours.renders = True
    runs = []
    for env in (ours, StockEnv("transfer_cube", obs_type="pixels_agent_pos")):
        # One after the other: gym-aloha keeps the cube's place in a global.
        seen = [env.reset(seed=0)[0]]
        rewards = []
        for i, action in enumerate(actions):
            if env is ours:
                ours.renders = i < 3
            observation, reward, *_ = env.step(action) if i < 3 or env is ours else step_without_pictures(env, action)
            seen.append({**observation, "pixels": dict(observation["pixels"])})
            rewards.append(reward)
        runs.append((seen, rewards))
    (own, own_rewards), (stock, stock_rewards) = runs
    assert own_rewards == stock_rewards
    assert max(own_rewards) == 4
    for mine, theirs in zip(own, stock, strict=True):
        np.testing.assert_array_equal(mine["agent_pos"], theirs["agent_pos"])
    for i in range(4):
        np.testing.assert_array_equal(own[i]["pixels"]["top"], stock[i]["pixels"]["top"])


def step_without_pictures(env: StockEnv, action: np.ndarray) -> tuple:
    """A step of gym-aloha's environment, whose three pictures a step take a second."""
    task = env._env.task
    task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": {"top": np.zeros(1)}}
    return env.step(action)


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_recorded_demonstrations_are_a_dataset_with_both_of_lerobots_instructions(tmp_path: Path, capsys) -> None:
    data = str(tmp_path / "data")
    args = ["record", "--env", "aloha:transfer-cube", "--episodes", "6", "--out", data, "--workers", "1"]
    assert main([*args, "--options.size", "48"]) == 0
    dataset = LeRobotDataset.open(tmp_path / "data")
    assert {episode.task for episode in dataset.episodes} == set(INSTRUCTIONS)
    assert dataset.camera_keys == ("observation.images.top",)
    frame = dataset.frame(dataset.episodes[0].last, dataset.camera_keys)
    assert frame["observation.images.top"].shape == (36, 48, 3)
    assert frame["observation.state"].shape == (14,)
    assert main(["record", "--env", "aloha:insertion", "--out", str(tmp_path / "no")]) == 1
    assert "expected transfer-cube" in capsys.readouterr().err
