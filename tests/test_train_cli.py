"""`train.py` from the command line: a policy is made, distilled, resumed and refused where it must be."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import train
from jaxreflow import SmolVLAPolicy
from jaxreflow.run import setup
from jaxreflow.run.checkpoints import CheckpointStore, last_step
from jaxreflow.run.record.metrics import read_metrics
from jaxreflow.support.compilation import COMPILE_EVENT
from jaxreflow.support.safetensors_file import TensorFile
from tests.event_files import shown_scalars
from tests.tiny_policy import DATASET, make_vlm

DATA = ["--dataset.root", str(DATASET), "--dataset.episodes", "0", "1", "2", "3", "--dataset.holdout", "0.25"]
SIZE = ["--batch-size", "4", "--log-every", "1", "--eval-every", "4", "--eval-batches", "1", "--save-every", "2"]
ARCHITECTURE = ["--policy.new", "--policy.vlm-model-name", "tiny/vlm", "--policy.num-vlm-layers", "2"]
ARCHITECTURE += [
    "--policy.chunk_size",
    "3",
    "--policy.n_action_steps",
    "3",
    "--policy.resize-imgs-with-padding",
    "32",
    "32",
]


TOKEN = "hf_secretSECRETsecret0123456789"


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new policy after two updates of `finetune`, full fine-tune."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "use_compilation_cache", lambda: None)
        run = tmp_path_factory.mktemp("finetune") / "run"
        vlm = ["--policy.vlm", str(make_vlm(tmp_path_factory.mktemp("vlm")))]
        flags = ["--policy.train-expert-only", "False", "--steps", "2", "--output-dir", str(run)]
        assert train.main(["finetune", *ARCHITECTURE, *vlm, *DATA, *SIZE, *flags]) == 0
        return run


@pytest.fixture(scope="module")
def teacher(teacher_run: Path) -> Path:
    return teacher_run / "checkpoints" / "last" / "pretrained_model"


def reflow(teacher: Path, run: Path, *flags: str) -> int:
    paths = ["--teacher.path", str(teacher), "--output-dir", str(run)]
    return train.main(["reflow", *paths, *DATA, *SIZE, "--no-report", *flags])


@pytest.fixture(scope="module")
def student_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates of `reflow`, saved after two and four; the last two are traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "use_compilation_cache", lambda: None)
        patch.setenv("HF_TOKEN", TOKEN)
        run = tmp_path_factory.mktemp("reflow") / "run"
        looked_at = ["--tracker", "tensorboard", "--profile", "3,2"]
        assert reflow(teacher, run, "--steps", "4", "--noises", "2", "--teacher-steps", "2", *looked_at) == 0
        return run


def read_config(policy: Path) -> dict:
    return json.loads((policy / "config.json").read_text())


def test_new_policy_has_the_datasets_features_and_is_trained_as_asked(teacher_run: Path, teacher: Path) -> None:
    config = read_config(teacher)
    assert config["input_features"]["observation.image"] == {"type": "VISUAL", "shape": [3, 96, 96]}
    assert (config["vlm_model_name"], config["load_vlm_weights"], config["chunk_size"]) == ("tiny/vlm", True, 3)
    assert config["train_expert_only"] is False
    assert (teacher / "vlm" / "tokenizer.json").is_file()
    before, after = (TensorFile(path / "model.safetensors") for path in (teacher_run / "initial_policy", teacher))
    moved = {key for key in before.keys if not np.array_equal(before.read(key), after.read(key))}
    assert any(".text_model.layers.0." in key for key in moved)
    assert not any(".vision_model." in key or "lm_head" in key for key in moved)
    assert {"held_out_loss", "policy@10_error", "policy@10_error/dx"} < set(list(read_metrics(teacher_run))[-1])


def test_new_policy_is_stored_in_the_dtypes_of_lerobots_modules(teacher: Path) -> None:
    """What is stored wider would be rounded when LeRobot loads it, and the policy would act otherwise there."""
    file = TensorFile(teacher / "model.safetensors")
    wide = {key for key in file.keys if file.dtype(key) == np.float32}
    cross = "model.vlm_with_expert.lm_expert.layers.1.self_attn."
    assert {key for key in wide if "vlm_with_expert" in key} == {cross + "k_proj.weight", cross + "v_proj.weight"}
    assert len(wide) == 2 + 10
    assert {file.dtype(key).name for key in set(file.keys) - wide} == {"bfloat16"}


@pytest.mark.slow
def test_no_file_of_a_run_holds_the_users_token(student_run: Path) -> None:
    files = [path for path in student_run.rglob("*") if path.is_file()]
    assert {"train_config.json", "metrics.jsonl", "config.json", "checksums.json"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def assert_tracked(run: Path) -> None:
    """TensorBoard shows every metric of the log, once."""
    logged = [(r["step"], name, value) for r in read_metrics(run) for name, value in r.items() if name != "step"]
    points = shown_scalars(run / "tensorboard")
    found = [(step, name, value) for name, pairs in points.items() for step, value in pairs]
    assert [point[:2] for point in sorted(found)] == [point[:2] for point in sorted(logged)]
    np.testing.assert_allclose([point[2] for point in sorted(found)], [point[2] for point in sorted(logged)], rtol=1e-6)


def test_a_run_can_be_looked_at(student_run: Path) -> None:
    """Its metrics in the tracker, its cameras at the policy's size, where it comes from, and a trace of the model's parts."""
    assert_tracked(student_run)
    (picture,) = (student_run / "cameras").iterdir()
    assert picture.name == "observation.image.png"
    with Image.open(picture) as image:
        assert image.size == (4 * 32, 32)
    (record,) = (json.loads(line) for line in (student_run / "provenance.jsonl").read_text().splitlines())
    assert (record["start"], record["processes"], record["versions"]["jax"]) == (0, 1, jax.__version__)
    assert record["settings"]["teacher_steps"] == 2
    (trace,) = (student_run / "profile").rglob("*.xplane.pb")
    names = trace.read_bytes()
    for name in (b"jit_train_step", b"embed_images", b"jvp(velocity)", b"update", b"data_wait"):
        assert name in names, name


def test_student_is_exported_in_the_teachers_form(teacher: Path, student_run: Path) -> None:
    student = student_run / "checkpoints" / "last" / "pretrained_model"
    assert last_step(student_run / "checkpoints") == 4
    config = read_config(student)
    assert config == {**read_config(teacher), "num_steps": 1}
    before, after = (TensorFile(path / "model.safetensors") for path in (teacher, student))
    assert before.keys == after.keys
    for key in before.keys:
        same = np.array_equal(before.read(key), after.read(key))
        assert same or ".lm_expert." in key or "_proj." in key or "_mlp_" in key, f"{key} is frozen but moved"
    settings = json.loads((student / "train_config.json").read_text())
    assert settings["teacher"]["path"] == str(teacher)
    assert settings["action_names"] == ["dx", "dy", "dz", "grab"]
    policy = SmolVLAPolicy.from_pretrained(student)
    image = np.zeros((96, 96, 3), np.uint8)
    state = np.zeros(policy.config.state_dim, np.float32)
    chunk = policy.predict_action_chunk({"observation.image": image, "observation.state": state, "task": "word1"})
    assert chunk.shape == (1, 3, policy.config.action_dim)
    records = list(read_metrics(student_run))
    assert {"loss", "grad_norm", "lr", "samples/s", "data_wait", "step_time"} < set(records[0])
    assert "held_out_loss" in records[-1]


def test_resumed_run_is_bit_identical(student_run: Path, tmp_path: Path) -> None:
    """Also where it reads its frames from memory from then on."""
    run = Path(shutil.copytree(student_run, tmp_path / "run", symlinks=True))
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "000004")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("000002")
    assert train.main(["reflow", "--output-dir", str(run), "--resume", "--dataset.cache-frames", "0.5"]) == 0
    clock = {"samples/s", "data_wait", "step_time", "host_memory"}
    found, expected = (
        [{name: value for name, value in record.items() if name not in clock} for record in read_metrics(path)]
        for path in (run, student_run)
    )
    assert found == expected
    assert_tracked(run)
    weights = (Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors").as_posix()
    assert (run / weights).read_bytes() == (student_run / weights).read_bytes()


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_cycle(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three cycles of updates, evaluation and checkpoint; the first one's programs serve the others."""
    events: list[str] = []

    def compiled(event: str, _: float, **about: str | int) -> None:
        events.extend([str(about["fun_name"])] if event == COMPILE_EVENT else [])

    def save(*args: Any) -> None:
        original(*args)
        events.append("saved")

    original = CheckpointStore.save
    monkeypatch.setattr(CheckpointStore, "save", save)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        flags = ["--steps", "6", "--eval-every", "2", "--eval-batches", "2", "--noises", "2", "--teacher-steps", "1"]
        assert reflow(teacher, tmp_path / "run", *flags) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    first = events.index("saved")
    assert {"jit(train_step)", "jit(eval_step)"} <= set(events[:first])
    assert events[first:] == ["saved"] * 3


def test_complete_run_has_nothing_left_to_do(student_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (student_run / "metrics.jsonl").read_bytes()
    assert train.main(["reflow", "--output-dir", str(student_run), "--resume"]) == 0
    assert (student_run / "metrics.jsonl").read_bytes() == before
    assert "complete" in capsys.readouterr().err


@pytest.mark.slow
def test_student_can_be_the_next_teacher_and_raw_weights_be_exported(
    student_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = student_run / "checkpoints" / "last" / "pretrained_model"
    assert read_config(student)["num_steps"] == 1
    flags = ["--steps", "1", "--noises", "2", "--export", "raw", "--num-steps", "2"]
    assert reflow(student, tmp_path / "run", *flags) == 0
    assert "student = teacher, loaded once" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["teacher_steps"] == 10
    assert read_config(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model")["num_steps"] == 2


def test_resume_refuses_other_settings_and_other_weights(
    student_run: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["reflow", "--output-dir", str(student_run), "--resume"]
    assert train.main([*resume, "--batch-size", "2", "--optimizer.lr", "1.0"]) == 1
    assert "--batch-size 4 -> 2; --optimizer.lr 0.0001 -> 1.0" in capsys.readouterr().err
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert train.main([*resume, "--teacher.path", str(other)]) == 1
    assert "not the weights that the run started from" in capsys.readouterr().err
    assert train.main([*resume, "--dataset.root", str(tmp_path)]) == 1
    assert train.main(["finetune", "--output-dir", str(student_run), "--resume"]) == 1
    assert "expected the settings of a `FinetuneConfig` run" in capsys.readouterr().err
    assert train.main(["reflow", "--output-dir", str(tmp_path / "nothing"), "--resume"]) == 1
    assert "no such file; expected a run in" in capsys.readouterr().err


def test_directories_are_never_overwritten(student_run: Path, teacher: Path, tmp_path: Path, capsys) -> None:
    before = sorted(student_run.rglob("*"))
    assert reflow(teacher, student_run) == 1
    assert "holds a run; nothing is overwritten" in capsys.readouterr().err
    assert sorted(student_run.rglob("*")) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert reflow(teacher, tmp_path) == 1
    assert "is there already and not empty" in capsys.readouterr().err
    assert train.main(["reflow", "--output-dir", str(tmp_path / "none"), "--resume"]) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "3", "--accumulate", "2"], "--batch-size 3: expected a positive multiple of 2"),
        (["--batch-size", "4000"], "frames are fewer than a batch of 4000"),
        (["--teacher.path", "nowhere"], "nowhere: no such folder"),
        (["--dataset.root", "nowhere"], "nowhere"),
        (["--dataset.cache-frames", "0.001"], "0.00 GiB; allow that much with --dataset.cache-frames"),
        (["--stats-from", "dataset", "--rename-map", '{"observation.image": "observation.images.top"}'], "rename-map"),
    ],
)
def test_wrong_input_is_an_error_and_leaves_nothing(teacher: Path, tmp_path: Path, flags, message, capsys) -> None:
    assert reflow(teacher, tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset.holdout", "1.5"], "--dataset.holdout must lie in"),
        (["--time-law", "gauss"], "--time-law must be one of beta, uniform"),
        (["--dataset.cache-frames", "-1"], "--dataset.cache-frames must not be negative"),
        (["--dataset.cache-frames", "1", "--num-workers", "2"], "needs --num-workers 0, found 2"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--optimizer.lr", "fast"], "--optimizer.lr"),
        (["--objective", "huber"], "--objective must be one of mse, pseudo-huber"),
        (["--teacher-solver", "rk4"], "--teacher-solver must be one of euler, heun"),
        (["--loss-dims", "some"], "--loss-dims"),
        (["--real-share", "0.3"], "--real-share must be a whole number of the 4 noise(s)"),
        (["--rename-map", "{"], "expected JSON like"),
    ],
)
def test_wrong_values_are_wrong_usage(tmp_path: Path, flags, message, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        reflow(tmp_path, tmp_path / "run", *flags)
    assert message in " ".join(capsys.readouterr().err.split())


def test_architecture_of_existing_weights_is_fixed(teacher: Path, tmp_path: Path, capsys) -> None:
    flags = ["--policy.path", str(teacher), "--policy.max-action-dim", "64", "--output-dir", str(tmp_path / "run")]
    assert train.main(["finetune", *DATA, *SIZE, *flags]) == 1
    assert "--policy.max-action-dim differs" in capsys.readouterr().err


def test_usage_names_the_configs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main(["destroy"])
    usage = capsys.readouterr().err
    assert all(path.stem in usage for path in train.CONFIGS.glob("*.py"))
    assert "finetune" in usage
    with pytest.raises(SystemExit, match="0"):
        train.main(["reflow", "--help"])
    assert "--teacher.path" in capsys.readouterr().out


def test_compilation_cache_is_left_alone_where_one_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        setup.use_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_a_run_ends_with_a_report_beside_the_weights(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run that is complete makes the one that is missing, and no other."""
    run = tmp_path / "run"
    flags = ["--steps", "1", "--teacher-steps", "1", "--noises", "1", "--report", "--eval-frames", "4"]
    assert reflow(teacher, run, *flags) == 0
    assert "student@1" in capsys.readouterr().err
    student = run / "checkpoints" / "last" / "pretrained_model"
    report = json.loads((student / "report.json").read_text())
    assert report["about"]["held_out"]
    assert report["measures"]["consistency"]["ratio"] > 0
    records = list(read_metrics(run))
    dims = {f"student@{steps}_error/{dim}" for steps in (1, 2) for dim in ("dx", "dy", "dz", "grab")}
    assert {"step", "held_out_loss", "student@1_error", "student@2_error"} | dims == set(records[-1])
    # The same measure on other frames and noises, and of weights that are not yet rounded to their stored dtypes.
    found = next(r for r in report["measures"]["fidelity"] if (r["name"], r["num_steps"]) == ("student", 1))
    assert 1 / 3 < records[-1]["student@1_error"] / found["error"]["value"] < 3
    resume = ["reflow", "--output-dir", str(run), "--resume"]
    written = (student / "report.html").stat().st_mtime_ns
    assert train.main(resume) == 0
    assert (student / "report.html").stat().st_mtime_ns == written
    (student / "report.html").unlink()
    assert train.main(resume) == 0
    assert (student / "report.html").is_file()
    assert SmolVLAPolicy.from_pretrained(student).config.num_steps == 1


def test_an_unknown_early_task_is_an_error_before_training(teacher: Path, tmp_path: Path, capsys) -> None:
    assert reflow(teacher, tmp_path / "run", "--report", "--early-task", "fly") == 1
    assert "--early-task 'fly': no held-out episode has this task, only 'Bypass a wall" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_demo_ends_with_a_report(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "demo"
    flags = ["--teacher.path", str(teacher), "--output-dir", str(run), "--steps", "1", "--teacher-steps", "2"]
    assert train.main(["demo", *flags, *DATA, *SIZE, "--noises", "1", "--eval-frames", "4"]) == 0
    rows = json.loads((run / "report" / "report.json").read_text())["measures"]["fidelity"]
    assert {(row["name"], row["num_steps"], row["frames"]) for row in rows} == {
        (name, steps, frames) for name in ("teacher", "student") for steps in (10, 2, 1) for frames in ("all", "early")
    }
    imitated = ("teacher", 2)
    assert all((row["error"]["value"] == 0) == ((row["name"], row["num_steps"]) == imitated) for row in rows)
    assert "| student@1 |" in capsys.readouterr().err
    assert "<title>Is the student the teacher?</title>" in (run / "report" / "report.html").read_text()
    for name in ("chunks", "loss"):
        assert (run / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
