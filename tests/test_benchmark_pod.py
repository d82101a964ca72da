"""The arithmetic of pods, by hand; and that the page's pods are compiled."""

import json
from pathlib import Path

import pytest

from benchmarks import jpeg
from benchmarks.pod import PodConfig, pod_figures, sent
from jaxreflow.errors import ConfigError
from tests.tiny_policy import DATASET

SETTINGS = {"batch_per_chip": 2, "noises": 4, "cameras": 2, "reduce_dtype": "float32", "features": False}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """An older result, the newest, and one of other settings: 100 MB of gradients in two all-reduces."""
    collectives = [{"bytes": 60_000_000, "executions": 1}, {"bytes": 20_000_000, "executions": 2}]
    records = [
        {"benchmark": "loader", "settings": {}},
        {"seconds": 9.0, "noises": 4},
        {"seconds": 0.1, "noises": 4},
        {"seconds": 9.0, "noises": 1},
    ]
    for record in records[1:]:
        step = {"optimal_seconds": record["seconds"], "cycles": 300_000_000, "collectives": collectives}
        settings = {**SETTINGS, "topology": "v5e:16x16", "noises": record["noises"]}
        record |= {"benchmark": "tpu", "settings": settings, "chips": 256, "factorised": step}
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_member_sends_its_part_twice() -> None:
    assert sent(100.0, 1) == 0
    assert sent(100.0, 2) == 100
    assert sent(100.0, 4) == 150


def test_a_pod_of_two_slices(lines: Path) -> None:
    figures = pod_figures("2xv5e:16x16", PodConfig(lines=lines, image_size=100, jpeg_ratio=4.0, images_per_core=80.0))
    assert figures == {
        "chips (hosts)": "512 (128)",
        "compute, s: roofline (scheduler)": "0.100 (0.200)",  # 300 million cycles at 1.5 GHz
        "gradients of an update, MB": "100.0",
        "a chip sends over ICI, MB": "199",  # 2 x 255/256 x 100
        "ms, at GB/s": "1.00, 200",  # 199.2 MB at half of 400 GB/s
        "a chip sends to other slices, MB": "0.39",  # 100 / 256
        "ms, at Gbit/s": "0.12, 25",  # 0.39 MB at 3.125 GB/s
        "efficiency, nothing overlapped": "98.9%",  # 100 / 101.12
        "observations/s": "10,126",  # 1,024 / 0.10112
        "images of a host and update": "16",  # 4 chips x 2 observations x 2 cameras
        "raw, MB (MB/s)": "0 (5)",  # 16 x 30,000 bytes in 0.1 s
        "JPEG, MB (MB/s)": "0 (1)",
        "cores that decode it, of a host's": "2.0 of 112",  # 160 images/s at 80
    }


def test_unknown_pods_are_named(lines: Path) -> None:
    for name in ("v5e", "v9:4x4", "two of them"):
        with pytest.raises(ConfigError, match=f"--pods {name}: expected a pod such as v5e:16x16"):
            pod_figures(name, PodConfig(lines=lines))
    with pytest.raises(
        ConfigError, match=r"--pods v5p:8x8x16: expected a result in .*make it with `python -m benchmarks tpu"
    ):
        pod_figures("v5p:8x8x16", PodConfig(lines=lines))


def test_the_pods_of_the_page_are_compiled() -> None:
    for name in PodConfig().pods:
        assert pod_figures(name, PodConfig())["gradients of an update, MB"] == "399.5"


def test_jpeg_ratio_and_rate(tmp_path: Path) -> None:
    jpeg.run(jpeg.JpegConfig(dataset=DATASET, frames=5, runs=2, json=tmp_path / "lines.jsonl"))
    record = json.loads((tmp_path / "lines.jsonl").read_text())
    assert record["shape"] == [96, 96, 3]
    assert 4 < record["ratio"] < 6
    assert record["frames_per_core_second"]["min"] > 0
