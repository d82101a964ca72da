"""Frames of videos: which one a timestamp means, and its colours."""

from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxreflow.data.advice import PACK_OPTIONS, TRAIN_OPTIONS
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.video import VideoReader
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.evaluate.comparison import _basis
from jaxreflow.evaluate.options import DatasetFlags, EvaluateConfig
from jaxreflow.run.config import DatasetConfig, ReflowConfig
from tests.dataset_edits import FILES, edit_info, is_right, set_column
from tests.lerobot_fixtures import CAMERA, brightness, picture, write_v21, write_v30

# Timestamps


def jitter(root, seconds):
    for file in sorted((root / "data").rglob("*.parquet")):
        late = np.random.default_rng(0).uniform(-seconds, seconds, len(pq.read_table(file)))
        set_column(file, "timestamp", (pq.read_table(file)["timestamp"].to_numpy() + late).astype(np.float32))


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_the_nearest_frame_within_the_tolerance(tmp_path, write):
    root = write(tmp_path / "data")
    jitter(root, 0.045)
    is_right(root, tolerance_s=0.05)
    with pytest.raises(
        DatasetError, match=r"no frame within 0.0001 s .*allow half a frame with --dataset.tolerance-s 0.05$"
    ):
        LeRobotDataset.open(root, options=TRAIN_OPTIONS).image(3, CAMERA)
    with pytest.raises(DatasetError, match=r"allow half a frame with --tolerance-s 0.05$"):
        LeRobotDataset.open(root, options=PACK_OPTIONS).image(3, CAMERA)


def test_a_short_video_is_no_jitter(v21):
    folder = v21 / f"videos/chunk-000/{CAMERA}"
    (folder / "episode_000001.mp4").replace(folder / "episode_000000.mp4")
    with pytest.raises(
        DatasetError, match=r"the video ends before it: its last frame is at 0.4\d* s, expected one at 0.6"
    ) as e:
        LeRobotDataset.open(v21, options=TRAIN_OPTIONS).image(6, CAMERA)
    assert "tolerance" not in str(e.value)
    assert abs(LeRobotDataset.open(v21, tolerance_s=0.15).image(5, CAMERA).mean() - brightness(11)) < 4


def test_timestamps_of_another_video_are_no_jitter(v21):
    dataset = LeRobotDataset.open(v21, options=TRAIN_OPTIONS)
    dataset.column("timestamp")[0] = -3.0
    with pytest.raises(DatasetError, match=r"nearest one is at 0.0.*timestamps are not those of this video") as error:
        dataset.image(0, CAMERA)
    assert "tolerance" not in str(error.value)
    dataset.column("timestamp")[0] = np.nan
    with pytest.raises(DatasetError, match="a video has no frame at nan s"):
        dataset.image(0, CAMERA)


def test_frames_at_uneven_times_in_any_order(tmp_path):
    times = [0, 40, 50, 210, 220, 400, 410, 640]
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "3", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(tmp_path / "video.mp4")
    asked = np.random.default_rng(0).permutation(np.arange(0, 680, 7))
    for time in (*asked, *sorted(asked)):
        nearest = int(np.argmin(np.abs(np.array(times) - time)))
        assert abs(reader.frame(time / 1000, 0.2).mean() - brightness(nearest)) < 4, time
    reader.close()


@pytest.mark.parametrize("case", ["absent", "nan"])
def test_timestamps_matter_only_for_videos(tmp_path, case):
    root = write_v30(tmp_path / "data", image_format="PNG")
    for file in FILES:
        set_column(root / file, "timestamp", np.full(len(pq.read_table(root / file)), np.nan, np.float32))
    if case == "absent":
        edit_info(root, lambda info: [info["features"].pop(name) for name in ("timestamp", "frame_index")])
    is_right(root)


# Colours


@pytest.mark.parametrize(("space", "range_"), [(1, 1), (1, 2), (5, 1), (5, 2), (6, 2), (9, 1), (0, 0)])
def test_colours_are_those_recorded_whatever_the_file_says_they_are(tmp_path, space, range_):
    recorded = np.broadcast_to(np.uint8([200, 60, 90]), (64, 64, 3))
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libsvtav1", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        if space:
            stream.codec_context.colorspace, stream.codec_context.color_range = space, range_
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(recorded), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=space or 5, dst_color_range=range_ or 1)
        for _ in range(2):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(tmp_path / "video.mp4")
    assert np.abs(reader.frame(0.0, 1e-4).astype(int) - recorded).max() <= 6
    reader.close()


def test_the_conversion_is_told_both_colour_spaces(tmp_path, monkeypatch):
    # Older versions of PyAV convert by BT.601 of limited range where both are alike.
    from jaxreflow.data import video

    told = []
    original = video.VideoReformatter.reformat

    class Spy:
        def __init__(self):
            self._real = video_reformatter()

        def reformat(self, frame, **options):
            told.append(options)
            return original(self._real, frame, **options)

    video_reformatter = video.VideoReformatter
    monkeypatch.setattr(video, "VideoReformatter", Spy)
    root = write_v21(tmp_path / "data")
    LeRobotDataset.open(root).image(0, CAMERA)
    assert told[0]["dst_color_range"] == 2
    assert told[0]["src_colorspace"] != told[0]["dst_colorspace"]


def test_an_evaluation_has_the_tolerance_of_its_run_or_its_own():
    recorded = ReflowConfig(dataset=DatasetConfig(root="D", tolerance_s=0.04))
    for flags, expected in ((DatasetFlags(), 0.04), (DatasetFlags(tolerance_s=0.02), 0.02), (DatasetFlags("E"), 1e-4)):
        config = EvaluateConfig(teacher="T", out="O", dataset=flags)
        assert _basis(config, recorded).dataset.tolerance_s == expected


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_is_a_positive_time(seconds):
    with pytest.raises(ConfigError, match=r"--dataset.tolerance-s must be positive"):
        DatasetConfig(root="D", tolerance_s=seconds)
