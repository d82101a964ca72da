"""Reading LeRobotDatasets: layouts, codecs, exact frames, action chunks, splits."""

import json
import pickle

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxreflow.data.dataset_stats import aggregate_stats
from jaxreflow.data.holdout import holdout_split
from jaxreflow.data.lerobot import LeRobotDataset, load_dataset
from jaxreflow.data.video import FrameReaders, VideoReader
from jaxreflow.errors import ConfigError, DatasetError
from tests.lerobot_fixtures import (
    CAMERA,
    LENGTHS,
    METAWORLD,
    TASKS,
    actions,
    brightness,
    picture,
    write_v21,
    write_v30,
    write_video,
)


@pytest.fixture(scope="module")
def metaworld():
    return load_dataset(METAWORLD)


@pytest.fixture(params=["v2.1", "v3.0"])
def dataset(request, tmp_path):
    return LeRobotDataset.open((write_v21 if request.param == "v2.1" else write_v30)(tmp_path / "data"))


def test_metaworld_counts(metaworld):
    assert (len(metaworld.episodes), metaworld.num_frames, metaworld.fps) == (240, 18355, 80)
    assert metaworld.camera_keys == ("observation.image",)
    assert metaworld.tasks == ("Bypass a wall and reach a goal", "Press a button from the top", "Press a handle down")
    assert metaworld.episodes[-1].last == 18354
    np.testing.assert_allclose(metaworld.stats["action"]["mean"], metaworld.column("action").mean(axis=0), atol=1e-5)
    frame = metaworld.frame(100)
    assert (frame["observation.image"].shape, frame["observation.image"].dtype) == ((96, 96, 3), np.uint8)
    assert (frame["episode_index"], frame["frame_index"], frame["task"]) == (1, 19, "Bypass a wall and reach a goal")
    np.testing.assert_array_equal(frame["observation.state"], metaworld.column("observation.state")[100])


def test_metaworld_random_access_equals_sequential_decoding(metaworld):
    with av.open(str(METAWORLD / "videos/observation.image/chunk-000/file-000.mp4")) as container:
        sequential = []
        for frame in container.decode(video=0):
            sequential.append(frame.to_ndarray(format="rgb24"))
            if len(sequential) == 400:
                break
    for index in np.random.default_rng(0).permutation(400)[:60]:
        np.testing.assert_array_equal(metaworld.image(int(index), "observation.image"), sequential[index])


def test_layouts_agree(dataset):
    assert [(e.index, e.length, e.first, e.task) for e in dataset.episodes] == [
        (0, 7, 0, "push"),
        (1, 5, 7, "pull"),
        (2, 6, 12, "push"),
    ]
    assert dataset.tasks == ("push", "pull")
    np.testing.assert_array_equal(dataset.column("action"), actions(range(18)))
    for index in (17, 3, 0, 6, 7, 11, 12):
        frame = dataset.frame(index)
        assert abs(frame[CAMERA].mean() - brightness(index)) < 4
        np.testing.assert_array_equal(frame["observation.state"], np.float32([index, -index]))
        episode = int(np.searchsorted(np.cumsum(LENGTHS), index, side="right"))
        assert (frame["episode_index"], frame["task"]) == (episode, TASKS[episode])
        assert frame["frame_index"] == index - sum(LENGTHS[:episode])


def test_chunks_stop_at_the_episode_end(dataset):
    values, is_pad = dataset.action_chunk(10, 4)
    np.testing.assert_array_equal(values, actions([10, 11, 11, 11]))
    np.testing.assert_array_equal(is_pad, [False, False, True, True])
    values, is_pad = dataset.action_chunk(0, 3)
    np.testing.assert_array_equal(values, actions([0, 1, 2]))
    assert not is_pad.any()


def test_selected_episodes_keep_their_indices(dataset):
    part = LeRobotDataset(dataset.metadata, (2, 0))
    assert [e.index for e in part.episodes] == [0, 2]
    assert (part.num_frames, part.tasks) == (13, ("push",))
    assert part.frame_indices().tolist() == [*range(7), *range(12, 18)]
    assert part.frame_indices((2,)).tolist() == list(range(12, 18))
    np.testing.assert_array_equal(part.image(13, CAMERA), dataset.image(13, CAMERA))
    np.testing.assert_array_equal(part.column("action"), actions(part.frame_indices()))
    with pytest.raises(DatasetError, match="frame 8 is in none of the 2 selected"):
        part.frame(8)
    with pytest.raises(DatasetError, match=r"episodes \[5\]"):
        LeRobotDataset(dataset.metadata, (0, 5))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_every_frame_in_any_order(codec, tmp_path):
    write_video(tmp_path / "video.mp4", range(20), codec)
    with av.open(str(tmp_path / "video.mp4")) as container:
        sequential = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    reader = VideoReader(tmp_path / "video.mp4")
    for index in (*range(19, -1, -1), *np.random.default_rng(1).permutation(20), *range(20)):
        np.testing.assert_array_equal(reader.frame(index / 10, 1e-4), sequential[index])
    reader.close()


def test_png_in_parquet_is_exact_and_jpeg_is_close(tmp_path):
    png = LeRobotDataset.open(write_v21(tmp_path / "png", image_format="PNG"))
    jpeg = LeRobotDataset.open(write_v30(tmp_path / "jpeg", image_format="JPEG"))
    for index in (0, 6, 7, 17, 9):
        np.testing.assert_array_equal(png.image(index, CAMERA), picture(index))
        assert np.abs(jpeg.image(index, CAMERA).astype(int) - picture(index)).max() < 12


def test_rows_may_stand_in_any_order(tmp_path):
    root = write_v30(tmp_path / "data", image_format="PNG")
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([*range(7, 12), *range(7)]), file)
    dataset = LeRobotDataset.open(root)
    np.testing.assert_array_equal(dataset.column("action"), actions(range(18)))
    for index in (0, 6, 7, 11, 12):
        np.testing.assert_array_equal(dataset.image(index, CAMERA), picture(index))


def test_timestamps_that_are_not_multiples_of_the_period_are_believed(tmp_path):
    dataset = LeRobotDataset.open(write_v21(tmp_path / "data"))
    dataset.column("timestamp")[2] = 0.4
    assert abs(dataset.image(2, CAMERA).mean() - brightness(4)) < 4


def test_statistics_of_episodes_combine_exactly(tmp_path):
    dataset = LeRobotDataset.open(write_v21(tmp_path / "data"))
    every = actions(range(18)).astype(np.float64)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(dataset.stats["action"][name], getattr(every, name)(axis=0), rtol=1e-12)
    image = {
        name: np.full((3, 1, 1), value) for name, value in (("min", 0.0), ("max", 1.0), ("mean", 0.5), ("std", 0.1))
    }
    combined = aggregate_stats([{"camera": image | {"count": np.array([n])}} for n in (3, 5)])
    assert combined["camera"]["mean"].shape == (3, 1, 1)
    assert combined["camera"]["count"].tolist() == [8]


def test_quantiles_that_all_episodes_have_combine_as_in_lerobot():
    def part(value, count, **quantiles):
        group = dict.fromkeys(("min", "max", "mean", "std"), np.full(2, value)) | {"count": np.array([count])}
        return {"action": group | {name: np.array(quantile) for name, quantile in quantiles.items()}}

    combined = aggregate_stats([part(0.0, 3, q01=[1.0, 2.0], q50=[1.0, 1.0]), part(1.0, 1, q01=[5.0, 4.0])])["action"]
    np.testing.assert_allclose(combined["q01"], [(3 * 1 + 5) / 4, (3 * 2 + 4) / 4], rtol=1e-12)
    assert "q50" not in combined


def test_old_datasets_keep_their_stats_json(tmp_path):
    root = write_v21(tmp_path / "data")
    (root / "meta/episodes_stats.jsonl").rename(root / "meta/stats.json")
    (root / "meta/stats.json").write_text('{"action": {"mean": [1, 2, 3]}}')
    info = json.loads((root / "meta/info.json").read_text()) | {"codebase_version": "v2.0"}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert LeRobotDataset.open(root).stats["action"]["mean"].tolist() == [1, 2, 3]


def test_cache_is_bit_identical_and_bounded(dataset):
    order = np.random.default_rng(0).permutation(18).tolist()
    random_access = [dataset.image(index, CAMERA) for index in order]
    with pytest.raises(DatasetError, match="GiB, expected at most"):
        dataset.cache_frames(limit_bytes=1000)
    assert not dataset.cached
    dataset.cache_frames()
    assert dataset.cached
    for index, image in zip(order, random_access, strict=True):
        np.testing.assert_array_equal(dataset.image(index, CAMERA), image)


def test_pickles_without_open_files(dataset):
    dataset.image(3, CAMERA)
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._images._readers._videos
    np.testing.assert_array_equal(copy.image(3, CAMERA), dataset.image(3, CAMERA))


def test_open_videos_are_bounded(tmp_path):
    readers = FrameReaders(max_videos=2)
    for name in "abca":
        path = tmp_path / f"{name}.mp4"
        if not path.exists():
            write_video(path, range(2))
        readers.video_frame(path, 0.1, 1e-4)
        assert len(readers._videos) <= 2
    assert list(readers._videos) == [tmp_path / "c.mp4", tmp_path / "a.mp4"]


def test_image_columns_in_memory_are_bounded(tmp_path):
    dataset = LeRobotDataset.open(write_v21(tmp_path / "data", image_format="PNG"))
    dataset._images._readers = FrameReaders(max_image_bytes=1)
    for index in (0, 5, 17, 0):
        np.testing.assert_array_equal(dataset.image(index, CAMERA), picture(index))
        assert len(dataset._images._readers._images) == 1


def test_holdout_is_by_episode_and_task(metaworld):
    train, held = holdout_split(metaworld, 0.1, seed=3)
    assert sorted(train + held) == list(range(240))
    assert 22 <= len(held) <= 26
    task = {e.index: e.task for e in metaworld.episodes}
    for name in metaworld.tasks:
        count = sum(task[e] == name for e in held)
        assert count == round(0.1 * sum(task[e] == name for e in task))
    assert (train, held) == holdout_split(metaworld, 0.1, seed=3) != holdout_split(metaworld, 0.1, seed=4)
    assert holdout_split(metaworld, 0.0, seed=3) == (tuple(range(240)), ())


def test_holdout_of_few_episodes(dataset):
    train, held = holdout_split(dataset, 0.01, seed=0)
    assert len(held) == 1
    assert 1 in train
    with pytest.raises(DatasetError, match="too few"):
        holdout_split(LeRobotDataset(dataset.metadata, (0,)), 0.1, seed=0)
    with pytest.raises(ConfigError, match="0 <= fraction < 1"):
        holdout_split(dataset, 1.0, seed=0)


def test_hub_downloads_datasets(dataset, monkeypatch):
    asked = {}

    def download(repo_id, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return str(dataset.root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_dataset(repo_id="someone/pushing", revision="v3.0", episodes=(1,)).num_frames == 5
    assert asked == {"repo_id": "someone/pushing", "repo_type": "dataset", "revision": "v3.0", "local_dir": None}

    def fail(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DatasetError, match=r"someone/pushing.*offline"):
        load_dataset(repo_id="someone/pushing")
    with pytest.raises(ConfigError, match=r"--dataset.root"):
        load_dataset()
