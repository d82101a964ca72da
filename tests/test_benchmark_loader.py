"""The loader benchmark: what it counts, and that it runs train.py's own pipeline."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.loader import READ_AHEAD, LoaderConfig, measure_batches, run


def test_waiting_batches_are_not_measured() -> None:
    source = itertools.count()
    assert measure_batches(source, 5, 3) >= 0
    assert next(source) == 3 + 1 + 5


def test_a_result_is_printed_and_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "results.jsonl"
    for _ in range(2):
        run(LoaderConfig(batch=2, workers=0, batches=1, runs=2, json=file))
    printed = capsys.readouterr().out.splitlines()
    lines = file.read_text().splitlines()
    assert lines == [line for line in printed if line.startswith("{")]
    record = json.loads(lines[1])
    assert (record["benchmark"], record["settings"]["workers"]) == ("loader", 0)
    assert record["samples_per_second"]["runs"] == 2
    assert 0 < record["samples_per_second"]["min"] <= record["samples_per_second"]["max"]
    assert {"jax", "av"} <= set(record["versions"])
    assert READ_AHEAD >= 2  # `make_loader` reads two batches ahead, and holds one
