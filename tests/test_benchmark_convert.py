"""The conversion benchmark, on a small policy."""

from pathlib import Path

import pytest

from benchmarks.child import Finished, run_module
from benchmarks.convert import convert, figures

TEACHER = Path(__file__).parent / "assets" / "teacher"


@pytest.mark.slow
def test_both_directions_are_measured(tmp_path: Path) -> None:
    there, back = convert(TEACHER, tmp_path)
    assert (tmp_path / "orbax" / "params").is_dir()
    assert (tmp_path / "lerobot" / "model.safetensors").read_bytes() == (TEACHER / "model.safetensors").read_bytes()
    for run in (there, back):
        assert run.cpu_seconds > 0
        # Python with JAX takes more than 50 MB; more than 10 GB would be kilobytes taken for bytes.
        assert 50e6 < run.peak_bytes < 10e9


def test_figures() -> None:
    runs = [Finished(seconds, 1.0, peak, "") for seconds, peak in ((2.0, 5), (4.0, 7), (3.0, 6))]
    found = figures(runs, 6_000_000)
    assert found["seconds"] == {"median": 3.0, "min": 2.0, "max": 4.0, "p99": pytest.approx(3.98), "runs": 3}
    assert (found["megabytes_per_second"], found["peak_bytes"]) == (2.0, 7)


@pytest.mark.slow
def test_a_failed_command_is_shown() -> None:
    with pytest.raises(SystemExit, match=r"(?s)inspect nowhere` ended with 1:.*nowhere: no such folder"):
        run_module("convert", ["inspect", "nowhere"])
