"""Downloads from the hub: revisions reach it, and the user's token reaches nothing that is shown or kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest

import train
from convert.__main__ import main as convert
from jaxreflow.data import features
from jaxreflow.errors import CheckpointError, ConfigError, DatasetError
from jaxreflow.evaluate import __main__ as evaluate
from jaxreflow.policy.saved import find_saved_policy
from jaxreflow.policy.statistics import chosen_stats
from jaxreflow.policy.vlm import load_vlm
from jaxreflow.run import setup
from jaxreflow.run.config import DatasetConfig
from jaxreflow.run.data import open_dataset
from jaxreflow.sim.closed_loop import SimConfig, _load
from jaxreflow.support.hub import HubError, download, without_token
from tests.fake_hub import TOKEN, fake_hub
from tests.tiny import tiny_policy
from tests.tiny_policy import DATASET

TEACHER = Path(__file__).parent / "assets" / "teacher"
SECRET = "hf_secretSECRETsecret0123456789"


class Refused(Exception):
    """As the hub client's errors, which may tell the whole request."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was last asked of a hub that has nothing, and tells everything about it, the token included."""
    asked: dict[str, Any] = {}

    def refuse(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        raise Refused(f"401 for https://user:{SECRET}@hub/{name}, Authorization: Bearer {SECRET}\nheaders: {SECRET}")

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(evaluate, "use_compilation_cache", lambda: None)
    return asked


def test_tokens_are_left_out_of_text():
    assert without_token(f"a {SECRET}.") == "a ***."
    assert without_token("https://me:password@host/x and https://host/x@y") == "https://***@host/x and https://host/x@y"
    assert without_token("Authorization: Bearer abc.def-1 end") == "Authorization: Bearer *** end"


@pytest.mark.usefixtures("asked")
def test_errors_name_repository_and_revision_but_no_token():
    with pytest.raises(HubError, match="owner/name at revision v2: Refused: 401") as error:
        download("owner/name", revision="v2")
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train.main, ["reflow", "--dataset.root", str(DATASET), "--teacher.path", "owner/name", "--teacher.revision", "v2"]),
        (train.main, ["finetune", "--dataset.root", str(DATASET), "--policy.path", "owner/name", "--policy.revision", "v2"]),
        (train.main, ["reflow", "--teacher.path", "x", "--dataset.repo-id", "owner/name", "--dataset.revision", "v2"]),
        (evaluate.main, ["--teacher", "owner/name", "--teacher-revision", "v2", "--dataset.root", str(DATASET)]),
        (evaluate.main, ["--teacher", "x", "--student", "owner/name", "--student-revision", "v2"]),
        (evaluate.main, ["--teacher", "x", "--dataset.repo-id", "owner/name", "--dataset.revision", "v2"]),
        (features.main, [str(DATASET), "--policy", "owner/name", "--revision", "v2"]),
        (convert, ["inspect", "owner/name", "--revision", "v2"]),
        (convert, ["from-lerobot", "owner/name", "OUT", "--revision", "v2"]),
    ],
    ids=["teacher", "policy", "data", "teacher", "student", "data", "features", "inspect", "from-lerobot"],
)  # fmt: skip
def test_every_command_takes_a_revision_and_shows_no_token(asked, command, arguments, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    out = {train.main: ["--output-dir", "RUN"], evaluate.main: ["--out", "REPORT"], features.main: ["--out", "CACHE"]}
    assert command([*arguments, *out.get(command, [])]) == 1
    assert (asked["name"], asked["revision"]) == ("owner/name", "v2")
    shown = "".join(capfd.readouterr())
    assert "owner/name at revision v2" in shown
    assert SECRET not in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_simulator_asks_for_the_revision_of_hub_policies_only(asked):
    config = SimConfig(policy=(str(TEACHER), "owner/name"), env="metaworld:reach-v3", revision="v2")
    with pytest.raises(CheckpointError, match="at revision v2"):
        _load(config)
    assert asked["name"] == "owner/name"


def test_a_folder_has_no_revision():
    with pytest.raises(CheckpointError, match="is a folder, which has no revision, found 'v2'"):
        find_saved_policy(TEACHER, "v2")
    with pytest.raises(ConfigError, match=r"--dataset\.revision v2 is one of --dataset\.repo-id"):
        DatasetConfig(root=str(DATASET), revision="v2")


@pytest.mark.usefixtures("asked")
def test_the_hub_is_the_last_place_for_a_vlm_and_its_token_stays():
    with pytest.raises(CheckpointError, match="owner/vlm") as error:
        load_vlm(tiny_policy(vlm_model_name="owner/vlm"), None)
    assert SECRET not in str(error.value)


def test_a_dataset_of_the_hub_is_had_at_its_revision(asked):
    with pytest.raises(DatasetError, match=r"owner/name at revision v2.*--dataset\.root DIR") as error:
        open_dataset(DatasetConfig(repo_id="owner/name", revision="v2"))
    assert SECRET not in str(error.value)
    assert asked["repo_type"] == "dataset"


POLICY = {name: (TEACHER / name).read_bytes() for name in sorted(path.name for path in TEACHER.glob("*.*"))}
BESIDE = {
    **{f"checkpoints/00{n}000/pretrained_model/{name}": data for n in "246" for name, data in POLICY.items()},
    **{f"checkpoints/00{n}000/training_state/optimizer_state.safetensors": b"much" for n in "246"},
    "vlm/config.json": b"{}",
}


def fetched(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_hub(hub_url: str, cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings when it is imported."""
    code = f"from jaxreflow.policy.folder import find_saved_policy; print(find_saved_policy({name!r}))"
    env = {
        **os.environ, "HF_ENDPOINT": hub_url, "HF_TOKEN": TOKEN, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_of_a_repository_only_the_policys_files_are_fetched_from_where_it_lies(tmp_path: Path) -> None:
    with fake_hub() as hub:
        hub.create("me/finished", files=POLICY | BESIDE)
        hub.create("me/broken-off", files=BESIDE)
        done = run_hub(hub.url, tmp_path / "cache", "me/finished")
        assert fetched(Path(done.stdout.strip())) == {*POLICY, "vlm/config.json"}
        done = run_hub(hub.url, tmp_path / "cache", "me/broken-off")
        proposal = "me/broken-off/checkpoints/006000/pretrained_model"
        assert f"the hub repository has no config.json; did you mean {proposal}?" in done.stderr
        done = run_hub(hub.url, tmp_path / "other", proposal)
        folder = Path(done.stdout.strip())
        assert fetched(folder) == set(POLICY)
        assert fetched(folder.parent.parent) == {f"006000/pretrained_model/{name}" for name in POLICY}


def test_a_run_whose_last_was_lost_has_its_newest_policy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in ("000100", "000200"):
        shutil.copytree(TEACHER, tmp_path / "checkpoints" / step / "pretrained_model")
    newest = tmp_path / "checkpoints" / "000200" / "pretrained_model"
    assert find_saved_policy(tmp_path / "checkpoints" / "last" / "pretrained_model") == newest
    assert "last: no link to a checkpoint, so the newest policy there is taken" in caplog.text
    for folder in (tmp_path, tmp_path / "checkpoints", newest.parent):
        with pytest.raises(CheckpointError, match=f"did you mean {newest}"):
            find_saved_policy(folder)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("GatedRepoError", "o/n: the repository is gated: ask for access on its page"),
        ("RepositoryNotFoundError", "o/n: there is no such repository, or it is private"),
        ("RevisionNotFoundError", "o/n: the repository has no such revision"),
        ("OfflineModeIsEnabled", "o/n: HF_HUB_OFFLINE forbids the network"),
        ("LocalEntryNotFoundError", "o/n: it is not in the hub's local cache"),
        ("IncompleteSnapshotError", "o/n: it is not in the hub's local cache"),
        ("BadRequestError", "o/n: BadRequestError: 400 bad"),
    ],
)
def test_the_clients_best_known_errors_are_explained(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = getattr(huggingface_hub.errors, kind)

    def refuse(*_: object, **__: object) -> str:
        error = cls.__new__(cls)
        Exception.__init__(error, "400 bad")
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(HubError) as raised:
        download("o/n")
    assert str(raised.value).startswith(expected)
    assert f"{kind}: " in str(raised.value)


def test_what_an_error_follows_from_is_explained_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `snapshot_download` fails where HF_HUB_OFFLINE is set and nothing is cached: no network would help."""

    def refuse(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError(
            "no snapshot"
        ) from huggingface_hub.errors.OfflineModeIsEnabled("off")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        HubError, match=r"^o/n: HF_HUB_OFFLINE forbids the network: unset it, or .*; the client says: LocalEntry"
    ):
        download("o/n")


def test_a_file_and_a_folder_that_is_nearly_there_are_no_hub_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = shutil.copytree(TEACHER, tmp_path / "runs/mine/pretrained_model")
    monkeypatch.setattr("jaxreflow.policy.folder.download", lambda *_, **__: pytest.fail("asked the hub"))
    for name in ("runs/mine/pretrained_model/model.safetensors", str(policy / "config.json")):
        with pytest.raises(CheckpointError, match=r"is a file; did you mean .*runs/mine/pretrained_model\?"):
            find_saved_policy(name)
    with pytest.raises(
        CheckpointError, match="pretrained_mode: no such folder, though runs/mine is one; check the path"
    ):
        find_saved_policy("runs/mine/pretrained_mode")


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teacher").symlink_to(TEACHER)
    assert find_saved_policy("~/teacher") == TEACHER.resolve()
    assert load_vlm(tiny_policy(), None, "~/teacher/vlm").directory == tmp_path / "teacher" / "vlm"
    (tmp_path / "data").symlink_to(DATASET)
    assert chosen_stats("~/data/meta/stats.json", None, {})
    assert open_dataset(DatasetConfig(root="~/data", episodes=(0,))).root == tmp_path / "data"
