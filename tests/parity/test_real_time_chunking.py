"""Guided chunks against LeRobot's `RTCProcessor`, and how far a student's frozen actions are from where they must be."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxreflow import SmolVLAPolicy
from tests.parity.case import Case
from tests.parity.conftest import Measure
from tests.parity.lerobot_shim import RTCConfig, torch, upstream_warnings_ignored
from tests.parity.oracle import Oracle, to_numpy

Cases = Callable[[str], Case]
Measuring = Callable[[str], Measure]
ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "benchmarks" / "recipe" / "policies" / "student"
SCHEDULES = ("LINEAR", "EXP", "ONES", "ZEROS")


def guide_oracle(oracle: Oracle, **settings: object) -> None:
    """Gives LeRobot's policy an `RTCProcessor` with these settings."""
    with upstream_warnings_ignored():
        oracle.config.rtc_config = RTCConfig(enabled=True, **settings)
        oracle.policy.init_rtc_processor()


def oracle_chunk(oracle: Oracle, batch: dict, noise: np.ndarray, num_steps: int, **guidance: object) -> np.ndarray:
    """LeRobot's chunk in normalised units, real dims."""
    with oracle._num_steps(num_steps):
        return to_numpy(
            oracle.policy.predict_action_chunk(dict(batch), noise=torch.from_numpy(noise.copy()), **guidance)
        )


@pytest.mark.parametrize("name", ["tiny", "min_max"])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_guided_chunks_equal_lerobot(name: str, num_steps: int, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    oracle, inputs, policy = of.oracle, of.inputs, of.candidate.policy
    guide_oracle(oracle)
    batch, observation = oracle.batch(inputs, train=False), of.candidate.raw_observation(inputs)
    before = oracle_chunk(oracle, batch, inputs.noise[1], num_steps)
    for schedule, (start, delay, horizon, weight) in zip(
        SCHEDULES, ((1, 2, 4, 10.0), (0, 0, 6, 10.0), (4, 1, 10, 2.5), (2, 3, 3, float(num_steps))), strict=True
    ):
        guide_oracle(oracle, prefix_attention_schedule=schedule, max_guidance_weight=weight)
        call = {"inference_delay": delay, "execution_horizon": horizon}
        left_over = before[:, start:]
        given = torch.from_numpy(left_over.copy())
        expected = oracle_chunk(oracle, batch, inputs.noise[0], num_steps, prev_chunk_left_over=given, **call)
        raw = policy.transforms.processors.unnormalizer.unnormalize("action", left_over)
        found = policy.predict_action_chunk(
            observation,
            inputs.noise[0],
            num_steps,
            prev_chunk_left_over=raw,
            prefix_attention_schedule=schedule,
            max_guidance_weight=weight,
            **call,
        )
        processed = to_numpy(oracle.postprocess(torch.from_numpy(expected.copy())))
        measuring(name)("guided_chunk", found, processed, f"{num_steps} steps, {schedule}")
    oracle.config.rtc_config = None
    oracle.policy.init_rtc_processor()


def frozen_distances(oracle: Oracle, weight: float, num_steps: int) -> float:
    """The mean norm, over five frozen actions, of what they are off the chunk before, on random observations."""
    rng = np.random.default_rng(0)
    guide_oracle(oracle, max_guidance_weight=weight)
    dims = oracle.config.action_feature.shape[0]
    shape = (1, oracle.config.chunk_size, oracle.config.max_action_dim)
    found = []
    for _ in range(4):
        state = torch.from_numpy(rng.normal(size=(1, oracle.config.robot_state_feature.shape[0])).astype(np.float32))
        images = {
            key: torch.from_numpy(rng.random((1, *feature.shape), np.float32))
            for key, feature in oracle.config.image_features.items()
        }
        batch = oracle.preprocess({"observation.state": state, "task": ["reach"], **images})
        before = oracle_chunk(oracle, batch, rng.normal(size=shape).astype(np.float32), num_steps)[:, 10:]
        left_over = torch.from_numpy(before.copy())
        chunk = oracle_chunk(
            oracle, batch, rng.normal(size=shape).astype(np.float32), num_steps,
            prev_chunk_left_over=left_over, inference_delay=5, execution_horizon=10,
        )  # fmt: skip
        found.append(np.linalg.norm(chunk[:, :5, :dims] - before[:, :5], axis=-1).mean())
    return float(np.mean(found))


def test_a_students_frozen_actions_in_lerobot(tmp_path: Path) -> None:
    """LeRobot's default weight throws a one-step student off; the number of steps does not. Figures: build/rtc.json."""
    student = SmolVLAPolicy.from_pretrained(STUDENT)
    student.save_pretrained(tmp_path / "student")
    oracle = Oracle(tmp_path / "student")
    rows = [(steps, weight) for steps in (1, 2, 10) for weight in (10.0, float(steps))]
    found = {f"{steps} steps, weight {weight:g}": frozen_distances(oracle, weight, steps) for steps, weight in rows}
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "rtc.json").write_text(json.dumps(found, indent=1) + "\n")
    assert found["1 steps, weight 10"] > 5.0
    assert found["1 steps, weight 1"] < 1e-4
    assert found["2 steps, weight 2"] < 1e-4
    assert found["10 steps, weight 10"] < 0.1
