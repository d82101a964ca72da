"""A simulator of one's own: one small class is enough to record demonstrations and to run a policy in closed loop."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim import closed_loop, environment, record
from jaxreflow.sim.closed_loop import SimConfig
from jaxreflow.sim.environment import ActionChunks, EnvOptions, Recording, make_env
from jaxreflow.sim.record import RecordConfig
from jaxreflow.sim.results import read_results

POLICY = "tests/assets/teacher"


class PointEnv(gymnasium.Env):
    """A point that has to move to the right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # gymnasium's own declaration
    render_mode = "rgb_array"
    joints = slice(2)
    instructions = ()
    default_max_steps = 30
    also_reports = ()
    recording = Recording(
        robot_type="point", state_names=("x", "y", "a", "b"), action_names=("dx", "dy", "da", "db"),
        disturbed=(1.0, 1.0, 0.0, 0.0), disturbance=0.01, tail=2,
    )  # fmt: skip
    breaks = False

    def __init__(self, task: str, *, render: str, size: int, max_steps: int) -> None:
        if task != "right":
            raise ConfigError(f"--env: point has no task {task!r}; expected right")
        self.task_description, self.max_steps = "Go right", max_steps
        self._picture = np.full((size, size, 3), 9 if render == "fast" else 10, np.uint8)
        self._place, self._steps = np.zeros(4), 0
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Box(0, 255, self._picture.shape, np.uint8),
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    @staticmethod
    def cameras(options: EnvOptions) -> dict[str, tuple[int, int]]:
        return {"observation.image": (options.size, options.size)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed, options=options)
        self._place, self._steps = np.zeros(4), 0
        return self._seen(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict]:
        self._place, self._steps = self._place + action, self._steps + 1
        success = bool(self._place[0] > 1)
        over = success or self.breaks
        return self._seen(), 0.0, over, not over and self._steps >= self.max_steps, {"is_success": success}

    def hold(self) -> np.ndarray:
        return np.zeros(4)

    def expert(self, random: np.random.Generator) -> Callable[[], np.ndarray]:
        speed = random.uniform(0.1, 0.2)
        return lambda: np.array([speed, 0.0, 0.0, 0.0])

    def _seen(self) -> dict[str, Any]:
        return {"pixels": self._picture, "agent_pos": self._place}


@pytest.fixture
def point(monkeypatch) -> None:
    """The name under which it is known, without processes of its own, which would not know it."""
    monkeypatch.setattr(environment, "ENVIRONMENTS", {"point": f"{__name__}:PointEnv"})
    monkeypatch.setattr(record, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(closed_loop, "parallel_envs", _here)


class _InThisProcess(ThreadPoolExecutor):
    def __init__(self, workers: int, mp_context: Any) -> None:  # noqa: ARG002  # as of the pool in whose place it stands
        super().__init__(workers)


@contextlib.contextmanager
def _here(name: str, task: str, options: EnvOptions, count: int, length: int) -> Iterator[SyncVectorEnv]:
    make = [lambda: ActionChunks(make_env(name, task, options), length)] * count
    with contextlib.closing(SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)) as envs:
        yield envs


@pytest.mark.usefixtures("point")
def test_it_is_recorded_and_run(tmp_path: Path) -> None:
    record.record(RecordConfig("point:right", tmp_path / "data", episodes=(3,), workers=1))
    dataset = LeRobotDataset.open(tmp_path / "data")
    assert [episode.task for episode in dataset.episodes] == ["Go right"] * 3
    assert (dataset.fps, dataset.camera_keys) == (20, ("observation.image",))
    assert all(8 <= episode.length <= 14 for episode in dataset.episodes), "10 steps at most, and a tail of 2"
    out = tmp_path / "results.jsonl"
    config = SimConfig((POLICY,), "point:right", num_steps=(1,), episodes=3, parallel=2, out=out, video=tmp_path / "v")
    table = closed_loop.run_trials(config)
    (result,) = read_results(out)
    assert (result.env, result.task, len(result.success), result.options["max_steps"]) == ("point", "right", 3, 30)
    assert "| right |" in table
    videos = list((tmp_path / "v").iterdir())
    assert videos
    for video in videos:
        with av.open(str(video)) as container:
            assert container.streams.video[0].average_rate == 10, "half of the true speed"


@pytest.mark.usefixtures("point")
def test_an_unknown_task_is_refused_before_the_others_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(record, "_demonstrations", lambda *_: pytest.fail("an episode was recorded"))
    monkeypatch.setattr(closed_loop, "rollout", lambda *_, **__: pytest.fail("an episode ran"))
    with pytest.raises(ConfigError, match="point has no task 'left'; expected right"):
        record.record(RecordConfig("point:right,left", tmp_path / "data", episodes=(3,), workers=1))
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match="point has no task 'left'; expected right"):
        closed_loop.run_trials(SimConfig((POLICY,), "point:right,left", num_steps=(1,), episodes=3))


@pytest.mark.usefixtures("point")
def test_a_task_without_an_expert_is_refused_before_the_others_are_recorded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(record, "_demonstrations", lambda *_: pytest.fail("an episode was recorded"))
    monkeypatch.setattr(PointEnv, "expert", Mock(side_effect=ConfigError("no scripted expert")))
    with pytest.raises(ConfigError, match="no scripted expert"):
        record.record(RecordConfig("point:right", tmp_path / "data", episodes=(3,), workers=1))


@pytest.mark.usefixtures("point")
def test_a_policy_whose_actions_are_no_numbers_is_an_error_and_not_a_robot_that_stands_still(monkeypatch) -> None:
    monkeypatch.setattr(SmolVLAPolicy, "predict_action_chunk", lambda *_: np.full((1, 50, 4), np.nan, np.float32))
    with pytest.raises(SimulationError, match=r"teacher gives actions that are not finite.*convert doctor"):
        closed_loop.run_trials(SimConfig((POLICY,), "point:right", num_steps=(1,), episodes=1))


def test_without_the_simulators_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['gymnasium'] = None; from jaxreflow.sim.__main__ import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gymnasium cannot be imported" in done.stderr
    assert "pip install 'jaxreflow[sim]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("point")
def test_a_demonstration_that_breaks_off_before_success_is_left_out(monkeypatch) -> None:
    env = make_env("point", "right", EnvOptions())
    assert record.demonstrate(env, 0, 0.0) is not None
    monkeypatch.setattr(PointEnv, "breaks", True)
    assert record.demonstrate(env, 0, 0.0) is None


@pytest.mark.usefixtures("point")
@pytest.mark.parametrize("name", ["out", "video"])
def test_what_cannot_be_written_is_refused_before_the_first_episode(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(closed_loop, "rollout", lambda *_, **__: pytest.fail("an episode ran"))
    where = {name: tmp_path / "file" / "below"}
    with pytest.raises(ConfigError, match=r"--out and --video: expected .*choose others"):
        closed_loop.run_trials(SimConfig((POLICY,), "point:right", episodes=1, **where))
    with pytest.raises(ConfigError, match="Is a directory"):
        closed_loop.run_trials(SimConfig((POLICY,), "point:right", episodes=1, out=tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimConfig((POLICY,), "aloha:transfer-cube", seed=-1), "--seed must be at least 0, found -1"),
        (lambda: RecordConfig("aloha:transfer-cube", Path("out"), seed=-5), "--seed must be at least 0, found -5"),
        (lambda: RecordConfig("aloha:transfer-cube", Path("out"), disturbance=-1.0), "0 or a positive number, found -1"),
        (lambda: RecordConfig("aloha:transfer-cube", Path("out"), disturbance=float("nan")), "positive number, found nan"),
        (lambda: EnvOptions(size=7), "--options.size must be at least 8, found 7"),
        (lambda: EnvOptions(max_steps=0), "--options.max-steps must be at least 1, found 0"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
