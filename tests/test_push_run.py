"""`train.py --push-to-hub` in a process of its own, against a hub: a failed push, its repetition, and the way back."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train
from jaxreflow.errors import ConfigError
from jaxreflow.policy.folder import HUB_FILES
from jaxreflow.run.config import FinetuneConfig, ReflowConfig
from jaxreflow.run.directory import check_resumable
from tests.fake_hub import TOKEN, Hub, fake_hub
from tests.short_run import flags, make_teacher
from tests.watched_run import ROOT

LOAD = """
import shutil, sys
from jaxreflow.policy.saved import load_saved_policy
shutil.copytree(load_saved_policy("me/student").directory, sys.argv[1])
"""


def run(hub: Hub, cache: Path, *command: str) -> subprocess.CompletedProcess:
    """A command in a process that knows this hub and has a token for it."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.slow
def test_a_run_is_pushed_after_its_end_and_comes_back_byte_for_byte(tmp_path: Path, tmp_path_factory) -> None:
    teacher, out = make_teacher(tmp_path_factory), tmp_path / "student"
    policy = out / "checkpoints" / "last" / "pretrained_model"
    with fake_hub() as hub:
        hub.fail = {"/commit/": 500}
        asked = [*flags(teacher, out, "--steps", "2"), "--push-to-hub", "me/student", "--private"]
        done = run(hub, tmp_path / "cache", "train.py", *asked)
        assert done.returncode == 1
        assert (policy / "model.safetensors").is_file()
        assert set(hub.repos["me/student"].files()) == {".gitattributes"}
        error = done.stderr.splitlines()[-1]
        assert error.startswith("error: the run is complete, but its policy was not pushed: me/student: ")
        program, *again = shlex.split(error.split("when that is mended: ")[1])
        assert (program, again) == ("python", ["-m", "convert", "push", str(policy), "me/student", "--private"])

        hub.fail = {}
        done = run(hub, tmp_path / "cache", *again)
        assert done.returncode == 0, done.stderr
        repo = hub.repos["me/student"]
        assert (repo.messages, repo.private) == (["initial commit", "Upload student"], True)
        assert f"/me/student/commit/{repo.branches['main']}" in done.stdout

        done = run(hub, tmp_path / "cache", "-c", LOAD, str(tmp_path / "back"))
        assert done.returncode == 0, done.stderr
    back = {
        path.relative_to(tmp_path / "back").as_posix(): path
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    written = {path.relative_to(policy).as_posix(): path for pattern in HUB_FILES for path in policy.rglob(pattern)}
    assert set(back) == set(written)
    assert {name for name in back if back[name].read_bytes() != written[name].read_bytes()} == {"train_config.json"}
    settings = json.loads(back["train_config.json"].read_text())
    assert (settings["teacher"]["path"], settings["output_dir"], settings["update"]) == ("policy", "student", 2)
    assert settings["source"]["path"] == "policy"
    assert "| updates | 2 |" in repo.files()["README.md"].decode()


@pytest.mark.parametrize("config", [ReflowConfig, FinetuneConfig])
def test_the_report_comes_before_the_push_and_the_check_before_everything(
    config, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("check_push", "run", "report", "push_run"):
        monkeypatch.setattr(train, name, lambda _, name=name: order.append(name))
    source = ["reflow", "--teacher.path", "T"] if config is ReflowConfig else ["finetune", "--policy.path", "P"]
    argv = [*source, "--dataset.root", "D", "--output-dir", "RUN"]
    assert train.main([*argv, "--push-to-hub", "me/student"]) == 0
    assert order == ["check_push", "run", "report", "push_run"]
    order.clear()
    assert train.main(argv) == 0
    assert order == ["check_push", "run", "report"]


def test_private_is_about_a_push_and_a_resumed_run_may_ask_for_one() -> None:
    with pytest.raises(ConfigError, match="--private is about --push-to-hub"):
        ReflowConfig(private=True)
    check_resumable(ReflowConfig(), ReflowConfig(push_to_hub="me/student", private=True))
