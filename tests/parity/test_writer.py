"""A dataset written by jaxreflow: LeRobot reads it, and computes the same statistics of the same frames."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset as Reader
from jaxreflow.data.writer import DatasetFeatures, DatasetWriter
from tests.parity.lerobot_shim import LeRobotDataset, upstream_warnings_ignored

CAMERA, STATE, ACTION = "observation.image", "observation.state", "action"
TASKS = ("Press a handle down", "Open a drawer", "Press a handle down")
LENGTHS = (7, 60, 3)


def frames(length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    # Grey, as colours lose half of their resolution in the video; every frame looks different.
    grey = random.integers(0, 256, (length, 4, 4, 1)).repeat(16, axis=1).repeat(16, axis=2).repeat(3, axis=3)
    return {
        CAMERA: grey.astype(np.uint8),
        STATE: random.standard_normal((length, 4)).astype(np.float32),
        ACTION: random.standard_normal((length, 2)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    features = DatasetFeatures({CAMERA: (64, 64)}, {STATE: ("x", "y", "z", "g"), ACTION: ("dx", "dy")})
    with DatasetWriter(root, features, fps=80, robot_type="sawyer") as writer:
        for seed, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            episode = frames(length, seed)
            writer.add_episode(task, {key: episode[key] for key in (STATE, ACTION)}, {CAMERA: episode[CAMERA]})
    return root


def test_lerobot_reads_every_frame(written: Path) -> None:
    with upstream_warnings_ignored():
        upstream = LeRobotDataset("local/written", root=written, video_backend="pyav")
        reader = Reader.open(written)
        assert len(upstream) == reader.num_frames == sum(LENGTHS)
        index = 0
        for seed, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            episode = frames(length, seed)
            for i in range(length):
                found = upstream[index]
                assert found["task"] == task
                assert (int(found["episode_index"]), int(found["frame_index"])) == (seed, i)
                np.testing.assert_array_equal(found[STATE].numpy(), episode[STATE][i])
                np.testing.assert_array_equal(found[ACTION].numpy(), episode[ACTION][i])
                image = found[CAMERA].permute(1, 2, 0).numpy() * 255
                assert np.abs(image - episode[CAMERA][i]).mean() < 3, "the video is lossy, but not wrong"
                np.testing.assert_array_equal(image.round().astype(np.uint8), reader.frame(index)[CAMERA])
                index += 1


def test_lerobot_computes_the_same_statistics(written: Path, tmp_path: Path) -> None:
    features = json.loads((written / "meta" / "info.json").read_text())["features"]
    own = {key: {**features[key], "shape": tuple(features[key]["shape"])} for key in (STATE, ACTION)}
    with upstream_warnings_ignored():
        upstream = LeRobotDataset.create("local/upstream", fps=80, features=own, root=tmp_path / "upstream")
        for seed, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            episode = frames(length, seed)
            for i in range(length):
                upstream.add_frame({STATE: episode[STATE][i], ACTION: episode[ACTION][i], "task": task})
            upstream.save_episode()
        upstream.finalize()
    expected = json.loads((tmp_path / "upstream" / "meta" / "stats.json").read_text())
    found = json.loads((written / "meta" / "stats.json").read_text())
    for key in (STATE, ACTION, "timestamp", "frame_index", "task_index"):
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(
                found[key][name], expected[key][name], rtol=1e-5, atol=1e-6, err_msg=f"{key} {name}"
            )
