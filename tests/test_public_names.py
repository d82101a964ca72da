"""What is published says how things are called, and nothing of where they lie."""

import json

import pytest

from jaxreflow.policy.public_names import PolicyName, folder_name, is_folder, name_policy
from jaxreflow.publish.public_names import public_settings, without_absolute_paths

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CACHE = f"/home/ann/.cache/huggingface/hub/models--lerobot--smolvla_base/snapshots/{COMMIT}"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/ann/teacher/checkpoints/last/pretrained_model", "teacher"),
        ("runs/teacher/checkpoints/004000/pretrained_model/", "teacher"),
        ("RUN/initial_policy", "RUN"),
        ("~/policies/blue", "blue"),
        ("C:\\Users\\ann\\blue", "blue"),
        ("gs://a-bucket/of/ann", "ann"),
        ("teacher", "teacher"),
        ("/", "policy"),
    ],
)
def test_a_path_is_called_after_its_last_part_that_names_something(path, name):
    assert folder_name(path) == name


def test_a_policy_of_the_hub_has_its_name_and_the_commit_that_was_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_policy("lerobot/smolvla_base", CACHE) == PolicyName("lerobot/smolvla_base", True, COMMIT)
    assert name_policy("lerobot/smolvla_base") == PolicyName("lerobot/smolvla_base", True)
    # A policy may lie in a folder of its repository.
    inner = name_policy("lerobot/smolvla_base/checkpoints/last", f"{CACHE}/checkpoints/last")
    assert inner == PolicyName("lerobot/smolvla_base", True, COMMIT)
    # The folder that was read decides: `runs/teacher` has the form of a hub name.
    assert name_policy("runs/teacher", "/home/ann/runs/teacher") == PolicyName("teacher", False)
    # What lies in an object store is read from a copy, whose folder has a name of its own.
    assert name_policy("gs://bucket/runs/blue", "/home/ann/.cache/jaxreflow/8f3a") == PolicyName("blue", False)
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    assert name_policy("runs/teacher") == PolicyName("teacher", False)
    assert is_folder("runs/teacher")
    assert is_folder("/nowhere/vlm")
    assert not is_folder("lerobot/smolvla_base")


SETTINGS = {
    "output_dir": "/home/ann/runs/student",
    "dataset": {"root": "data/secret-customer/set", "repo_id": None, "features": None, "episodes": [1, 2]},
    "rename_map": {"observation.images.a/b": "observation.image"},
    "early_task": "put the left/right block down",
    "distributed": "trainer-7.internal:1234,4,0",
    "vlm": "~/vlm",
    "stats_from": "gs://bucket/of/stats.json",
    "teacher": {"path": "lerobot/smolvla_base", "revision": "main"},
    "push_to_hub": "me/student",
    "source": {"path": CACHE, "sha256": "ab" * 32},
    "update": 20,
    "seed": 0,
}


def test_settings_are_published_without_paths_and_addresses():
    public = public_settings(SETTINGS)
    assert public == {
        **SETTINGS,
        "output_dir": "student",
        "dataset": {"root": "set", "repo_id": None, "features": None, "episodes": [1, 2]},
        "distributed": "HOST:PORT,4,0",
        "vlm": "vlm",
        "stats_from": "stats.json",
        "teacher": {"path": "lerobot/smolvla_base", "revision": COMMIT},
        "source": {"path": "lerobot/smolvla_base", "sha256": "ab" * 32},
    }
    # What was published is published again as it is, and still knows that its teacher is on the hub.
    assert public_settings(public) == public
    assert name_policy(public["teacher"]["path"], public["source"]["path"]).on_hub
    text = json.dumps(public)
    assert not [word for word in ("ann", "customer", "bucket", "internal", "/home") if word in text]


def test_settings_of_another_program_lose_their_paths_too():
    settings = {
        "dataset": {"repo_id": "a/b", "root": "/home/ann/b"},
        "policy": {"pretrained_path": "a/base"},
        "job": "x/y/z",
    }
    public = public_settings(settings)
    assert public == {"dataset": {"repo_id": "a/b", "root": "b"}, "policy": {"pretrained_path": "a/base"}, "job": "z"}


def test_only_absolute_paths_leave_a_config():
    config = {
        "pretrained_path": "/home/ann/teacher",
        "vlm_model_name": "a/b",
        "steps": [{"tokenizer_name": "~/vlm"}],
        "x": "/",
    }
    public = without_absolute_paths(config)
    assert public == {
        "pretrained_path": "teacher",
        "vlm_model_name": "a/b",
        "steps": [{"tokenizer_name": "vlm"}],
        "x": "/",
    }
