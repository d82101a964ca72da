"""There and back: `lerobot-train` trains a student of jaxreflow or a new policy, and jaxreflow reads what it saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from tests.parity.student import student_chunks
from tests.parity.test_student import DATASET, SHIPPED, Measuring, export_student

ROOT = Path(__file__).parents[2]
PROGRAM = "import tests.parity.lerobot_shim; from lerobot.scripts.lerobot_train import main; main()"
STEPS = 3


def student(folder: Path) -> list[str]:
    """Exports a student, whose tokenizer is found on disk as a hub's would be; returns the options that name it."""
    export_student(SHIPPED, folder)
    saved = folder / "policy_preprocessor.json"
    pipeline = json.loads(saved.read_text())
    (tokenizer,) = (step for step in pipeline["steps"] if step["registry_name"] == "tokenizer_processor")
    tokenizer["config"]["tokenizer_name"] = str(folder / "vlm")
    saved.write_text(json.dumps(pipeline))
    return [f"--policy.path={folder}", f"--policy.vlm_model_name={folder / 'vlm'}"]


def new_policy(folder: Path) -> list[str]:
    """The options of a policy that LeRobot makes for the dataset."""
    del folder
    sizes = [
        "--policy.resize_imgs_with_padding=[96,96]",
        "--policy.num_vlm_layers=4",
        "--policy.tokenizer_max_length=16",
    ]
    return ["--policy.type=smolvla", f"--policy.vlm_model_name={(SHIPPED / 'vlm').resolve()}", *sizes]


def lerobot_train(policy: list[str], out: Path) -> Path:
    """Runs `lerobot-train` on two episodes and returns the folder of its last checkpoint, untouched."""
    data = ["--dataset.repo_id=local/mini", f"--dataset.root={DATASET}", "--dataset.episodes=[0,1]"]
    data += ["--dataset.video_backend=pyav", "--num_workers=0", "--batch_size=2", f"--steps={STEPS}"]
    local = [
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.load_vlm_weights=true",
        f"--output_dir={out}",
    ]
    command = [sys.executable, "-c", PROGRAM, *policy, *data, *local]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return out / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student, and what `lerobot-train` made of it."""
    folder = tmp_path_factory.mktemp("lerobot_train")
    return folder / "student", lerobot_train(student(folder / "student"), folder / "run")


def test_a_student_comes_back_trained(continued: tuple[Path, Path], measuring: Measuring) -> None:
    before, after = (load_file(path / "model.safetensors") for path in continued)
    assert set(before) == set(after)
    for key in ("model.state_proj.weight", "model.action_out_proj.weight"):
        # Adam moves each weight by at most about the learning rate, 1e-4, in each update.
        assert 1e-5 < np.abs(after[key].astype(np.float32) - before[key].astype(np.float32)).max() < 1e-3
    measure = measuring("lerobot-train of a student")
    for quantity, (found, expected) in student_chunks(continued[1]).items():
        measure(quantity, found, expected)


@pytest.mark.nightly
def test_a_new_policy_is_distilled_and_acts_in_lerobot(measuring: Measuring, tmp_path: Path) -> None:
    """Made by LeRobot, trained by LeRobot, distilled here in two updates, and loaded by LeRobot again."""
    teacher = lerobot_train(new_policy(tmp_path), tmp_path / "lerobot")
    measure = measuring("lerobot-train of a new policy")
    for quantity, (found, expected) in student_chunks(teacher).items():
        measure(quantity, found, expected)
    flags = {"--teacher.path": teacher, "--dataset.root": DATASET, "--output-dir": tmp_path / "run", "--steps": 2}
    flags |= {"--batch-size": 2, "--eval-batches": 1, "--optimizer.warmup-steps": 0}
    words = [str(word) for flag in flags.items() for word in flag]
    assert train.main(["reflow", *words, "--dataset.episodes", "0", "1", "2", "3", "--no-report"]) == 0
    measure = measuring("its student")
    for quantity, (found, expected) in student_chunks(tmp_path / "run/checkpoints/last/pretrained_model").items():
        measure(quantity, found, expected)
