"""Datasets that LeRobot 0.6.1 trains on although its newest writer does not leave them so: rows, counts, `meta/`."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxreflow.data import pack
from jaxreflow.data.advice import EVALUATE_OPTIONS, PACK_OPTIONS, TRAIN_OPTIONS
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import DatasetError
from tests.dataset_edits import FILES, edit_info, edit_table, is_right, set_column
from tests.lerobot_fixtures import CAMERA, LENGTHS, TASKS, picture, write_v21, write_v30

# Rows by episode_index


@pytest.mark.parametrize("case", ["boundary", "merged", "split", "unnamed", "out of order"])
def test_rows_are_where_their_episode_index_says(tmp_path, case):
    root = write_v30(tmp_path / "data", image_format="PNG")
    first, second = (pq.read_table(root / file) for file in FILES)
    every = pa.concat_tables([first, second])
    if case == "boundary":
        first, second = every.slice(0, 7), every.slice(7)
    elif case == "split":
        first, second = every.slice(0, 9), every.slice(9)
    elif case == "out of order":
        first, second = second, first
    if case in ("merged", "unnamed"):
        pq.write_table(every, root / "data/chunk-000/file-007.parquet", row_group_size=5)
        for file in FILES:
            (root / file).unlink()
    else:
        pq.write_table(first, root / FILES[0])
        pq.write_table(second, root / FILES[1])
    if case == "unnamed":
        edit_table(
            root / "meta/episodes/chunk-000/file-000.parquet",
            lambda table: table.drop(["data/chunk_index", "data/file_index", "tasks", "length"]).append_column(
                "dataset_to_index", pa.array([7, 12, 18])
            ),
        )
    dataset = is_right(root)
    np.testing.assert_array_equal(dataset.image(10, CAMERA), picture(10))
    packed = pack.pack(pack.PackConfig(str(root), str(tmp_path / "packed")))
    np.testing.assert_array_equal(packed.image(10, CAMERA), picture(10))


def test_an_episode_ends_where_lerobot_reads_that_it_ends(v30):
    file = v30 / "meta/episodes/chunk-000/file-000.parquet"
    edit_table(file, lambda table: table.append_column("dataset_to_index", pa.array([7, 12, 18])))
    set_column(file, "length", [99, None, 0])
    assert [episode.length for episode in is_right(v30).episodes] == list(LENGTHS)


# Counts


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_a_part_of_the_metadata_is_not_taken_for_the_whole(tmp_path, write):
    root = write(tmp_path / "data")
    edit_info(root, lambda info: info.update(total_episodes=105, total_frames=1800))
    both = r"counts 105 episodes with 1800 frames, but meta/episodes\* list 3 with 18"
    with pytest.raises(DatasetError, match=f"{both}.* name some of those listed with --dataset.episodes$"):
        LeRobotDataset.open(root, options=TRAIN_OPTIONS)
    with pytest.raises(DatasetError, match=f"{both}.*download the dataset again$"):
        LeRobotDataset.open(root)
    assert LeRobotDataset.open(root, episodes=(0, 2), options=TRAIN_OPTIONS).num_frames == 13


@pytest.mark.parametrize("said", [{"length": 9}, {"length": 5}, {"length": None}])
def test_an_old_episode_is_as_long_as_its_rows(v21, said, caplog):
    """LeRobot's converter counts them, and reads no length."""
    lines = [json.loads(line) for line in (v21 / "meta/episodes.jsonl").read_text().split("\n")]
    (v21 / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line | said) for line in lines))
    is_right(v21)
    assert caplog.messages == []


def test_of_lines_about_one_episode_the_last_counts(v21):
    """As for LeRobot's converter, after a recording that was interrupted and went on."""
    whole = LeRobotDataset.open(v21).stats
    for name in ("episodes", "episodes_stats"):
        file = v21 / f"meta/{name}.jsonl"
        first = json.loads(file.read_text().split("\n")[0])
        stale = first | {
            "tasks": ["stale"],
            "stats": {"action": {n: [9.0] for n in ("min", "max", "mean", "std", "count")}},
        }
        file.write_text(json.dumps(stale) + "\n" + file.read_text())
    is_right(v21)
    np.testing.assert_array_equal(LeRobotDataset.open(v21).stats["action"]["count"], whole["action"]["count"])


def test_an_episode_that_is_listed_twice_is_one(v30):
    edit_table(
        v30 / "meta/episodes/chunk-000/file-000.parquet", lambda table: pa.concat_tables([table, table.slice(1)])
    )
    is_right(v30)


def test_paths_from_before_v3_are_not_filled(v30):
    edit_info(
        v30, lambda info: info.update(data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    )
    is_right(v30)


def test_what_nobody_asks_for_may_be_anything(v30):
    """LeRobot makes arrays of whatever stats.json holds, and casts no feature of any length."""
    file = v30 / "meta/stats.json"
    stats = json.loads(file.read_text())
    foreign = {"note": {"mean": "none", "max": [None, 1]}, "version": 2, "names": ["a"]}
    file.write_text(json.dumps(stats | foreign))
    edit_info(v30, lambda info: info["features"].update(sound={"dtype": "float32", "shape": [-1], "names": None}))
    is_right(v30)
    found = LeRobotDataset.open(v30).stats
    assert list(found["note"]) == ["max"]
    assert found.keys() - {"note"} == stats.keys()


def test_fewer_counted_than_listed_is_warned_of(v30, caplog):
    edit_info(v30, lambda info: info.update(total_episodes=2, total_frames=12))
    is_right(v30)
    assert "counts 2 episodes with 12 frames, but meta/episodes* list 3 with 18" in caplog.text


@pytest.mark.parametrize("count", [None, "many", 0, 3.0, "3"])
def test_counts_that_say_nothing_or_the_truth_are_no_matter(v30, count, caplog):
    edit_info(v30, lambda info: info.update(total_episodes=count))
    is_right(v30)
    assert not caplog.text


# Metadata


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_fields_that_lerobot_has_defaults_for(tmp_path, write):
    root = write(tmp_path / "data")
    if write is write_v21:
        for folder in ("data", f"videos/chunk-001/{CAMERA}"):
            for file in (root / folder).rglob("episode_000002.*"):
                (new := file.as_posix().replace("chunk-001", "chunk-000")) and file.rename(new)
    edit_info(root, lambda info: [info.pop(name) for name in ("chunks_size", "data_path", "video_path")])
    is_right(root)
    edit_info(root, lambda info: info.update(video_path=None))
    is_right(root)


def test_old_files_by_the_new_name_of_the_chunk(v21):
    edit_info(
        v21,
        lambda info: info.update(
            data_path="data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
            video_path="videos/chunk-{chunk_index:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        ),
    )
    is_right(v21)


@pytest.mark.parametrize(("said", "layout"), [("3.0", "v3.0"), ("v3.1", "v3.0"), ("v3.0.1", "v3.0")])
def test_spellings_of_the_version(v30, said, layout):
    edit_info(v30, lambda info: info.update(codebase_version=said))
    assert is_right(v30).metadata.version == layout


def tasks_table(columns, index=None):
    table = pa.table(columns)
    return table.replace_schema_metadata({"pandas": json.dumps({"index_columns": [index]})}) if index else table


@pytest.mark.parametrize(
    ("columns", "index"),
    [
        ({"task_index": [0, 1], "__index_level_0__": ["push", "pull"], "task": ["a", "b"]}, "__index_level_0__"),
        ({"task_index": [0, 1], "task": ["push", "pull"], "category": ["a", "b"]}, "task"),
        ({"category": ["a", "b"], "task_index": [0, 1], "text": ["push", "pull"]}, "text"),
        ({"category": ["a", "b"], "task_index": [0, 1], "task": ["push", "pull"]}, None),
        ({"task_index": [0.0, 1.0], "sentence": ["push", "pull"]}, None),
        ({"task": pa.array(["push", "pull"]).dictionary_encode()}, None),
        ({"task_index": [1, 0], "task": ["pull", "push"]}, "gaps"),
    ],
)
def test_the_tasks_text_is_the_index(v30, columns, index):
    if index == "gaps":
        # Numbers that cannot be rows.
        for file in FILES:
            set_column(v30 / file, "task_index", pq.read_table(v30 / file)["task_index"].to_numpy() * 5 + 2)
        columns = {"task_index": [7, 2], "task": ["pull", "push"]}
    pq.write_table(tasks_table(columns, None if index == "gaps" else index), v30 / "meta/tasks.parquet")
    is_right(v30)


def test_a_task_goes_by_its_row_as_in_lerobot(v30, caplog):
    pq.write_table(tasks_table({"task_index": [1, 0], "task": ["push", "pull"]}, "task"), v30 / "meta/tasks.parquet")
    is_right(v30)
    assert "task_index does not count the rows" in caplog.text


@pytest.mark.parametrize(("numbers", "used"), [([0, 5], [0, 1]), ([0, 5], [0, 5]), ([1, 2], [1, 2])])
def test_numbers_that_cannot_be_rows_stand_beside_the_rows(v30, numbers, used):
    """LeRobot reads the row that the data name; where there is none it fails, and the numbers are believed."""
    edit_table(v30 / "meta/tasks.parquet", lambda table: table.set_column(0, "task_index", pa.array(numbers)))
    for file in FILES:
        old = pq.read_table(v30 / file)["task_index"].to_pylist()
        set_column(v30 / file, "task_index", [used[number] for number in old])
    is_right(v30)


def test_two_texts_without_a_name_are_refused(v30):
    pq.write_table(tasks_table({"task_index": [0], "a": ["x"], "b": ["y"]}), v30 / "meta/tasks.parquet")
    with pytest.raises(
        DatasetError, match=r"tasks.parquet: expected a column of text, named task .* found .*download meta/ again"
    ):
        LeRobotDataset.open(v30)


@pytest.mark.parametrize("end", ["\r\n", "\n\n \n"])
def test_lines_of_other_editors(v21, end):
    for file in (v21 / "meta").glob("*.json*"):
        file.write_bytes(b"\xef\xbb\xbf" + end.join(file.read_text().splitlines()).encode() + end.encode())
    is_right(v21)


def test_a_line_ends_at_line_feeds_only(v21):
    file = v21 / "meta/tasks.jsonl"
    text = "pull\u2028gently\x85"
    lines = [{"task_index": 0, "task": "push"}, {"task_index": 1, "task": text}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert LeRobotDataset.open(v21).tasks == ("push", text)


def test_a_single_task_may_be_text(v21):
    file = v21 / "meta/episodes.jsonl"
    file.write_text(file.read_text().replace('["pull"]', '"pull"'))
    assert [episode.task for episode in is_right(v21).episodes] == list(TASKS)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.string(), pa.uint8(), pa.decimal128(6, 1)])
@pytest.mark.parametrize("name", ["task_index", "episode_index", "frame_index"])
def test_counters_are_cast(v30, name, kind):
    for file in FILES:
        values = pq.read_table(v30 / file)[name].cast(pa.int16()).cast(kind)
        set_column(v30 / file, name, values.combine_chunks())
    is_right(v30)


def test_numbers_of_the_metadata_are_cast(v30):
    file = v30 / "meta/episodes/chunk-000/file-000.parquet"
    for name in ("length", "dataset_from_index", "episode_index", "data/file_index"):
        set_column(file, name, pq.read_table(file)[name].to_numpy().astype(np.float64))
    edit_info(v30, lambda info: info.update(chunks_size="2", fps="10"))
    is_right(v30)


@pytest.mark.parametrize(
    ("write", "pattern"),
    [(write_v21, "meta/*.jsonl"), (write_v30, "**/*.parquet"), (write_v30, "**/*.mp4"), (write_v21, "**/info.json")],
)
def test_pointers_of_git_lfs_are_called_so(tmp_path, write, pattern):
    root = write(tmp_path / "data")
    for file in root.glob(pattern):
        file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 582\n")
    with pytest.raises(DatasetError, match=r"is a pointer of Git LFS.*run `git lfs pull`"):
        LeRobotDataset.open(root).check_cameras([CAMERA])
    if pattern == "**/*.mp4":
        with pytest.raises(DatasetError, match=r"mp4 is a pointer of Git LFS"):
            LeRobotDataset.open(root).image(0, CAMERA)


def test_advice_names_only_options_of_the_command(v21):
    file = v21 / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    file.write_bytes(b"not a video" * 100)
    endings = {
        TRAIN_OPTIONS: "leave the episode out with --dataset.episodes, or replace bad frames with --dataset.skip-bad",
        EVALUATE_OPTIONS: "leave the episode out with --dataset.episodes",
        PACK_OPTIONS: "choose other cameras with --cameras",
    }
    for options, ending in endings.items():
        with pytest.raises(DatasetError, match=f"copy or download the file again, or {ending}$"):
            LeRobotDataset.open(v21, options=options).image(8, CAMERA)
    with pytest.raises(DatasetError, match=r"copy or download the file again$"):
        LeRobotDataset.open(v21).image(8, CAMERA)
