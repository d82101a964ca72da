"""A dataset that jaxreflow writes, read back by its own reader; LeRobot's reader is tested in tests/parity."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.writer import DatasetFeatures, DatasetWriter, feature_statistics
from jaxreflow.errors import DatasetError

CAMERA, STATE = "observation.image", "observation.state"
FEATURES = DatasetFeatures({CAMERA: (64, 64)}, {STATE: ("x", "y"), "action": ("dx",)})


def episode(length: int, level: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    counts = np.arange(length, dtype=np.float32)[:, None]
    vectors = {STATE: np.concatenate([counts + level, counts], 1), "action": -counts}
    grey = (level + 8 * np.arange(length)).astype(np.uint8)
    return vectors, {CAMERA: np.broadcast_to(grey[:, None, None, None], (length, 64, 64, 3)).copy()}


def write(root: Path) -> None:
    with DatasetWriter(root, FEATURES, fps=20, robot_type="arm") as writer:
        writer.add_episode("Wait", *episode(5, 10))
        writer.add_episode("Go", *episode(12, 100))
        writer.add_episode("Wait", *episode(1, 60))


def test_reader_gets_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path)
    dataset = LeRobotDataset.open(tmp_path)
    assert [(e.length, e.task) for e in dataset.episodes] == [(5, "Wait"), (12, "Go"), (1, "Wait")]
    for index, (level, i) in {0: (10, 0), 4: (10, 4), 5: (100, 0), 16: (100, 11), 17: (60, 0)}.items():
        frame = dataset.frame(index, (CAMERA,))
        np.testing.assert_array_equal(frame[STATE], [level + i, i])
        assert abs(float(frame[CAMERA].mean()) - (level + 8 * i)) < 3
        assert frame["frame_index"] == i


def test_statistics_are_those_of_the_columns(tmp_path: Path) -> None:
    write(tmp_path)
    stats = json.loads((tmp_path / "meta" / "stats.json").read_text())
    states = np.concatenate([episode(*e)[0][STATE] for e in ((5, 10), (12, 100), (1, 60))]).astype(np.float64)
    assert stats[STATE]["mean"] == pytest.approx(states.mean(0).tolist())
    assert stats[STATE]["std"] == pytest.approx(states.std(0).tolist())
    assert stats[STATE]["count"] == [18]
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    assert 0 < stats[CAMERA]["mean"][0][0][0] < 1


def test_scalars_have_statistics_of_one_entry() -> None:
    stats = feature_statistics(np.array([1.0, 2.0, 6.0]), frames=3)
    assert {name: value.tolist() for name, value in stats.items() if name in ("min", "max", "mean", "q50")} == {
        "min": [1.0],
        "max": [6.0],
        "mean": [3.0],
        "q50": [2.0],
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v, i: (v, {}), "expected"),
        (lambda v, i: (v, {CAMERA: i[CAMERA][:, :32]}), r"\(32, 64, 3\)"),
        (lambda v, i: ({**v, "action": v["action"][1:]}, i), r"\[4, 5\]"),
    ],
)
def test_episode_of_another_form_is_refused(tmp_path: Path, change, named: str) -> None:
    with pytest.raises(DatasetError, match=named), DatasetWriter(tmp_path, FEATURES, fps=20, robot_type="a") as writer:
        writer.add_episode("Wait", *change(*episode(5, 10)))


def test_dataset_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one episode"):
        DatasetWriter(tmp_path, FEATURES, fps=20, robot_type="arm").close()
