"""`python -m jaxreflow.evaluate` from end to end on the tiny teacher in the repository: files, page, defaults and errors."""

import base64
import dataclasses
import functools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxreflow import flow, model
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import ConfigError
from jaxreflow.evaluate import __main__ as command
from jaxreflow.evaluate import comparison, options
from jaxreflow.evaluate.sampling import Candidate, chunks, make_subject, memories_of, sees_alike
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.policy.saved import load_saved_policy, save_pretrained
from jaxreflow.policy.statistics import format_tensors
from jaxreflow.run.config import DatasetConfig, ReflowConfig, TeacherSource
from jaxreflow.run.directory import recorded_settings
from jaxreflow.run.start import load_policy_for
from tests.tiny import tiny_model, tiny_observation
from tests.tiny_policy import DATASET, perturb

TEACHER = Path(__file__).parent / "assets" / "teacher"
TASK = "Bypass a wall and reach a goal"
EPISODES = tuple(range(0, 240, 24))
DATA = ["--dataset.root", str(DATASET), "--dataset.episodes", *map(str, EPISODES[:4])]
SIZE = [
    "--num-steps",
    "2",
    "1",
    "--noises",
    "1",
    "--frames",
    "6",
    "--batch-size",
    "6",
    "--field-frames",
    "6",
    "--pairs",
    "3",
]
SIZE += ["--draws", "4", "--observations", "1", "--repeats", "1"]
SECTIONS = [
    "verdict",
    "checks",
    "errors",
    "field",
    "distribution",
    "paths",
    "smoothness",
    "latency",
    "training",
    "thresholds",
]


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)


def make_student(out: Path, train_config: dict | None = None) -> Path:
    """The teacher with noise on what reflow trains."""
    checkpoint = load_saved_policy(TEACHER)
    trained, _ = split_params(checkpoint.load_params(), trainable_in_reflow)
    save_pretrained(out, checkpoint, perturb(trained, 0.01), num_steps=1, train_config=train_config)
    return out


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student in the folders of a run whose held-out episodes are its train_config.json's, without a log."""
    config = ReflowConfig(dataset=DatasetConfig(root=str(DATASET), episodes=EPISODES, holdout=0.1))
    settings = json.loads(json.dumps({**vars(config), "dataset": vars(config.dataset)}, default=vars))
    return make_student(tmp_path_factory.mktemp("run") / "checkpoints" / "000010" / "pretrained_model", settings)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": 3}, {"steps": "many"}, {"dataset": {"root": 5, "holdout": 0.1}}, {"rename_map": {"a": 1}}, {"ema_decay": True}],
    ids=str,
)  # fmt: skip
def test_settings_of_another_type_are_refused_with_their_file(student: Path, tmp_path: Path, change: dict) -> None:
    settings = json.loads((student / "train_config.json").read_text()) | change
    (tmp_path / "train_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"train_config\.json: expected the settings of a run .*(must be|expected)"):
        recorded_settings(tmp_path)


class Page(HTMLParser):
    """Checks that elements nest, and gathers ids, attributes that load something, and text."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data


def read_page(path: Path) -> tuple[str, Page]:
    source, page = path.read_text(encoding="utf-8"), Page()
    page.feed(source)
    assert page.open == []
    return source, page


def read_all(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_student_is_compared_and_the_page_needs_nothing_else(
    student: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretSECRETsecret")
    flags = ["--teacher", str(TEACHER), "--student", str(student), "--early-task", TASK, "--out", str(tmp_path / "a")]
    assert command.main([*flags, *SIZE]) == 0
    printed = capsys.readouterr().out
    assert not [text for text in (printed, *read_all(tmp_path / "a")) if "hf_secretSECRETsecret" in text]
    assert "| student@1 |" in printed
    assert "do you need to distil?" in printed
    report = json.loads((tmp_path / "a" / "report.json").read_text(), parse_constant=pytest.fail)
    # One held-out episode of each task, those that training would hold out.
    assert report["about"]["held_out"]
    assert len(report["about"]["episodes"]) == 3
    assert set(report["about"]["episodes"]) < set(EPISODES)
    assert report["measures"]["frames"] == {"all": 6, "early": 3}
    assert report["measures"]["consistency"]["ratio"] is None
    assert "not available" in report["measures"]["consistency"]["note"]
    labels = {(row["name"], row["num_steps"]) for row in report["measures"]["fidelity"]}
    assert labels == {("teacher", 10), ("teacher", 2), ("teacher", 1), ("student", 2), ("student", 1)}
    for row in report["measures"]["fidelity"]:
        assert len(row["episode_errors"]) == len(row["episode_references"]) == {"all": 3, "early": 1}[row["frames"]]
        quotient = sum(row["episode_errors"]) / sum(row["episode_references"])
        assert row["error"]["value"] == pytest.approx(quotient**0.5)
    assert {row["n_action_steps"] for row in report["measures"]["jumps"]} <= {10, 50}
    assert report["measures"]["distributions"][0]["floor"]
    source, page = read_page(tmp_path / "a" / "report.html")
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", source))
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert len(page.ids) == len(set(page.ids))
    assert set(SECTIONS) <= set(page.ids)
    assert {address[1:] for address in page.loaded if address.startswith("#")} <= set(page.ids)
    assert "prefers-color-scheme: dark" in source
    pictures = [base64.b64decode(text).decode() for text in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", source)]
    assert len(pictures) >= 5
    assert source.count('<figure><div class="scroll"><img alt="') == source.count("<figure>") == len(pictures)
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
        assert "#010203" not in picture
        assert "prefers-color-scheme: dark" in picture
        assert set(re.findall(r"https?://\S+?(?=[\"<])", picture)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
    # The report may leave this machine: it has names, and no paths.
    assert (report["about"]["teacher"], report["about"]["student"]) == ("teacher", student.parents[2].name)
    assert f"Teacher teacher, 10 Euler steps; student {student.parents[2].name}" in page.text
    assert not [text for text in read_all(tmp_path / "a") if str(TEACHER.parent) in text or str(student.parent) in text]


@pytest.mark.slow
def test_a_teacher_alone_says_whether_to_distil(tmp_path: Path) -> None:
    flags = ["--teacher", str(TEACHER), "--out", str(tmp_path), *DATA, *SIZE, "--draws", "0", "--repeats", "0"]
    assert command.main(flags) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["about"]["teacher"], report["about"]["student"]) == ("teacher", None)
    assert not [text for text in read_all(tmp_path) if str(TEACHER.parent) in text]
    assert report["verdict"]["checks"] == []
    assert [advice["n_action_steps"] for advice in report["verdict"]["advice"]] == [10, 50]
    assert report["about"]["episodes"] == list(EPISODES[:4])
    assert not report["about"]["held_out"]
    _, page = read_page(tmp_path / "report.html")
    assert "Do you need to distil?" in page.text
    assert not {"checks", "training", "distribution", "latency"} & set(page.ids)


@pytest.mark.slow
def test_other_statistics_change_the_dataset_units_and_nothing_before_them(tmp_path: Path) -> None:
    own = load_saved_policy(TEACHER).processors.normalizer.stats
    file = tmp_path / "stats.safetensors"
    file.write_bytes(format_tensors({**own, "action": {**own["action"], "std": 2 * own["action"]["std"]}}))
    flags = ["--teacher", str(TEACHER), *DATA, *SIZE, "--draws", "0", "--repeats", "0"]
    assert command.main([*flags, "--out", str(tmp_path / "a")]) == 0
    assert command.main([*flags, "--out", str(tmp_path / "b"), "--stats-from", str(file)]) == 0
    before, after = (json.loads((tmp_path / name / "report.json").read_text())["measures"]["fidelity"] for name in "ab")
    for one, other in zip(before, after, strict=True):
        assert one["error"] == other["error"]
        np.testing.assert_allclose(other["rmse"], 2 * np.array(one["rmse"]), rtol=1e-4)  # float32
        assert one["recorded_error"] != other["recorded_error"]


def test_statistics_of_the_dataset_are_taken_by_name_or_by_file(tmp_path: Path) -> None:
    own = load_saved_policy(TEACHER).processors.normalizer.stats
    doubled = {key: {name: (2 * value).tolist() for name, value in group.items()} for key, group in own.items()}
    (tmp_path / "stats.json").write_text(json.dumps(doubled))
    for source, dataset in (
        ("dataset", Mock(LeRobotDataset, stats=doubled)),
        (str(tmp_path / "stats.json"), Mock(LeRobotDataset, stats={})),
    ):
        basis = comparison._basis(options.EvaluateConfig(teacher="t", out="o", stats_from=source), None)
        found = load_policy_for(basis, str(TEACHER), dataset).processors.normalizer.stats
        np.testing.assert_array_equal(found["action"]["std"], 2 * own["action"]["std"])


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert "python -m jaxreflow.evaluate --teacher" in text
    assert "--thresholds.loss-consistency" in text


def test_a_student_of_other_statistics_or_shape_is_refused(student: Path, tmp_path: Path, capsys) -> None:
    other = Path(shutil.copytree(student, tmp_path / "student"))
    (file,) = other.glob("policy_preprocessor_step_*.safetensors")
    stats = load_file(file)
    save_file({**stats, "action.mean": stats["action.mean"] + np.float32(1)}, file)
    flags = ["--teacher", str(TEACHER), "--out", str(tmp_path / "out"), *DATA, *SIZE]
    assert command.main([*flags, "--student", str(other)]) == 1
    assert "its statistics of `action` (mean) are not the teacher's" in capsys.readouterr().err
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "chunk_size": 10, "n_action_steps": 10}))
    assert command.main([*flags, "--student", str(other)]) == 1
    assert "chunk_size 50 -> 10" in capsys.readouterr().err
    assert command.main(["--teacher", str(TEACHER), "--out", str(tmp_path / "out"), *SIZE]) == 1
    assert "--dataset.root" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_program_samples_as_the_euler_scan_does() -> None:
    config, params = tiny_model()
    subject = make_subject("teacher", params, config)
    memories = memories_of([subject], tiny_observation())
    noise = flow.sample_noise(jax.random.key(0), (2, 3, config.chunk_size, config.max_action_dim))
    field = functools.partial(model.velocity, params, memories["teacher"], config=config)
    expected = flow.euler(field, noise, 3)
    # float32, in another program
    np.testing.assert_allclose(chunks(Candidate(subject, 3), memories, noise), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(chunks(Candidate(subject, 2), memories, noise), expected, rtol=1e-4, atol=1e-5)


def test_what_teacher_and_student_share_is_held_once(student: Path) -> None:
    teacher, distilled = load_saved_policy(TEACHER), load_saved_policy(student)
    first = make_subject("teacher", teacher.load_params(), teacher.config)
    second = make_subject("student", distilled.load_params(), distilled.config, like=first)
    assert sees_alike(first, second)
    own, other = (dict(jax.tree_util.tree_leaves_with_path(subject.params)) for subject in (first, second))
    shared = {path[0].key for path in own if own[path] is other[path]}
    assert {"vision_model", "connector", "text_model"} <= shared
    moved = make_subject("student", jax.tree.map(lambda x: x + 1, teacher.load_params()), teacher.config, like=first)
    assert not sees_alike(first, moved)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({}, ("data", 0.1, (1, 2))),
        ({"root": "data"}, ("data", 0.1, (1, 2))),
        ({"root": "data", "episodes": (5,)}, ("data", 0.0, (5,))),
        ({"root": "elsewhere"}, ("elsewhere", 0.0, None)),
    ],
)
def test_held_out_episodes_of_a_run_are_those_of_its_dataset(dataset: dict, expected: tuple) -> None:
    recorded = ReflowConfig(dataset=DatasetConfig(root="data", episodes=(1, 2), holdout=0.1))
    config = options.EvaluateConfig(teacher="t", student="s", out="o", dataset=options.DatasetFlags(**dataset))
    found = comparison._basis(config, recorded).dataset
    assert (found.root, found.holdout, found.episodes) == expected


def test_loss_of_a_later_round_is_not_measured_against_the_first_teacher(tmp_path: Path) -> None:
    other = tmp_path / "round_1"
    other.mkdir()
    teacher = load_saved_policy(TEACHER)
    own_run = ReflowConfig(teacher=TeacherSource(path=str(TEACHER)))
    later_run = ReflowConfig(teacher=TeacherSource(path=str(other)))
    assert comparison._distilled(own_run, teacher) is own_run
    assert comparison._distilled(later_run, teacher) is None
    assert comparison._training(None, own_run, teacher, teacher) is not None
    assert comparison._training(None, None, teacher, teacher) is None


def test_students_are_compared_with_the_sampler_that_they_imitate() -> None:
    teacher = load_saved_policy(TEACHER)
    one_step = dataclasses.replace(teacher, policy=dataclasses.replace(teacher.policy, num_steps=1))
    run = ReflowConfig(teacher=TeacherSource(path=str(TEACHER)))
    assert comparison._reference_steps(comparison._distilled(run, one_step), one_step) == 10
    heun = dataclasses.replace(run, teacher_solver="heun", teacher_steps=5)
    assert comparison._reference_steps(comparison._distilled(heun, teacher), teacher) == 10
    assert comparison._reference_steps(None, one_step) == 1
