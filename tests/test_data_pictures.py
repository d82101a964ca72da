"""Pictures in parquet files, and which cameras are read."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxreflow.data import pack
from jaxreflow.data.advice import EVALUATE_OPTIONS
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.pictures import decode_cell, decode_picture
from jaxreflow.errors import DatasetError
from tests.dataset_edits import FILES, edit_info, edit_table, is_right, set_column
from tests.lerobot_fixtures import CAMERA, picture, write_v30

DEPTH = "observation.images.depth"


# Pictures in parquet files


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_lossless_formats_are_exact(kind, options):
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(picture(3)), kind, **options)), picture(3))


def test_modes_become_the_colours_that_they_stand_for():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=-1))
    two = np.zeros((6, 8, 3), np.uint8)
    two[:3], two[3:] = (250, 10, 20), (5, 200, 7)
    palette = Image.fromarray(two).quantize(2)
    np.testing.assert_array_equal(decode_picture(encoded(palette, "PNG")), two)
    alpha = Image.fromarray(np.concatenate([two, np.full((6, 8, 1), 40, np.uint8)], axis=-1))
    np.testing.assert_array_equal(decode_picture(encoded(alpha, "PNG")), two)
    bits = Image.fromarray(grey > 20)
    np.testing.assert_array_equal(decode_picture(encoded(bits, "PNG"))[..., 1], np.where(grey > 20, 255, 0))
    cmyk = Image.fromarray(two).convert("CMYK")
    np.testing.assert_array_equal(decode_picture(encoded(cmyk, "TIFF")), two)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_stand_upright_as_their_exif_says(kind):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: what is on the left comes to the top
    upright = decode_picture(
        encoded(Image.fromarray(image), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    )
    assert upright.shape == (64, 32, 3)
    assert upright[:28].min() > 190
    assert upright[36:].max() < 10


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_numbers_of_more_than_eight_bits_are_no_colours(dtype):
    data = encoded(Image.fromarray(np.full((6, 8), 500, dtype)), "TIFF")
    with pytest.raises(DatasetError, match=r"TIFF image has one number of more than 8 bits a pixel .*depth"):
        decode_picture(data)


def test_what_is_no_picture_is_said():
    with pytest.raises(
        DatasetError, match="10 bytes from b'no pictu' on are no image that can be read; expected one of PNG"
    ):
        decode_cell({"bytes": b"no picture", "path": None})
    with pytest.raises(DatasetError, match="no image bytes"):
        decode_cell({"bytes": None, "path": "x.png"})
    for damaged in (encoded(Image.fromarray(picture(3)), kind)[:60] for kind in ("TIFF", "WEBP", "BMP", "PNG")):
        with pytest.raises(DatasetError):
            decode_cell(damaged)


def test_pixels_may_stand_in_lists():
    np.testing.assert_array_equal(decode_cell(picture(3)[:4, :5].tolist()), picture(3)[:4, :5])
    np.testing.assert_array_equal(decode_cell([[1, 2], [3, 4]])[..., 2], [[1, 2], [3, 4]])
    with pytest.raises(DatasetError, match="from 0 to 255"):
        decode_cell([[1, 256]])


# Cameras


def add_depth(root, **about):
    for file in FILES:
        maps = [{"bytes": b"never read", "path": None}] * len(pq.read_table(root / file))
        edit_table(root / file, lambda table, maps=maps: table.append_column(DEPTH, pa.array(maps)))
    edit_info(root, lambda info: info["features"].update({DEPTH: {"dtype": "image", "shape": [64, 96, 1], **about}}))


@pytest.mark.parametrize(
    "about",
    [
        {"info": {"is_depth_map": True}},
        {"info": {"video.is_depth_map": True}},
        {"video_info": {"video.is_depth_map": True}},
    ],
)
def test_depth_is_left_out_unless_it_is_asked_for(tmp_path, about):
    root = write_v30(tmp_path / "data", image_format="PNG")
    add_depth(root, **about)
    dataset = is_right(root)
    assert dataset.camera_keys == (CAMERA,)
    assert pack.pack(pack.PackConfig(str(root), str(tmp_path / "packed"))).camera_keys == (CAMERA,)
    with pytest.raises(
        DatasetError, match=f"no camera '{DEPTH}' of colours, only {CAMERA}, because {DEPTH} holds depth maps"
    ):
        dataset.image(0, DEPTH)
    with pytest.raises(
        DatasetError, match=f"camera '{DEPTH}' holds depth maps, but the policy's 'wrist' takes colours"
    ):
        dataset.refuse_depth(["wrist"], {DEPTH: "wrist"})
    dataset.refuse_depth([CAMERA], {})


@pytest.mark.parametrize("case", ["no files", "no columns"])
def test_cameras_that_nobody_asks_for_stop_nothing(v30, case):
    spec = {"dtype": "video", "names": None}  # LeRobot reads no shape of a video
    edit_info(v30, lambda info: info["features"].update({"wrist": spec}))
    if case == "no files":
        for name in ("chunk_index", "file_index", "from_timestamp"):
            edit_table(
                v30 / "meta/episodes/chunk-000/file-000.parquet",
                lambda table, name=name: table.append_column(f"videos/wrist/{name}", pa.array([0, 0, 0])),
            )
    dataset = is_right(v30)
    dataset.check_cameras([CAMERA])
    expected = "file-000.mp4 is missing" if case == "no files" else "name no video of camera 'wrist' for episode 0"
    with pytest.raises(DatasetError, match=expected):
        dataset.check_cameras(["wrist"])
    with pytest.raises(DatasetError, match=expected):
        dataset.image(0, "wrist")
    with pytest.raises(DatasetError, match=f"{expected}.*choose other cameras with --cameras"):
        pack.pack(pack.PackConfig(str(v30), str(v30.parent / "packed")))
    packed = pack.pack(pack.PackConfig(str(v30), str(v30.parent / "packed"), cameras=(CAMERA,)))
    assert packed.camera_keys == (CAMERA,)


def test_sizes_that_differ_are_named(tmp_path):
    root = write_v30(tmp_path / "data", image_format="PNG")
    small = encoded(Image.fromarray(picture(12)[:40, :50]), "PNG")
    set_column(root / FILES[1], CAMERA, [{"bytes": small, "path": None}] * 6)
    dataset = LeRobotDataset.open(root, options=EVALUATE_OPTIONS)
    expected = f"camera '{CAMERA}' has 40 x 50 pixels in frame 2 of episode 2, but 64 x 96 in frame 0 of episode 0"
    with pytest.raises(DatasetError, match=f"{expected}.*, or leave the episode out with --dataset.episodes$"):
        dataset.image(14, CAMERA)
    with pytest.raises(DatasetError, match="has 40 x 50 pixels in frame 0 of episode 2"):
        dataset.cache_frames()
    for out, policy in (("whole", None), ("scaled", "tests/assets/teacher")):
        with pytest.raises(DatasetError, match="has 40 x 50 pixels in frame 0 of episode 2"):
            pack.pack(pack.PackConfig(str(root), str(tmp_path / out), policy=policy))
    assert LeRobotDataset.open(root, episodes=(2,)).image(14, CAMERA).shape == (40, 50, 3)
