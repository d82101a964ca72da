"""LeRobot's own LeRobotDataset against jaxreflow's reader, on the same files."""

from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset as Reader
from tests.parity.lerobot_shim import LeRobotDataset, upstream_warnings_ignored

ROOT = Path("tests/assets/metaworld_mini")
CAMERA, CHUNK = "observation.image", 50
# First, last, both sides of an episode's end, some from the middle; video seeks backwards and forwards.
FRAMES = (0, 18354, 1, 60, 110, 5000, 4999, 9173, 17000, 12345)


@pytest.fixture(scope="module")
def upstream() -> LeRobotDataset:
    fps = Reader.open(ROOT).fps
    deltas = {"action": [step / fps for step in range(CHUNK)]}
    return LeRobotDataset("local/metaworld_mini", root=ROOT, video_backend="pyav", delta_timestamps=deltas)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.open(ROOT)


@pytest.mark.parametrize("index", FRAMES)
def test_frame_equals_lerobot(upstream: LeRobotDataset, reader: Reader, index: int) -> None:
    expected, found = upstream[index], reader.frame(index)
    actions, is_pad = reader.action_chunk(index, CHUNK)
    np.testing.assert_array_equal(found[CAMERA], (expected[CAMERA].permute(1, 2, 0) * 255).round().byte().numpy())
    np.testing.assert_array_equal(found["observation.state"], expected["observation.state"].numpy())
    np.testing.assert_array_equal(actions, expected["action"].numpy())
    np.testing.assert_array_equal(is_pad, expected["action_is_pad"].numpy())
    assert found["task"] == expected["task"]
    assert (found["episode_index"], found["frame_index"]) == (
        int(expected["episode_index"]),
        int(expected["frame_index"]),
    )


def test_episode_ends_are_padded_as_in_lerobot(upstream: LeRobotDataset, reader: Reader) -> None:
    last = [int(reader.frame_indices([episode])[-1]) for episode in (0, 119, 239)]
    for index in last:
        _, is_pad = reader.action_chunk(index - 3, CHUNK)
        assert is_pad.sum() == CHUNK - 4
        np.testing.assert_array_equal(is_pad, upstream[index - 3]["action_is_pad"].numpy())


def test_statistics_and_sizes_equal_lerobot(upstream: LeRobotDataset, reader: Reader) -> None:
    assert reader.num_frames == len(upstream)
    for key in ("observation.state", "action"):
        for name, value in upstream.meta.stats[key].items():
            np.testing.assert_array_equal(reader.stats[key][name], value, err_msg=f"{key} {name}")


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_dataset_that_lerobot_writes(kind: str, tmp_path: Path) -> None:
    """Two episodes of LeRobot's own: encoded by its default codec, or as images in parquet files."""
    random = np.random.default_rng(0)
    features = {
        CAMERA: {"dtype": kind, "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }
    with upstream_warnings_ignored():
        written = LeRobotDataset.create("local/written", fps=20, features=features, root=tmp_path / "written")
        for length, task in ((5, "Open a drawer"), (7, "Close it")):
            for _ in range(length):
                image = random.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                vectors = {
                    key: random.normal(size=features[key]["shape"]).astype(np.float32) for key in list(features)[1:]
                }
                written.add_frame({CAMERA: image, **vectors, "task": task})
            written.save_episode()
        written.finalize()
        upstream = LeRobotDataset("local/written", root=tmp_path / "written", video_backend="pyav")
    reader = Reader.open(tmp_path / "written")
    assert reader.num_frames == len(upstream) == 12
    for index in (0, 4, 5, 11, 2):
        expected, found = upstream[index], reader.frame(index)
        image = (expected[CAMERA].permute(1, 2, 0) * 255).round().byte().numpy()
        assert image.std() > 40
        np.testing.assert_array_equal(found[CAMERA], image)
        for key in ("observation.state", "action"):
            np.testing.assert_array_equal(
                found[key] if key in found else reader.action_chunk(index, 1)[0][0], expected[key]
            )
        assert found["task"] == expected["task"]
    for key in ("observation.state", "action", CAMERA):
        for name, value in upstream.meta.stats[key].items():
            np.testing.assert_array_equal(reader.stats[key][name], value, err_msg=f"{key} {name}")
