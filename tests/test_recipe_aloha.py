"""What prepares Aloha's teacher, and what measures it: seeing first, and the miss of the cube."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.recipe import miss, see_first
from benchmarks.recipe.miss import MissConfig
from benchmarks.recipe.see_first import SeeFirstConfig
from jaxreflow.errors import CheckpointError, ConfigError


class Arm:
    """A gripper that sinks by a millimetre and moves by a centimetre a step; an episode ends after `length` steps."""

    task_description = "transfer_cube"
    renders = True
    cube = np.zeros(3)
    data = SimpleNamespace(xpos=np.zeros((2, 3)))

    def __init__(self, length: int = 1_000) -> None:
        self.length, self.steps = length, 0
        self.model = SimpleNamespace(body=lambda name: SimpleNamespace(id=int("right" in name)))

    def reset(self, **_: Any) -> tuple[dict[str, Any], dict]:
        self.steps = 0
        return self._seen(), {}

    def step(self, _: Any) -> tuple[dict[str, Any], float, bool, bool, dict]:
        self.steps += 1
        return self._seen(), 0.0, self.steps == self.length, False, {}

    def expert(self, _: Any) -> Any:
        return lambda: np.zeros(14)

    def close(self) -> None:
        pass

    def _seen(self) -> dict[str, Any]:
        return {"pixels": {"top": np.zeros((2, 2, 3), np.uint8)}, "agent_pos": np.zeros(14)}


@pytest.fixture
def arm(monkeypatch) -> None:
    """An arm in place of the simulator, and a policy that moves nothing."""
    chunk = np.zeros((1, 50, 14), np.float32)
    policy = SimpleNamespace(
        config=SimpleNamespace(chunk_size=50, max_action_dim=32), predict_action_chunk=lambda *_: chunk
    )
    monkeypatch.setattr(miss.SmolVLAPolicy, "from_pretrained", lambda _: policy)
    monkeypatch.setattr(miss, "make_env", lambda *_: Arm())
    monkeypatch.setattr(
        miss, "Gripper", lambda env, _: SimpleNamespace(place=np.array([0.01, 0.0, -0.001]) * env.steps)
    )


@pytest.mark.usefixtures("arm")
@pytest.mark.parametrize("n_action_steps", [1, 10, 30, 50])
def test_the_miss_is_that_of_the_first_steps_however_many_are_executed(n_action_steps: int) -> None:
    misses = miss.measure(MissConfig("POLICY", n_action_steps=n_action_steps, episodes=2, steps=80))
    np.testing.assert_allclose(misses, 0.8)


@pytest.mark.usefixtures("arm")
def test_more_actions_than_a_chunk_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="--n-action-steps 60: POLICY predicts 50 actions at once"):
        miss.measure(MissConfig("POLICY", n_action_steps=60))


def test_pictures_are_taken_every_few_steps(monkeypatch) -> None:
    monkeypatch.setattr(see_first, "make_env", lambda *_: Arm(length=25))
    config = SeeFirstConfig("POLICY", Path("OUT"), every=10)
    pictures, places = see_first._watch(config, 0)
    assert (len(pictures), places.shape) == (40, (40, 9)), "two of each of 20 episodes"
    with pytest.raises(ConfigError, match="--every 26: expected fewer steps than an episode has"):
        see_first._watch(SeeFirstConfig("POLICY", Path("OUT"), every=26), 0)


def test_what_cannot_end_well_is_refused_before_episodes_are_watched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(see_first, "collect", lambda _: pytest.fail("episodes were watched"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(CheckpointError, match="taken is there already"):
        see_first.run(SeeFirstConfig("tests/assets/teacher", tmp_path / "taken"))
    two = SimpleNamespace(config=SimpleNamespace(visual_keys=("observation.images.top", "observation.images.wrist")))
    monkeypatch.setattr(see_first, "load_saved_policy", lambda _: two)
    with pytest.raises(ConfigError, match=r"the camera `top` of aloha:transfer-cube alone, found .*wrist"):
        see_first.run(SeeFirstConfig("POLICY", tmp_path / "new"))
