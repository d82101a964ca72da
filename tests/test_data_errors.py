"""Damaged and unsuitable datasets: each gives an error that names the file and the cause."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxreflow.data import video
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import DatasetError
from tests.lerobot_fixtures import CAMERA, write_v21


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


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{chunk_index.__class__.__init__.__globals__}", "expected a field's name, found 'chunk_index.__class__"),
        ("{file_index[0]}", "expected a field's name"),
        ("{file_index:>999999999}", "expected no format but a number's width, found '>999999999'"),
        ("{file_index!r:>9}", "expected no format but a number's width"),
        ("{file_index:{chunk_index}}", "expected no format but a number's width"),
        ("{}", "expected a field's name, found ''"),
        ("{file_index", "expected '}'"),
    ],
)
def test_templates_are_names_of_fields_and_nothing_else(v30, template, found):
    edit_info(v30, data_path=f"data/{template}.parquet")
    refuses(v30, f"meta/info.json: path template .* cannot be filled .*{re.escape(found)}")


@pytest.mark.parametrize("path", [f"data/{'a' * 300}.parquet", "data"])
def test_names_that_no_file_can_have_are_missing_files(v30, path):
    edit_info(v30, data_path=path)
    assert LeRobotDataset.open(v30).data_files == ("data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet")
    for file in (v30 / "data").rglob("*.parquet"):
        file.unlink()
    refuses(v30, "is missing, episode 0 needs it")


@pytest.mark.parametrize("path", ["data/\0.parquet", "data/\ud800.parquet"])
def test_names_that_no_file_system_takes_are_refused(v30, path):
    edit_info(v30, data_path=path)
    refuses(v30, "meta/info.json")


def test_tasks_are_whole_characters(v21):
    file = v21 / "meta/tasks.jsonl"
    file.write_text(file.read_text().replace("pull", "\\ud800"))
    refuses(v21, "tasks.jsonl is damaged .*UnicodeEncodeError")


def test_links_to_files_elsewhere_are_read_as_in_the_hubs_cache(v30, tmp_path):
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate([path for path in v30.rglob("*") if path.is_file()]):
        file.symlink_to(file.rename(tmp_path / "blobs" / str(number)))
    assert LeRobotDataset.open(v30).image(9, CAMERA).any()


def test_camera_names_are_no_way_out(v30):
    info = json.loads((v30 / "meta/info.json").read_text())
    edit_info(v30, video_path="videos/{video_key}/../../../x.mp4", features=info["features"])
    refuses(v30, "leaves the dataset's folder")


def test_template_with_unknown_field(v21):
    edit_info(v21, video_path="videos/{camera}.mp4")
    refuses(v21, r"info.json: path template 'videos/\{camera\}.mp4' cannot be filled")


@pytest.mark.parametrize(
    "change",
    [
        {"fps": 0},
        {"fps": None},
        {"fps": 1e999},
        {"features": {"action": {}}},
        {"features": {"action": {"dtype": "float32", "shape": [1e999]}}},
        {"chunks_size": "many"},
        {"chunks_size": 0},
        {"chunks_size": 1e999},
        {"data_path": 0.5},
    ],
    ids=str,
)
def test_damaged_info(v21, change):
    edit_info(v21, **change)
    refuses(v21, "info.json")


@pytest.mark.parametrize("name", ["info.json", "tasks.jsonl", "episodes_stats.jsonl"])
def test_json_nested_without_end(v21, name):
    (v21 / "meta" / name).write_text('{"x": ' * 100_000 + "1" + "}" * 100_000)
    refuses(v21, f"{name} is damaged.*nested more than 64 deep")


def test_counters_have_one_entry(v21):
    info = json.loads((v21 / "meta/info.json").read_text())
    info["features"]["frame_index"]["shape"] = []
    edit_info(v21, features=info["features"])
    refuses(v21, r"meta/info.json: the shape of 'frame_index' must be \[1\], found \[\]")


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
    with pytest.raises(DatasetError, match=f"{CAMERA}/episode_000001.mp4 is missing, episode 1 needs it"):
        LeRobotDataset.open(v21).check_cameras([CAMERA])
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
    change_column(file, "episode_index", pa.array([1, 1, 1, 1, 2]))
    refuses(v21, "episode_000001.parquet: episode 1 has 4 rows in all files of data/, expected 5")


def test_many_more_rows_than_the_metadata_announces_are_not_read(v21):
    file = v21 / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(file)] * 100), file)
    refuses(v21, r"episode_000001.parquet is damaged .*expected at most 18 rows by .*, found 500")


def test_other_columns_may_be_wider_than_those_in_use(v21):
    for file in (v21 / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        wide = {"action.wide": [[0.0] * 99] * len(table), "observation": [{"x": [1] * 50, "y": "z"}] * len(table)}
        for name, values in wide.items():
            table = table.add_column(0, name, pa.array(values))
        pq.write_table(table, file)
    assert LeRobotDataset.open(v21).column("action").shape == (18, 3)


def test_more_tasks_than_any_dataset_has(v30):
    tasks = pa.table({"task_index": np.zeros((1 << 20) + 1, np.int64), "task": pa.nulls((1 << 20) + 1, pa.string())})
    pq.write_table(tasks, v30 / "meta/tasks.parquet")
    refuses(v30, "tasks.parquet is damaged .*expected at most 1048576 rows")


def test_ragged_actions(v21):
    change_column(v21 / "data/chunk-001/episode_000002.parquet", "action", pa.array([[1.0, 2.0, 3.0]] * 5 + [[1.0]]))
    refuses(v21, "column 'action' holds gaps or entries that are not numbers of shape \\[3\\]")


def test_gaps(v21):
    change_column(v21 / "data/chunk-001/episode_000002.parquet", "timestamp", pa.array([None, 0.1, 0.2, 0.3, 0.4, 0.5]))
    refuses(v21, "column 'timestamp' holds gaps")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("episode_index", pa.array([{"x": 1}] * 6)),
        ("episode_index", pa.nulls(6)),
        ("task_index", pa.array([0.5] * 6)),
        ("frame_index", pa.array(["x"] * 6)),
    ],
)
def test_counters_of_another_type(v21, name, values):
    change_column(v21 / "data/chunk-001/episode_000002.parquet", name, values)
    refuses(v21, f"episode_000002.parquet: column '{name}' holds gaps or entries that are not whole numbers")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("length", [7, None, 6]),
        ("length", [7, -5, 6]),
        ("episode_index", [[0], [1], [2]]),
        ("dataset_from_index", [0, 7, 2**62]),
        ("data/file_index", ["../0", "0", "1"]),
        ("tasks", [[1], [2], [3]]),
        ("tasks", [[{"x": 1}]] * 3),
    ],
)
def test_episodes_of_another_type(v30, name, values):
    file = v30 / "meta/episodes/chunk-000/file-000.parquet"
    change_column(file, name, pa.array(values))
    refuses(v30, f"meta/episodes/chunk-000/file-000.parquet is damaged .*{name}: expected")


@pytest.mark.parametrize(("name", "values"), [("task", ["push", None]), ("task_index", [[0], [1]])])
def test_tasks_of_another_type(v30, name, values):
    change_column(v30 / "meta/tasks.parquet", name, pa.array(values))
    refuses(v30, "meta/tasks.parquet")


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_text_that_is_no_utf8(v30, name):
    file = v30 / name
    pq.write_table(pq.read_table(file), file, compression="none", use_dictionary=False)
    file.write_bytes(file.read_bytes().replace(b"pull", b"pu\xff\xff"))
    refuses(v30, f"{name} is damaged .*UnicodeDecodeError")


def test_legacy_episodes_of_another_type(v21):
    file = v21 / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('["pull"]', '[{"x": 1}]'))
    refuses(v21, "episodes.jsonl is damaged .*tasks: expected text")


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
    with pytest.raises(DatasetError, match=r"no camera 'wrist' of colours, only observation\.images\.front"):
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


def test_an_image_of_any_size_that_a_few_bytes_claim(tmp_path):
    root = write_v21(tmp_path / "images", image_format="PNG")
    file = root / "data/chunk-000/episode_000000.parquet"
    cells = pq.read_table(file)[CAMERA].to_pylist()
    buffer = io.BytesIO()
    Image.new("1", (8192, 4096)).save(buffer, "PNG")
    cells[2]["bytes"] = buffer.getvalue()
    change_column(file, CAMERA, pa.array(cells))
    with pytest.raises(
        DatasetError, match=r"cannot decode frame 2 .*the image has 8192 x 4096 pixels, expected at most"
    ):
        LeRobotDataset.open(root).image(2, CAMERA)


def test_a_video_of_any_size_that_a_few_bytes_claim(v21, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(DatasetError, match=r"episode_000000.mp4: cannot decode frame 0 of episode 0.*max_pixels"):
        LeRobotDataset.open(v21).image(0, CAMERA)


def test_a_codec_that_nobody_knows(v21):
    file = v21 / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    file.write_bytes(file.read_bytes().replace(b"avc1", b"????"))
    with pytest.raises(DatasetError, match=r"episode_000000.mp4: cannot decode frame 0.*codec is unknown"):
        LeRobotDataset.open(v21).image(0, CAMERA)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), 1e30])
def test_times_at_which_no_video_shows_anything(v21, time):
    dataset = LeRobotDataset.open(v21)
    dataset.column("timestamp")[3] = time
    with pytest.raises(DatasetError, match=r"cannot decode frame 3 .*a video has no frame at"):
        dataset.image(3, CAMERA)
