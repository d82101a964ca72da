"""Damaged and unsuitable datasets: each gives an error that names the file and the cause."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import DatasetError
from tests.lerobot_fixtures import CAMERA, write_v21, write_v30


@pytest.fixture
def v21(tmp_path):
    return write_v21(tmp_path / "data")


@pytest.fixture
def v30(tmp_path):
    return write_v30(tmp_path / "data")


def edit_info(root, **changes):
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refuses(root, pattern):
    with pytest.raises(DatasetError, match=pattern):
        LeRobotDataset.open(root)


def test_no_dataset(tmp_path):
    refuses(tmp_path, "not a LeRobotDataset: expected .*info.json")


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None, 3])
def test_unknown_version(v30, version):
    edit_info(v30, codebase_version=version)
    refuses(v30, f"codebase_version is {version!r}, expected one of v2.0, v2.1, v3.0")


@pytest.mark.parametrize(
    "path", ["../{chunk_index}/{file_index}.parquet", "/etc/passwd", "C:/x", "a/../../b", "..\\x", ""]
)
def test_paths_stay_in_the_dataset(v30, path):
    edit_info(v30, data_path=path)
    refuses(v30, "leaves the dataset's folder")


def test_camera_names_are_no_way_out(v30):
    info = json.loads((v30 / "meta/info.json").read_text())
    edit_info(v30, video_path="videos/{video_key}/../../../x.mp4", features=info["features"])
    refuses(v30, "leaves the dataset's folder")


def test_template_with_unknown_field(v21):
    edit_info(v21, video_path="videos/{camera}.mp4")
    refuses(v21, r"info.json: path template 'videos/\{camera\}.mp4' cannot be filled")


@pytest.mark.parametrize("change", [{"fps": 0}, {"fps": None}, {"features": {"action": {}}}, {"chunks_size": "many"}])
def test_damaged_info(v21, change):
    edit_info(v21, **change)
    refuses(v21, "info.json")


@pytest.mark.parametrize("name", ["info.json", "tasks.jsonl", "episodes.jsonl", "episodes_stats.jsonl"])
def test_truncated_json(v21, name):
    file = v21 / "meta" / name
    file.write_text(file.read_text()[:-9])
    refuses(v21, re.escape(name))


@pytest.mark.parametrize(
    "name", ["tasks.parquet", "episodes/chunk-000/file-000.parquet", "../data/chunk-000/file-001.parquet"]
)
def test_truncated_parquet(v30, name):
    file = v30 / "meta" / name
    file.write_bytes(file.read_bytes()[:-40])
    refuses(v30, file.name)


@pytest.mark.parametrize("name", ["meta/tasks.jsonl", "meta/episodes.jsonl", "data/chunk-000/episode_000001.parquet"])
def test_missing_files(v21, name):
    (v21 / name).unlink()
    refuses(v21, f"{name} is missing")


def test_missing_video_names_the_file_and_spares_other_episodes(v21):
    (v21 / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    refuses(v21, f"{CAMERA}/episode_000001.mp4 is missing, episode 1 needs it")
    assert LeRobotDataset.open(v21, episodes=(0, 2)).image(0, CAMERA).any()


def test_undecodable_video_names_file_episode_and_frame(v21):
    file = v21 / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    file.write_bytes(b"not a video" * 100)
    dataset = LeRobotDataset.open(v21)
    assert dataset.image(0, CAMERA).any()
    with pytest.raises(
        DatasetError, match=f"episode_000001.mp4: cannot decode frame 2 of episode 1, camera '{CAMERA}': InvalidData"
    ):
        dataset.image(9, CAMERA)


def test_damaged_frame_is_found_and_others_still_read(v21):
    file = v21 / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + 4
    content[start + (len(content) - start) // 3 : start + (len(content) - start) // 2] = bytes(
        (len(content) - start) // 6 + 1
    )
    file.write_bytes(bytes(content))
    dataset = LeRobotDataset.open(v21)
    results = []
    for frame in range(7):
        try:
            results.append(dataset.image(frame, CAMERA).shape)
        except DatasetError as error:
            results.append(re.search(r"episode_000000.mp4: cannot decode frame (\d)", str(error))[1])
    assert any(isinstance(result, str) for result in results)
    assert all(result == str(frame) for frame, result in enumerate(results) if isinstance(result, str))
    assert dataset.image(8, CAMERA).any()


def test_video_shorter_than_the_episode(v21):
    folder = v21 / f"videos/chunk-000/{CAMERA}"
    (folder / "episode_000001.mp4").replace(folder / "episode_000000.mp4")
    dataset = LeRobotDataset.open(v21, episodes=(0,))
    assert dataset.image(4, CAMERA).any()
    with pytest.raises(DatasetError, match=r"cannot decode frame 6 of episode 0.*the video ends before it"):
        dataset.image(6, CAMERA)
    assert dataset.image(4, CAMERA).any()


def test_frame_off_the_video_grid(v21):
    dataset = LeRobotDataset.open(v21)
    dataset.column("timestamp")[3] = 0.35
    with pytest.raises(DatasetError, match=r"no frame within 0.0001 s of 0.35"):
        dataset.image(3, CAMERA)


def change_column(file, name, values):
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), file)


def test_rows_that_disagree_with_the_metadata(v21):
    file = v21 / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    refuses(v21, "episode_000001.parquet: episode 1 has 4 rows, expected 5")


def test_ragged_actions(v21):
    change_column(v21 / "data/chunk-001/episode_000002.parquet", "action", pa.array([[1.0, 2.0, 3.0]] * 5 + [[1.0]]))
    refuses(v21, "column 'action' holds gaps or entries that are not numbers of shape \\[3\\]")


def test_gaps(v21):
    change_column(v21 / "data/chunk-001/episode_000002.parquet", "timestamp", pa.array([None, 0.1, 0.2, 0.3, 0.4, 0.5]))
    refuses(v21, "column 'timestamp' holds gaps")


def test_missing_column(v21):
    file = v21 / "data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(file).drop(["action"]), file)
    refuses(v21, "episode_000000.parquet lacks the column 'action'")


def test_unknown_task_index(v21):
    change_column(v21 / "data/chunk-000/episode_000000.parquet", "task_index", pa.array(np.full(7, 9)))
    refuses(v21, "task_index 9 is not among the 2 tasks")


def test_overlapping_episodes(v30):
    file = v30 / "meta/episodes/chunk-000/file-000.parquet"
    change_column(file, "dataset_from_index", pa.array([0, 3, 12]))
    refuses(v30, "overlap")


def test_unknown_column_and_camera(v21):
    dataset = LeRobotDataset.open(v21)
    with pytest.raises(DatasetError, match="no numeric feature 'torque'"):
        dataset.column("torque")
    with pytest.raises(DatasetError, match="no camera 'wrist'"):
        dataset.image(0, "wrist")


def test_damaged_embedded_image(tmp_path):
    root = write_v21(tmp_path / "images", image_format="PNG")
    file = root / "data/chunk-000/episode_000000.parquet"
    cells = pq.read_table(file)[CAMERA].to_pylist()
    cells[2]["bytes"], cells[3]["bytes"] = cells[2]["bytes"][:60], None
    change_column(file, CAMERA, pa.array(cells))
    dataset = LeRobotDataset.open(root)
    assert dataset.image(1, CAMERA).any()
    with pytest.raises(DatasetError, match=r"episode_000000.parquet: cannot decode frame 2 of episode 0"):
        dataset.image(2, CAMERA)
    with pytest.raises(DatasetError, match=r"cannot decode frame 3 of episode 0.*no image bytes"):
        dataset.image(3, CAMERA)
