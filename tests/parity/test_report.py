"""The parity table, and the file that it is made of."""

from pathlib import Path

import pytest

from tests.parity import report


def test_versions_are_kept_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MEASUREMENTS", tmp_path / "build" / "parity.json")
    assert report.read() == {}
    report.keep("0.6.1", {"tiny": {"tokens": 0.0, "chunk": 7.2e-7}, "aloha": {"chunk": 8e-7}})
    report.keep("0.4.4", {"tiny": {"chunk": 1.0}})
    report.keep("0.4.4", {"tiny": {"chunk": 5e-7, "shifted_chunk": 4e-7}})
    lines = report.render(report.read()).splitlines()
    assert lines[:5] == [
        "| quantity | bound | 0.4.4: variants | largest error | of variant | 0.6.1: variants | largest error | of variant |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| tokens and their mask | exact | 0 | | - | 1 | exact | - |",
        "| the policy's 10-step chunk, in dataset units | 1e-4 | 1 | 5e-7 | tiny | 2 | 8e-7 | aloha |",
        "| action chunk, shifted positions | 1e-4 | 1 | 4e-7 | tiny | 0 | | - |",
    ]
    assert lines[6:9] == ["| LeRobot 0.4.4 | chunk | shifted_chunk |", "| --- | --- | --- |", "| tiny | 5e-7 | 4e-7 |"]
    assert lines[-1] == "| aloha |  | 8e-7 |"
