"""`train.py NAME --dry-run`: what it says, and that nothing is written or trained."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import train
from jaxreflow.data.feature_cache import NO_TOKENS, ImageTokens
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.policy.config import Feature
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run import dry_run, setup, start, update_shapes
from jaxreflow.run.config import DatasetConfig, FinetuneConfig, PolicySource, ReflowConfig
from jaxreflow.run.dry_run import describe, statistics_source
from tests.tiny_policy import DATASET, make_vlm
from tests.watched_run import ROOT

TEACHER = DATASET.parent / "teacher"
EPISODES = ["--dataset.root", str(DATASET), "--dataset.episodes", "0", "1", "2", "3", "--dataset.holdout", "0.25"]
SIZE = ["--batch-size", "4", "--steps", "100", "--noises", "2", "--teacher-steps", "2"]


@pytest.fixture(autouse=True)
def _nothing_is_kept_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compilation cache; and the update can be lowered, but not called. Shapes stand where signatures name arrays."""
    original = update_shapes.make_programs

    def make_programs(*args: Any) -> Any:
        programs = original(*args)
        return programs._replace(update=SimpleNamespace(trace=programs.update.trace), measure=None)

    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(update_shapes, "make_programs", make_programs)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def said(text: str) -> dict[str, str]:
    """What is printed, by title, with single spaces."""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        title, content = line[:13].strip(), line[13:].strip()
        facts[title or list(facts)[-1]] = f"{content}" if title else f"{facts[list(facts)[-1]]} {content}"
    return {title: " ".join(content.split()) for title, content in facts.items()}


@pytest.mark.slow
def test_a_reflow_run_is_described_and_nothing_is_written(
    tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[Any] = []
    original = jax.stages.Compiled.memory_analysis
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: sizes.append(original(self)) or sizes[-1])
    before = sorted(TEACHER.rglob("*"))
    run = tmp_path / "run"
    flags = ["--teacher.path", str(TEACHER), "--output-dir", str(run), *EPISODES, *SIZE]
    assert train.main(["reflow", *flags, "--dry-run", "--for-memory", "0.1"]) == 0
    facts = said(capsys.readouterr().out)
    frames = sum(episode.length for episode in load_dataset(DATASET, episodes=[0, 1, 2, 3]).episodes)
    assert list(facts) == [
        *("run", "devices", "policy", "statistics", "dataset", "cameras", "schedule", "first batch", "arithmetic"),
        *("call", "memory", "batch size"),
    ]
    assert f"pseudo-huber over padded action dims, t half-at-one-exponential; into {run}" in facts["run"]
    assert facts["devices"] == "1 x cpu, mesh data 1, fsdp 1; 1 process(es)"
    assert f"{TEACHER} " in facts["policy"]
    assert "trained: expert " in facts["policy"]
    assert facts["statistics"] == "the policy's own, from its processors"
    assert f"{frames} frames in 4 episodes trained on" in facts["dataset"]
    assert "frames of the episodes" in facts["dataset"]
    assert "frames from video files, decoded when needed by a thread" in facts["dataset"]
    assert facts["cameras"].startswith(
        "observation.image <- observation.image [96, 96, 3], resized and padded to 96 x 96"
    )
    assert "100 updates of 4 observations x 2 noise(s) x 1 time(s), in 1 microbatch(es)" in facts["schedule"]
    assert (
        "muon: learning rate 0.0001 after 2 updates of warm-up, by a cosine to 2.5e-06 at update 100"
        in facts["schedule"]
    )
    assert "observation/images/observation.image uint8 [4, 96, 96, 3]" in facts["first batch"]
    assert "actions float32 [4, 50, 32]" in facts["first batch"]
    parts = {name.strip(): float(size) for name, size in re.findall(r"([a-z', ]+) ([\d.]+) MiB", facts["memory"])}
    together = parts.pop("together")
    needed = parts.pop("activations, gradients")
    # What is held by shapes is what the compiler says of the update's arguments.
    assert set(parts) >= {"trained parameters", "optimizer state", "moving average", "frozen parameters", "batch"}
    assert sum(parts.values()) == pytest.approx(sizes[0].argument_size_in_bytes / 2**20, rel=0.02)
    found = sizes[0].temp_size_in_bytes + sizes[0].output_size_in_bytes - sizes[0].alias_size_in_bytes
    assert needed == pytest.approx(found / 2**20, rel=0.02)
    assert together == pytest.approx(sum(parts.values()) + needed, rel=0.02)
    # The answer was compiled, too, and lies near the limit.
    answer = int(facts["batch size"].split()[1])
    assert f"--batch-size {answer} is about the largest that fits room: 76.80 MiB" in facts["batch size"]
    (used,) = re.findall(rf" {answer}: ([\d.]+) MiB", facts["batch size"])
    assert 0.9 * 76.8 < float(used) < 76.8
    rows = {
        name.strip(): float(count) for name, count in re.findall(r"([a-z0-9, ]+) ([\d.]+) TFLOP ", facts["arithmetic"])
    }
    assert rows.pop("together") == pytest.approx(sum(rows.values()), abs=3e-4)
    assert {"vision tower", "language model", "teacher, 2 steps", "student, forward"} <= set(rows)
    assert train.main(["reflow", *flags, "--dry-run", "--early-task", "nonsense"]) == 1
    assert "--early-task 'nonsense': no held-out episode has this task" in capsys.readouterr().err
    assert not run.exists()
    assert not list(temporary.iterdir())
    assert sorted(TEACHER.rglob("*")) == before


@pytest.mark.slow
def test_a_compiler_that_refuses_the_size_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a TPU's does; smaller sizes are tried then."""
    original = jax.stages.Compiled.memory_analysis
    asked: list[Any] = []

    def refused_at_first(self: Any) -> Any:
        asked.append(self)
        if len(asked) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return original(self)

    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", refused_at_first)
    assert train.main(["reflow", "--teacher.path", str(TEACHER), *EPISODES, *SIZE, "--dry-run"]) == 0
    facts = said(capsys.readouterr().out)
    assert facts["memory"].endswith("and its compiler finds that an update does not fit beside that")
    assert re.match(r"--batch-size [123] is about the largest that fits ", facts["batch size"])


def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory_lines", "batch_size_lines", "arithmetic_lines", "call_lines"):
        monkeypatch.setattr(dry_run, name, lambda *_: ["not asked for"])


def test_a_compact_student_is_described_beside_its_teacher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("memory_lines", "batch_size_lines", "arithmetic_lines"):
        monkeypatch.setattr(dry_run, name, lambda *_: ["not asked for"])
    student = ["--student.image-size", "48", "--student.vlm-layers", "2"]
    assert train.main(["reflow", "--teacher.path", str(TEACHER), *EPISODES, *SIZE, *student, "--dry-run"]) == 0
    facts = said(capsys.readouterr().out)
    assert "resized and padded to 48 x 48; by the teacher, resized and padded to 96 x 96" in facts["cameras"]
    assert "the student's image size 48, the student's VLM layers 2" in facts["run"]
    assert re.search(r"teacher@2 [\d.]+ GFLOP .* student@1 [\d.]+ GFLOP .*, [\d.]+ times fewer", facts["call"])


def finetune(**changes: Any) -> FinetuneConfig:
    data = DatasetConfig(root=str(DATASET), episodes=(0, 1, 2, 3), holdout=0.25)
    return dataclasses.replace(FinetuneConfig(dataset=data, batch_size=4, steps=10, dry_run=True), **changes)


def test_a_new_policy_is_made_for_the_moment_only(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    original = start.create_policy
    monkeypatch.setattr(start, "create_policy", lambda out, *args, **kw: (made.append(out), original(out, *args, **kw)))
    source = PolicySource(
        new=True, vlm=str(make_vlm(tmp_path)), vlm_model_name="tiny/vlm", num_vlm_layers=2, chunk_size=3,
        n_action_steps=3, resize_imgs_with_padding=(32, 32), train_expert_only=False,
    )  # fmt: skip
    not_compiled(monkeypatch)
    facts = dict(describe(finetune(policy=source, output_dir=str(tmp_path / "run"))))
    assert [path.name for path in made] == ["initial_policy"]
    assert not made[0].exists()
    assert not list(temporary.iterdir())
    assert not (tmp_path / "run").exists()
    assert facts["policy"][0] == "new, for the dataset's features"
    assert facts["statistics"] == ["the dataset's, which the new policy keeps"]


def test_the_demo_is_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    not_compiled(monkeypatch)
    assert train.main(["demo", "--dry-run"]) == 0
    facts = said(capsys.readouterr().out)
    assert facts["run"].startswith("reflow: mse")
    assert facts["run"].count("no --output-dir yet") == 1
    assert "1,038.7 updates an epoch, 0.96 epochs" in facts["schedule"]


def test_what_is_wrong_is_the_runs_own_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "run"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    flags = ["--teacher.path", str(TEACHER), *EPISODES, *SIZE, "--dry-run"]
    for more, message in (
        (["--output-dir", str(taken)], "is there already and not empty"),
        (["--batch-size", "3", "--accumulate", "2"], "expected a positive multiple of 2"),
        (["--teacher.path", "nowhere"], "nowhere: no such folder"),
        (["--fsdp", "3"], "expected a divisor of the 1 device(s)"),
    ):
        assert train.main(["reflow", *flags, *more]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_split_parameters_on_simulated_devices() -> None:
    flags = ["--teacher.path", str(TEACHER), *EPISODES, *SIZE, "--batch-size", "16", "--fsdp", "4", "--dry-run"]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-W", "error", "train.py", "reflow", *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = said(done.stdout)
    assert facts["devices"] == "8 x cpu, mesh data 2, fsdp 4; 1 process(es)"
    assert "uint8 [16, 96, 96, 3]" in facts["first batch"]


def test_source_of_statistics(tmp_path: Path) -> None:
    stats = load_dataset(DATASET).stats
    own = load_saved_policy(TEACHER)
    assert statistics_source(ReflowConfig(), own) == "the policy's own, from its processors"
    assert statistics_source(ReflowConfig(stats_from="dataset"), own).startswith(
        "the dataset's, in the place of the policy's own, which --stats-from policy"
    )
    assert statistics_source(ReflowConfig(stats_from="s.json"), own).startswith("--stats-from s.json, in the place of")
    old = Path(shutil.copytree(TEACHER, tmp_path / "old"))
    for file in old.glob("policy_p*processor*"):
        file.unlink()
    bare = load_saved_policy(old, dataset_stats=stats)
    assert statistics_source(ReflowConfig(), bare) == "the dataset's, as the policy brings none"
    tensors = load_file(old / "model.safetensors")
    buffers = {
        f"{group}_{key}.{name}": np.asarray(stats[feature][name], np.float32)
        for group, feature in (
            ("normalize_inputs.buffer", "observation.state"),
            ("unnormalize_outputs.buffer", "action"),
        )
        for key in (feature.replace(".", "_"),)
        for name in ("mean", "std")
    }
    save_file({**tensors, **buffers}, old / "model.safetensors")
    assert statistics_source(ReflowConfig(), load_saved_policy(old)).startswith(
        "the policy's own, from the normalize_*"
    )


@pytest.mark.parametrize(
    ("changes", "workers", "expected"),
    [
        ({}, 0, "video files, decoded when needed by a thread"),
        ({}, 3, "video files, decoded when needed by 3 process(es)"),
        ({"cache_frames": 2.0}, 0, "memory, decoded from video files before the first update (at most 2.0 GiB)"),
    ],
)
def test_where_frames_come_from(changes, workers, expected) -> None:
    config = ReflowConfig(num_workers=workers, dataset=DatasetConfig(root=str(DATASET), **changes))
    assert dry_run._frame_lines(config, load_dataset(DATASET, episodes=[0]), NO_TOKENS) == [f"frames from {expected}"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"teacher": "T"}, ["frames from image tokens in T: no image is decoded, no vision tower runs"]),
        (
            {"teacher": "T", "student": "S"},
            ["frames from image tokens in T and S: no image is decoded, no vision tower runs"],
        ),
        (
            {"teacher": "T", "student_sees_images": True},
            ["frames from video files, decoded when needed by a thread", "image tokens of the teacher from T"],
        ),
        (
            {"student": "S"},
            ["frames from video files, decoded when needed by a thread", "image tokens of the student from S"],
        ),
    ],
)
def test_where_image_tokens_come_from(tokens: dict[str, Any], expected: list[str]) -> None:
    caches = {name: SimpleNamespace(root=x) if isinstance(x, str) else x for name, x in tokens.items()}
    config = ReflowConfig(dataset=DatasetConfig(root=str(DATASET)))
    assert dry_run._frame_lines(config, load_dataset(DATASET, episodes=[0]), ImageTokens(**caches)) == expected


def test_absent_cameras_are_named() -> None:
    checkpoint = load_saved_policy(TEACHER)
    features = {**checkpoint.policy.input_features, "observation.wrist": Feature("VISUAL", (3, 48, 64))}
    policy = dataclasses.replace(checkpoint.policy, input_features=features, empty_cameras=1)
    checkpoint, dataset = dataclasses.replace(checkpoint, policy=policy), load_dataset(DATASET, episodes=[0])
    lines = dry_run._camera_lines(ReflowConfig(), checkpoint, dataset)
    assert lines == [
        "observation.image <- observation.image [96, 96, 3], resized and padded to 96 x 96",
        "observation.wrist: absent from the dataset",
        "empty cameras stand in for at most 1",
    ]
