"""Packed datasets: the frames of the videos to the bit, or to JPEG's rounding, and nothing else changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxreflow.data import pack as command
from jaxreflow.data.holdout import holdout_split
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.loader import TrainingSource, make_loader
from jaxreflow.data.pack import PackConfig, pack
from jaxreflow.data.packed_frames import pack_record, unpack_record
from jaxreflow.errors import DatasetError
from jaxreflow.model.vision import fitted_size
from tests.lerobot_fixtures import CAMERA, write_v21, write_v30

WRITERS = {"v3.0": write_v30, "v2.1": write_v21}


def frames(dataset: LeRobotDataset) -> np.ndarray:
    return np.stack([dataset.image(int(index), CAMERA) for index in dataset.frame_indices()])


def source(dataset: LeRobotDataset) -> TrainingSource:
    words = np.zeros((len(dataset.tasks), 2), np.int32)
    return TrainingSource(
        dataset, dataset.frame_indices(), cameras={CAMERA: CAMERA}, chunk_size=3, max_state_dim=8, max_action_dim=8,
        tokenize=lambda _: (words, words == 0), normalize_state=np.asarray, normalize_action=np.asarray,
    )  # fmt: skip


@pytest.mark.parametrize("version", WRITERS)
@pytest.mark.parametrize("image_format", [None, "PNG"])
def test_training_from_raw_frames_is_exact(tmp_path: Path, version: str, image_format: str | None) -> None:
    """Also once the dataset that was packed is gone, and in episodes that are picked."""
    before = LeRobotDataset.open(WRITERS[version](tmp_path / "data", image_format=image_format))
    expected = frames(before), next(make_loader(source(before), batch_size=8, seed=1))
    pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "out")), shard_frames=4)
    shutil.rmtree(tmp_path / "data")
    after = LeRobotDataset.open(tmp_path / "out")
    assert sorted(path.suffix for path in (tmp_path / "out").rglob("*") if path.suffix in (".mp4", ".png")) == []
    np.testing.assert_array_equal(frames(after), expected[0])
    found = next(make_loader(source(after), batch_size=8, seed=1))
    np.testing.assert_array_equal(found["images"][CAMERA], expected[1]["images"][CAMERA])
    for name in ("state", "actions", "action_is_pad", "index"):
        np.testing.assert_array_equal(found[name], expected[1][name])
    picked = LeRobotDataset.open(tmp_path / "out", episodes=[2])
    np.testing.assert_array_equal(frames(picked), expected[0][picked.frame_indices()])
    assert holdout_split(after, 0.4, 0) == holdout_split(before, 0.4, 0)


def test_jpeg_is_smaller_and_close(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "data")
    raw = pack(PackConfig(str(root), str(tmp_path / "raw")))
    jpeg = pack(PackConfig(str(root), str(tmp_path / "jpeg"), encoding="jpeg"))
    difference = np.abs(frames(jpeg).astype(int) - frames(raw).astype(int))
    assert 0 < difference.max() <= 4
    size = {out: (tmp_path / out / "frames" / "shard-00000.arrayrecord").stat().st_size for out in ("raw", "jpeg")}
    assert size["jpeg"] < size["raw"] / 3


def test_frames_are_scaled_down_to_the_policys_size_only(tmp_path: Path) -> None:
    """64 x 96 frames for a policy that looks at 48 x 48, and for one that looks at 512 x 512."""
    root = write_v30(tmp_path / "data")
    for size, expected in ((48, (32, 48)), (512, (64, 96))):
        policy = tmp_path / f"policy{size}"
        policy.mkdir()
        (policy / "config.json").write_text(json.dumps({"type": "smolvla", "resize_imgs_with_padding": [size, size]}))
        packed = pack(PackConfig(str(root), str(tmp_path / f"out{size}"), policy=str(policy)))
        assert packed.image(3, CAMERA).shape == (*expected, 3)
    # The brightness tells the frame; half the size is the mean of pixels, rounded.
    small, large = (frames(LeRobotDataset.open(tmp_path / f"out{size}")).astype(float) for size in (48, 512))
    mean = large.reshape(-1, 32, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(small - mean).max() <= 0.5 + 1e-3
    assert fitted_size(64, 96, (48, 48)) == (32, 48)


def test_unfinished_pack_is_no_dataset_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_v30(tmp_path / "data"), tmp_path / "out"
    original, written = command.write_shard, []

    def fail_after_two(path: Path, *args: object) -> None:
        if len(written) == 2:
            raise DatasetError(f"{path} cannot be written")
        original(path, *args)  # type: ignore[arg-type]
        written.append(path)

    monkeypatch.setattr(command, "SHARD_FRAMES", 4)
    monkeypatch.setattr(command, "write_shard", fail_after_two)
    with pytest.raises(DatasetError, match="cannot be written"):
        pack(PackConfig(str(root), str(out)), shard_frames=4)
    with pytest.raises(DatasetError):
        LeRobotDataset.open(out)
    monkeypatch.setattr(command, "write_shard", original)
    kept = written[0].stat().st_mtime_ns
    assert len(frames(pack(PackConfig(str(root), str(out)), shard_frames=4))) == 18
    assert written[0].stat().st_mtime_ns == kept
    assert command.main([str(root), str(out), "--encoding", "jpeg"]) == 1
    assert "holds another packed dataset" in capsys.readouterr().err
    written[1].unlink()
    with pytest.raises(DatasetError, match=r"shard-00001.arrayrecord is missing \(1 of 5 shards are\)"):
        LeRobotDataset.open(out)


@pytest.mark.slow
def test_workers_write_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v30(tmp_path / "data")
    assert command.main([str(root), str(tmp_path / "one")]) == 0
    assert "18 frames" in capsys.readouterr().out
    pack(PackConfig(str(root), str(tmp_path / "two"), num_workers=2), shard_frames=4)
    one, two = (frames(LeRobotDataset.open(tmp_path / name)) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_damaged_frames_are_named(tmp_path: Path) -> None:
    packed = pack(PackConfig(str(write_v30(tmp_path / "data")), str(tmp_path / "out")))
    shard = tmp_path / "out" / "frames" / "shard-00000.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    shard.write_bytes(bytes(damaged))
    with pytest.raises(DatasetError, match=r"cannot decode frame \d of episode \d, camera"):
        frames(LeRobotDataset.open(packed.root))


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "all"},
        {"frames": 10**15},
        {"shard_frames": 0},
        {"cameras": {CAMERA: [1e999, 1]}},
        {"encoding": "gif"},
    ],
    ids=str,
)
def test_damaged_manifests_are_named(tmp_path: Path, change: dict) -> None:
    packed = pack(PackConfig(str(write_v30(tmp_path / "data")), str(tmp_path / "out")))
    manifest = packed.root / "frames" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(DatasetError, match=r"frames/manifest\.json: expected the manifest of a packed dataset"):
        LeRobotDataset.open(packed.root)


def test_a_camera_that_was_not_packed_is_named(tmp_path: Path) -> None:
    packed = pack(PackConfig(str(write_v30(tmp_path / "data")), str(tmp_path / "out")))
    manifest = packed.root / "frames" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(CAMERA, "wrist"))
    with pytest.raises(DatasetError, match=f"no camera '{CAMERA}' of colours, only none"):
        LeRobotDataset.open(packed.root).image(0, CAMERA)


def test_records_hold_what_was_put_in() -> None:
    assert unpack_record(pack_record([b"abc", b"", b"d"]), 3) == [b"abc", b"", b"d"]
    for record, images in ((pack_record([b"abc"]), 2), (pack_record([b"abc"])[:-1], 1)):
        with pytest.raises(ValueError, match="expected"):
            unpack_record(record, images)
