"""Downloads from the hub: revisions reach it, and the user's token reaches nothing that is shown or kept."""

from pathlib import Path
from typing import Any

import pytest

import train
from convert.__main__ import main as convert
from jaxreflow.data import features
from jaxreflow.errors import CheckpointError, ConfigError, DatasetError
from jaxreflow.evaluate import __main__ as evaluate
from jaxreflow.policy.saved import find_saved_policy
from jaxreflow.policy.vlm import load_vlm
from jaxreflow.run import setup
from jaxreflow.run.config import DatasetConfig
from jaxreflow.run.data import open_dataset
from jaxreflow.sim.closed_loop import SimConfig, _load
from jaxreflow.support.hub import HubError, download, without_token
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
