"""The plugin in LeRobot 0.6 itself: the same actions as LeRobot's SmolVLA in PyTorch, its commands and its real-time chunking."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.plugin import to_plugin
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.errors import CheckpointError
from tests.parity.lerobot_shim import (
    PreTrainedConfig,
    RTCConfig,
    make_pre_post_processors,
    torch,
    upstream_warnings_ignored,
)

ROOT = Path(__file__).parents[2]
TEACHER, DATASET = ROOT / "tests" / "assets" / "teacher", ROOT / "tests" / "assets" / "metaworld_mini"


def opened(folder: Path, **changes: Any) -> SimpleNamespace:
    """A policy as LeRobot's commands make it, with its processors; the VLM's files are those in the folder."""
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    with upstream_warnings_ignored(), contextlib.redirect_stdout(sys.stderr):
        config = PreTrainedConfig.from_pretrained(folder)
        config.device, config.vlm_model_name, config.load_vlm_weights = "cpu", str(folder / "vlm"), False
        for name, value in changes.items():
            setattr(config, name, value)
        policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        policy.float().eval()
        before, after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"tokenizer_processor": {"tokenizer_name": config.vlm_model_name}},
        )
    return SimpleNamespace(policy=policy, config=config, preprocess=before, postprocess=after)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plugin") / "teacher"
    to_plugin(TEACHER, out)
    return out


@pytest.fixture(scope="module")
def sides(folder: Path) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The policy in PyTorch and in JAX, in two steps."""
    changes = {"num_steps": 2, "n_action_steps": 3}
    return opened(TEACHER, **changes), opened(folder, **changes)


def frames(indices: range) -> list[dict[str, Any]]:
    """Frames of the dataset as LeRobot's reader gives them."""
    dataset = load_dataset(str(DATASET))
    found = []
    for index in indices:
        frame = dataset.frame(index)
        image = torch.from_numpy(np.moveaxis(frame["observation.image"], -1, 0).copy()).float() / 255
        state = torch.from_numpy(np.asarray(frame["observation.state"], np.float32))
        found.append({"observation.image": image, "observation.state": state, "task": frame["task"]})
    return found


def test_lerobot_finds_the_plugin_by_its_name(sides: tuple[SimpleNamespace, SimpleNamespace]) -> None:
    assert type(sides[1].policy).__name__ == "SmolVLAJaxPolicy"
    assert not list(sides[1].policy.parameters())


def test_a_folder_without_its_weights_is_named(folder: Path, tmp_path: Path) -> None:
    """As when only the JSON files were copied."""
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("model.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"bare/model\.safetensors: no such file; .*again: python -m convert to-plugin"
    ):
        opened(bare)


def test_actions_equal_pytorchs_one_by_one(sides: tuple[SimpleNamespace, SimpleNamespace]) -> None:
    """Seven observations, so that the queue is refilled twice; PyTorch draws the noise of both sides."""
    acted = []
    for side in sides:
        side.policy.reset()
        torch.manual_seed(0)
        actions = [side.policy.select_action(side.preprocess(dict(frame))) for frame in frames(range(7))]
        acted.append(torch.stack([side.postprocess(action) for action in actions]).numpy())
    np.testing.assert_allclose(acted[1], acted[0], atol=1e-4 * np.abs(acted[0]).max())


def test_guided_chunks_equal_pytorchs(sides: tuple[SimpleNamespace, SimpleNamespace]) -> None:
    rtc = RTCConfig(enabled=True, max_guidance_weight=2.0, execution_horizon=10)
    early, late = frames(range(20, 26, 5))
    chunks = []
    for side in sides:
        side.config.rtc_config = rtc
        side.policy.init_rtc_processor()
        torch.manual_seed(1)
        before = side.policy.predict_action_chunk(side.preprocess(dict(early)))
        chunks.append(
            side.policy.predict_action_chunk(
                side.preprocess(dict(late)), inference_delay=3, prev_chunk_left_over=before[0, 5:], execution_horizon=8
            ).numpy()
        )
        side.config.rtc_config = None
        side.policy.init_rtc_processor()
    np.testing.assert_allclose(chunks[1], chunks[0], atol=1e-4 * np.abs(chunks[0]).max())


def test_a_weight_above_the_steps_is_lowered(
    sides: tuple[SimpleNamespace, SimpleNamespace], caplog: pytest.LogCaptureFixture
) -> None:
    """As `lerobot-rollout` sets it, whatever the checkpoint says."""
    jax = sides[1]
    jax.config.rtc_config = RTCConfig(enabled=True)
    (frame,) = frames(range(1))
    before = jax.policy.predict_action_chunk(jax.preprocess(dict(frame)))
    after = jax.policy.predict_action_chunk(
        jax.preprocess(dict(frame)), inference_delay=3, prev_chunk_left_over=before[0, 5:]
    )
    jax.config.rtc_config = None
    assert "max_guidance_weight 10 is above num_steps: 2 is taken" in caplog.text
    np.testing.assert_allclose(after[:, :3], before[:, 5:8], atol=1e-4)


def test_lerobots_engine_runs_it_while_a_robot_waits(folder: Path) -> None:
    """The thread of `lerobot-rollout --inference.type=rtc`, with a stand-in robot whose camera shows frames of the dataset."""
    from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference

    side = opened(folder, num_steps=1)
    rtc = RTCConfig(enabled=True)
    side.config.rtc_config = rtc
    assert supports_rtc_inference(side.policy)
    names = [f"x{i}" for i in range(side.config.robot_state_feature.shape[0])]
    features = {
        "observation.state": {"dtype": "float32", "shape": (len(names),), "names": names},
        "observation.image": {"dtype": "image", "shape": (96, 96, 3), "names": ["height", "width", "channels"]},
    }
    robot = SimpleNamespace(robot_type="stand_in", action_features={})
    engine = RTCInferenceEngine(
        side.policy, side.preprocess, side.postprocess, robot, rtc, features, "reach", fps=20.0, device="cpu",
        shutdown_event=threading.Event(),
    )  # fmt: skip
    dataset, actions = load_dataset(str(DATASET)), []
    engine.start()
    engine.resume()
    try:
        deadline = time.monotonic() + 120
        while len(actions) < 60 and time.monotonic() < deadline and not engine.failed:
            frame = dataset.frame(len(actions))
            state = dict(zip(names, np.asarray(frame["observation.state"], np.float32), strict=True))
            engine.notify_observation({**state, "observation.image": frame["observation.image"]})
            action = engine.get_action(None)
            if action is not None:
                actions.append(action.numpy())
            time.sleep(0.01)
    finally:
        engine.stop()
    assert not engine.failed
    assert len(actions) == 60
    assert np.isfinite(actions).all()


@pytest.mark.slow
def test_lerobot_eval_runs_it_in_metaworld(folder: Path, tmp_path: Path) -> None:
    """One episode; `lerobot-eval` takes the type from the folder's config.json."""
    if (folder / "policy_preprocessor.json").is_file():
        edited = json.loads((folder / "policy_preprocessor.json").read_text())
        for step in edited["steps"]:
            if "tokenizer_name" in step.get("config", {}):
                step["config"]["tokenizer_name"] = str(folder / "vlm")
        (folder / "policy_preprocessor.json").write_text(json.dumps(edited))
    flags = [
        "--env.type=metaworld",
        "--env.task=reach-v3",
        "--env.episode_length=20",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
    ]
    policy = [
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--policy.num_steps=1",
        f"--policy.vlm_model_name={folder / 'vlm'}",
    ]
    program = "import tests.parity.lerobot_shim; from lerobot.scripts.lerobot_eval import main; main()"
    command = [sys.executable, "-c", program, *policy, *flags, f"--output_dir={tmp_path / 'out'}"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 1
