"""A policy exported by jaxreflow, loaded by unmodified LeRobot: same weights, same actions."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from jaxreflow.model.layer_choice import Choice
from jaxreflow.model.params import in_parts, merge_params, split_params, trainable_in_reflow
from jaxreflow.model.types import Params
from jaxreflow.policy.compact import compact_policy
from jaxreflow.policy.saved import load_saved_policy, save_pretrained
from tests.parity.candidate import Candidate
from tests.parity.case import Case
from tests.parity.conftest import Measure
from tests.parity.make_checkpoint import make_checkpoint
from tests.parity.oracle import Oracle, to_numpy
from tests.parity.student import inputs_for, student_chunks
from tests.parity.variants import Variant

Cases = Callable[[str], Case]
Measuring = Callable[[str], Measure]
DATASET = Path("tests/assets/metaworld_mini")
METAWORLD_TEACHER = Variant(
    "fits the dataset in tests/assets; its VLM has weights",
    "mixed-vlm",
    cameras={"top": (96, 96)},
    state_dim=4,
    action_dim=4,
)
SHIPPED = Path("tests/assets/teacher")


def export_student(teacher: Path, out: Path) -> Path:
    """A policy whose trainable weights have moved by a tenth of their size, as after training, saved by jaxreflow."""
    candidate = Candidate(teacher)
    trainable, frozen = split_params(candidate.params, trainable_in_reflow)
    candidate.policy.params = merge_params(moved(trainable), frozen)
    candidate.policy.save_pretrained(out)
    return out


def moved(params: Params) -> Params:
    """The parameters changed by a tenth of their size, as after training."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: np.asarray(x) * (1 + 0.1 * rng.normal(size=x.shape)).astype(np.float32), params)


@pytest.mark.parametrize("name", ["tiny", "mixed", "mixed_vlm", "special_tokens", "aloha", "no_resize"])
def test_lerobot_acts_as_the_exported_student(name: str, case: Cases, measuring: Measuring, tmp_path: Path) -> None:
    of, measure = case(name), measuring(name)
    student = export_student(of.checkpoint, tmp_path / "student")
    for quantity, (found, expected) in student_chunks(student).items():
        measure(quantity, found, expected)


@pytest.mark.parametrize("choice", ["first", "spaced"])
@pytest.mark.parametrize("name", ["tiny", "mixed_vlm"])
def test_lerobot_acts_as_a_compact_student(
    name: str, choice: Choice, case: Cases, measuring: Measuring, tmp_path: Path
) -> None:
    """Half of the layers and a quarter of the image tokens, with everything but the vision tower trained."""
    of, measure = case(name), measuring(name)
    student = compact_policy(load_saved_policy(of.checkpoint), image_size=32, vlm_layers=2, choice=choice)
    trainable, _ = split_params(student.load_params(), in_parts(["expert", "connector", "language"]))
    save_pretrained(tmp_path / "start", student, {}, num_steps=1)
    save_pretrained(tmp_path / "student", student, moved(trainable), num_steps=1)
    for folder in (tmp_path / "start", tmp_path / "student"):
        for quantity, (found, expected) in student_chunks(folder).items():
            measure(quantity, found, expected)


def test_untrained_tensors_reach_lerobot_bit_exact(case: Cases, tmp_path: Path) -> None:
    teacher = case("mixed").checkpoint
    student = export_student(teacher, tmp_path / "student")
    before, after = (Oracle(path, cast=None).policy.state_dict() for path in (teacher, student))
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    same = {name for name, tensor in before.items() if np.array_equal(to_numpy(tensor), to_numpy(after[name]))}
    assert same == {name for name in before if ".vlm_with_expert.vlm." in name}


@pytest.mark.parametrize(
    "lora", [[], ["--lora.rank", "4", "--lora.alpha", "16", "--no-report"]], ids=["parameters", "adapters"]
)
def test_lerobot_acts_as_a_student_that_train_py_made(lora: list[str], measuring: Measuring, tmp_path: Path) -> None:
    teacher = make_checkpoint(tmp_path / "teacher", METAWORLD_TEACHER)
    flags = {
        "--teacher.path": teacher,
        "--dataset.root": DATASET,
        "--rename-map": '{"observation.image": "observation.images.top"}',
        "--output-dir": tmp_path / "run",
        "--steps": 3,
        "--batch-size": 4,
        "--num-steps": 2,
        "--optimizer.lr": 1e-3,
        "--optimizer.warmup-steps": 0,
        "--eval-batches": 1,
    }
    episodes = ["--dataset.episodes", "0", "1", "2", "3"]
    assert train.main(["reflow", *(str(word) for flag in flags.items() for word in flag), *episodes, *lora]) == 0
    student = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    config = json.loads((student / "config.json").read_text())
    assert (config["load_vlm_weights"], config["num_steps"]) == (True, 2)
    measure = measuring("train.py reflow")
    for quantity, (found, expected) in student_chunks(student).items():
        measure(quantity, found, expected)
    before, after = (Candidate(path) for path in (teacher, student))
    inputs = inputs_for(after, batch_size=2, seed=11)
    moved = np.abs(after.chunk(inputs, num_steps=2) - before.chunk(inputs, num_steps=2)).max()
    assert moved > 1e-3, f"actions moved by {moved}: the student is still the teacher"


def test_lerobot_acts_as_the_shipped_policy(measuring: Measuring) -> None:
    measure = measuring(str(SHIPPED))
    for quantity, (found, expected) in student_chunks(SHIPPED).items():
        measure(quantity, found, expected)
