"""Trackers, written for real and read back: the same points as `metrics.jsonl`, each once, and no secrets."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.run.record import trackers
from jaxreflow.run.record.metrics import MetricsLog, last_logged, read_metrics
from jaxreflow.run.record.trackers import check_tracker, open_tracker
from tests.event_files import read_events, read_wandb, shown, shown_scalars, wait_for_wandb, wandb_config, wandb_history

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
FACTS = {"commit": "0123", "settings": {"steps": 6, "names": ["a", "b"]}}
TOKEN = "hf_secretSECRETsecret0123456789"
WANDB_KEY = "0123456789abcdef" * 2 + "01234567"


def log_run(run: Path, tracker: str, start: int, steps: range) -> None:
    """A start of a run that logs two records for every update; they differ from start to start."""
    with (
        open_tracker(tracker, run, start=start, logged=last_logged(run)) as tracking,
        MetricsLog(run, start=start, steps=6, tracking=tracking) as log,
    ):
        tracking.facts(start, "provenance", {**FACTS, "start": start})
        if not start:
            tracking.image(0, "cameras/top", PICTURE)
        for step in steps:
            log.write(step, {"loss": step + start / 8, "student@1_error": 0.5})
            log.write(step, {"held_out_loss": step / 2, "student@1_error/dx": 0.25})


def test_event_files_hold_what_was_logged(tmp_path: Path) -> None:
    log_run(tmp_path, "tensorboard", 0, range(1, 3))
    assert shown_scalars(tmp_path / "tensorboard") == {
        "loss": [(1, 1), (2, 2)],
        "student@1_error": [(1, 0.5), (2, 0.5)],
        "held_out_loss": [(1, 0.5), (2, 1)],
        "student@1_error/dx": [(1, 0.25), (2, 0.25)],
    }
    values = {value.tag: value for event in shown(tmp_path / "tensorboard") for value in event.summary.value}
    text = values["provenance/text_summary"].tensor.string_val[0].decode()
    assert '    "commit": "0123",\n' in text
    picture = Image.open(io.BytesIO(values["cameras/top"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(picture), PICTURE)


def test_a_resumed_runs_points_are_shown_once(tmp_path: Path) -> None:
    log_run(tmp_path, "tensorboard", 0, range(1, 5))
    log_run(tmp_path, "tensorboard", 2, range(3, 7))
    found = shown_scalars(tmp_path / "tensorboard")
    assert found["loss"] == [(1, 1), (2, 2), (3, 3.25), (4, 4.25), (5, 5.25), (6, 6.25)]
    assert found["loss"] == [(r["step"], r["loss"]) for r in read_metrics(tmp_path) if "loss" in r]
    # The pictures and facts of the beginning stay.
    tags = [value.tag for event in shown(tmp_path / "tensorboard") for value in event.summary.value]
    assert tags.count("cameras/top") == 1
    assert tags.count("provenance/text_summary") == 2


def test_points_can_be_read_at_once(tmp_path: Path) -> None:
    """A run that is killed has written all that it logged."""
    with open_tracker("tensorboard", tmp_path, start=0, logged=0) as tracking:
        tracking.scalars(1, {"loss": 1.0})
        (file,) = (tmp_path / "tensorboard").iterdir()
        assert list(read_events(file))[-1].summary.value[0].tag == "loss"


def test_an_offline_wandb_run_holds_what_was_logged_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a resumed one goes on under the same id, without the points that it has."""
    settings = {"WANDB_MODE": "offline", "WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": TOKEN, "WANDB_SILENT": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    log_run(tmp_path, "wandb", 0, range(1, 5))
    log_run(tmp_path, "wandb", 2, range(3, 7))
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    assert first.name == second.name == f"run-{run_id}.wandb"
    for file in (first, second):
        wait_for_wandb(file)
    rows = wandb_history(first)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    assert (
        rows[4].items() >= {"loss": 4, "student@1_error": 0.5, "held_out_loss": 2, "student@1_error/dx": 0.25}.items()
    )
    picture = next((first.parent / "files").rglob("*.png"))
    with Image.open(picture) as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    assert wandb_config(first)["provenance"] == {**FACTS, "start": 0}
    assert [(row["_step"], row["loss"]) for row in wandb_history(second)] == [(5, 5.25), (6, 6.25)]
    assert wandb_config(second)["provenance"]["start"] == 2
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    for secret in (TOKEN, WANDB_KEY):
        assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not any(record.run.host for file in (first, second) for record in read_wandb(file))
    assert "requirements.txt" not in {path.name for path in written}


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(_: object, step: int, *__: object) -> None:
        calls.append(step)
        raise OSError(f"no route to host, Bearer {TOKEN}")

    monkeypatch.setattr(trackers._TensorBoard, "scalars", fail)
    with caplog.at_level(logging.WARNING):
        log_run(tmp_path, "tensorboard", 0, range(1, 7))
    assert calls == [1]
    (record,) = caplog.records
    assert "--tracker failed (OSError: no route to host, Bearer ***) and gets nothing more" in record.getMessage()
    assert [r["step"] for r in read_metrics(tmp_path) if "loss" in r] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_cannot_start_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(
        TrainingError, match=r"tensorboard: cannot be started \(FileExistsError.*--resume --tracker none"
    ):
        open_tracker("tensorboard", tmp_path, start=0, logged=0)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("none")
    check_tracker(name)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    check_tracker("none")
    with pytest.raises(ConfigError, match=rf'expected the package {package}, .* pip install "jaxreflow\[{name}\]"'):
        check_tracker(name)


def test_only_the_first_process_has_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "is_first", lambda: False)
    with open_tracker("tensorboard", tmp_path, start=0, logged=0) as tracking:
        tracking.scalars(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_the_console_leaves_single_dimensions_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricsLog(tmp_path, start=0, steps=1) as log, caplog.at_level(logging.INFO):
        log.write(1, {"student@1_error": 0.5, "student@1_error/dx": 0.25, "samples/s": 3.0})
    assert caplog.messages == ["step 1/1: student@1_error 0.5, samples/s 3"]
    assert "student@1_error/dx" in (tmp_path / "metrics.jsonl").read_text()
