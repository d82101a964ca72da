"""LeRobot's own LeRobotDataset against jaxreflow's reader, on the same files."""

from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset as Reader
from tests.parity.lerobot_shim import LeRobotDataset

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
