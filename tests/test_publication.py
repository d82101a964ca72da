"""A policy on the hub: what is uploaded, in one commit, and what the hub and its users are never shown."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from convert.__main__ import main as convert
from jaxreflow.errors import ConfigError, PublishError
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.policy.saved import load_saved_policy, save_pretrained
from jaxreflow.publish.publication import belongs, open_folder, prepare, publish
from jaxreflow.run.config import DatasetConfig, ReflowConfig, TeacherSource
from jaxreflow.support.hub import HubError, check_may_write
from tests.fake_hub import READ_TOKEN, TOKEN, Hub, fake_hub
from tests.tiny_policy import DATASET, perturb

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "tests" / "assets" / "teacher"
REPORTS = ROOT / "docs" / "results" / "default"
# The hub's client uploads large files by a deprecated option of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process knows, with a token that may write there; the client reads its environment only once."""
    with fake_hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a report, in a run's folders, beside what does not belong to it."""
    out = tmp_path_factory.mktemp("ann") / "run" / "checkpoints" / "000010" / "pretrained_model"
    config = ReflowConfig(
        output_dir=str(out.parents[2]),
        teacher=TeacherSource(str(TEACHER)),
        dataset=DatasetConfig(root=str(DATASET)),
        steps=10,
    )
    checkpoint = load_saved_policy(TEACHER)
    trained, _ = split_params(checkpoint.load_params(), trainable_in_reflow)
    source = {"path": str(TEACHER.resolve()), "sha256": checkpoint.tensors.sha256}
    settings = {**dataclasses.asdict(config), "source": source, "update": 10}
    save_pretrained(out, checkpoint, perturb(trained, 0.01), num_steps=1, train_config=settings)
    report = json.loads((REPORTS / "report.json").read_text())
    before = report["about"]["teacher"], report["about"]["student"]
    after = "teacher", "run"
    report["about"] |= {"teacher": after[0], "student": after[1]}
    page = (REPORTS / "report.html").read_text()
    (out / "report.json").write_text(json.dumps(report))
    (out / "report.html").write_text(page.replace(before[0], after[0]).replace(before[1], after[1]))
    for name in (
        ".hidden.json",
        "config.json.bak",
        "notes.txt",
        "optimizer.safetensors",
        "weights.bin",
        "vlm/.token.json",
    ):
        (out / name).write_text("{}")
    (out.parent / "training_state").mkdir()
    (out.parent / "training_state" / "config.json").write_text("{}")
    return out


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """The same without a report, whose pictures take a second."""
    return Path(shutil.copytree(made, tmp_path / "student", ignore=shutil.ignore_patterns("report.*")))


def read(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def test_what_belongs_to_a_policy_is_published_and_nothing_else(made: Path) -> None:
    files = prepare(made, "me/student")
    assert {name for name in files if not name.startswith("vlm/")} == {
        *("README.md", "config.json", "model.safetensors", "train_config.json", "report.json", "report.html"),
        *("policy_preprocessor.json", "policy_preprocessor_step_5_normalizer_processor.safetensors"),
        *("policy_postprocessor.json", "policy_postprocessor_step_0_unnormalizer_processor.safetensors"),
        *("images/errors.png", "images/positions.png", "images/latency.png"),
    }
    assert {name for name in files if name.startswith("vlm/")} == {
        f"vlm/{path.name}" for path in (TEACHER / "vlm").iterdir()
    }
    assert not belongs("checkpoints/000010/training_state/config.json")
    # What needs no change is uploaded from where it lies.
    assert files["model.safetensors"] == made / "model.safetensors"
    assert files["config.json"] == made / "config.json"
    assert files["vlm/tokenizer.json"] == made / "vlm" / "tokenizer.json"


def test_nothing_that_is_published_tells_of_this_machine(made: Path) -> None:
    files = {name: read(content) for name, content in prepare(made, "me/student").items()}
    for secret in (str(made.parents[4]), str(ROOT), "runs/metaworld"):
        assert not [name for name, content in files.items() if secret.encode() in content]
    settings = json.loads(files["train_config.json"])
    assert (settings["output_dir"], settings["teacher"]["path"], settings["dataset"]["root"]) == (
        "run",
        "teacher",
        "metaworld_mini",
    )
    # Reports hold names from the start, so they go as they are.
    assert files["report.json"] == (made / "report.json").read_bytes()
    assert b"Teacher teacher, 10 Euler steps; student run" in files["report.html"]
    card = files["README.md"].decode()
    assert "| teacher | `teacher`, a local folder |" in card
    assert f"sha256 `{load_saved_policy(TEACHER).tensors.sha256}`" in card
    assert "| updates | 10 |" in card
    assert "| student@1 | 0.093 [0.087, 0.098] |" in card
    assert 'snapshot_download("me/student")' in card


def test_a_policy_whose_vlm_nobody_else_has_is_not_published(student: Path) -> None:
    config = json.loads((student / "config.json").read_text())
    config |= {"vlm_model_name": "/home/ann/vlm", "pretrained_path": "/home/ann/x"}
    (student / "config.json").write_text(json.dumps(config))
    published = json.loads(read(prepare(student, "me/student")["config.json"]))
    assert (published["vlm_model_name"], published["pretrained_path"]) == ("vlm", "x")
    shutil.rmtree(student / "vlm")
    with pytest.raises(PublishError, match=r"`vlm_model_name` is /home/ann/vlm, a folder of this machine"):
        prepare(student, "me/student")


@pytest.mark.slow
def test_a_report_of_an_older_version_that_holds_a_path_is_refused(made: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(made, tmp_path / "student"))
    report = json.loads((old / "report.json").read_text())
    for path in ("/home/ann/runs/teacher", "a/b/teacher", "C:\\teacher", "gs://bucket/teacher"):
        report["about"]["teacher"] = path
        (old / "report.json").write_text(json.dumps(report))
        with pytest.raises(
            PublishError, match=r"report\.json: expected names of policies, found the path .*teacher"
        ) as e:
            prepare(old, "me/student")
        assert str(e.value).endswith("or remove report.json and report.html")
    report["about"] |= {"teacher": "me/teacher", "student": None}  # A report on a policy alone.
    (old / "report.json").write_text(json.dumps(report))
    assert prepare(old, "me/student")["report.json"] == old / "report.json"
    for name in ("report.json", "report.html"):
        (old / name).unlink()
    assert b"was not measured" in read(prepare(old, "me/student")["README.md"])


def test_damaged_files_are_named(student: Path) -> None:
    (student / "policy_preprocessor.json").write_text("[]")
    with pytest.raises(PublishError, match=r"policy_preprocessor\.json: expected a JSON object"):
        prepare(student, "me/student")
    (student / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"report\.json: expected a report"):
        prepare(student, "me/student")
    with pytest.raises(PublishError, match="no such folder"):
        open_folder(student / "nowhere")


def test_a_policy_goes_to_a_new_repository_in_one_commit(hub: Hub, made: Path) -> None:
    url = publish(made, "me/student")
    repo = hub.repos["me/student"]
    assert url == f"{hub.url}/me/student/commit/{repo.branches['main']}"
    assert (repo.messages, repo.private) == (["initial commit", "Upload student"], False)
    expected = {name: read(content) for name, content in prepare(made, "me/student").items()}
    found = repo.files()
    assert found.pop(".gitattributes")
    assert found == expected
    assert TOKEN not in "".join(hub.asked)
    assert not [name for name, content in expected.items() if TOKEN.encode() in content]


def test_a_push_replaces_the_policy_that_is_there_and_leaves_other_files(hub: Hub, student: Path) -> None:
    own = dict.fromkeys(("LICENSE", "video.mp4", "images/mine.jpg"), b"mine")
    old = dict.fromkeys(("README.md", "report.json", "report.html", "images/errors.png", "vlm/old.json"), b"old")
    repo = hub.create("me/student", files={**own, **old})
    publish(student, "me/student", message="Without a report")
    assert repo.messages == ["initial commit", "Without a report"]
    found = repo.files()
    assert own.items() <= found.items()
    assert b"old" not in found.values()
    assert b"was not measured" in found["README.md"]
    assert set(found) - set(own) - {".gitattributes"} == set(prepare(student, "me/student"))
    publish(student, "me/student")
    assert len(repo.messages) == 2, "nothing changed, so there is nothing to commit"


def test_a_branch_is_made_and_main_stays(hub: Hub, student: Path) -> None:
    publish(student, "me/student", branch="v2", private=True)
    repo = hub.repos["me/student"]
    assert repo.private
    assert set(repo.files("main")) == {".gitattributes"}
    assert "model.safetensors" in repo.files("v2")
    publish(student, "me/student", branch="v2", private=True)


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, student: Path) -> None:
    hub.create("me/student")
    with pytest.raises(PublishError, match="there already and public; nothing was uploaded"):
        publish(student, "me/student", private=True)
    assert not hub.large


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("student", TOKEN, "expected USER/NAME, found 'student'"),
        ("me/stu dent", TOKEN, "me/stu dent: HFValidationError"),
        ("me/a--b", TOKEN, "HFValidationError"),
        ("me/student", None, "LocalTokenNotFoundError: .*hf auth login"),
        ("me/student", "hf_wrongWRONGwrong", "401"),
        ("me/student", READ_TOKEN, "the token may only read"),
        ("you/student", TOKEN, "the token belongs to me, who may write for me, not for you; choose"),
    ],
    ids=["no owner", "a space", "two dashes", "no token", "a wrong token", "a reader's token", "another's name"],
)
def test_who_may_not_write_is_told_before_anything_is_done(
    hub: Hub, student: Path, name: str, token: str | None, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=message):
        publish(student, name)
    monkeypatch.setattr(train, "run", lambda _: pytest.fail("the run was begun"))
    argv = ["reflow", "--teacher.path", "T", "--dataset.root", "D", "--output-dir", str(tmp_path / "run")]
    assert train.main([*argv, "--push-to-hub", name]) == 1
    shown = capsys.readouterr().err
    assert "--push-to-hub" in shown
    assert "nothing was begun" in shown
    assert token is None or token not in shown
    assert not hub.repos
    assert not hub.large


def test_a_fine_grained_token_must_be_one_that_writes(hub: Hub, student: Path, monkeypatch) -> None:
    scopes = [{"entity": {"type": "user", "name": "me"}, "permissions": ["repo.content.read"]}]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scopes}}
    groups = [{"name": "lab", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
    user = {"name": "me", "orgs": groups, "auth": {"accessToken": token}}
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda _: user)
    with pytest.raises(PublishError, match=r"may write to no repository; give it `repo\.write` for me"):
        publish(student, "me/student")
    scopes[0]["permissions"].append("repo.write")
    check_may_write("lab/student")
    with pytest.raises(HubError, match="may write for me, lab, not for readers"):
        check_may_write("readers/student")
    publish(student, "me/student")
    assert "me/student" in hub.repos


@pytest.mark.parametrize("where", ["preupload", "objects/batch", "/large/", "/commit/", "validate-yaml"])
def test_what_fails_half_way_publishes_nothing(hub: Hub, student: Path, where: str, monkeypatch) -> None:
    hub.create("me/student", files={"model.safetensors": b"old"})
    monkeypatch.setattr("time.sleep", lambda _: None)  # The client waits and tries again some times.
    hub.fail = {where: 500}
    with pytest.raises(PublishError, match="me/student: ") as error:
        publish(student, "me/student")
    assert TOKEN not in str(error.value)
    assert error.value.__cause__ is not None
    assert error.value.__cause__.__cause__ is None
    assert hub.repos["me/student"].files()["model.safetensors"] == b"old"
    hub.fail = {}
    publish(student, "me/student")
    assert hub.repos["me/student"].files()["model.safetensors"] == (student / "model.safetensors").read_bytes()


def test_a_dry_run_writes_what_would_be_uploaded_and_may_be_edited(
    hub: Hub, student: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    assert convert(["push", str(student), "me/student", "--dry-run", str(out), "--license", "mit"]) == 0
    assert not hub.asked
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    expected = prepare(student, "me/student", license="mit")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(expected)
    assert all((out / name).read_bytes() == read(content) for name, content in expected.items())
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    (out / "README.md").write_text(card + "\nMine.\n")
    assert convert(["push", str(out), "me/student", "--private"]) == 0
    assert f"pushed: {hub.url}/me/student/commit/" in capsys.readouterr().out
    found = hub.repos["me/student"].files()
    assert found["README.md"].endswith(b"\nMine.\n")
    assert {name: found[name] for name in expected if name != "README.md"} == {
        name: read(content) for name, content in expected.items() if name != "README.md"
    }
    assert convert(["push", str(student), "me/student", "--dry-run", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_policy_that_would_act_wrongly_is_pushed_only_by_force(hub: Hub, student: Path, capsys) -> None:
    for name in student.glob("policy_*"):
        name.unlink()
    assert convert(["push", str(student), "me/student"]) == 1
    shown = capsys.readouterr().err
    assert "error: no policy_preprocessor.json" in shown
    assert "--force" in shown
    assert not hub.repos
    assert convert(["push", str(student), "me/student", "--force"]) == 0
    assert "me/student" in hub.repos
