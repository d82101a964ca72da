"""Object stores: datasets and policies are read from them, runs written to them; against servers on this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import train
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.errors import CheckpointError, ConfigError, StorageError
from jaxreflow.policy.saved import find_saved_policy
from jaxreflow.run import setup
from jaxreflow.run.checkpoints import CheckpointStore, last_step, newest_policy
from jaxreflow.run.config import DatasetConfig, ReflowConfig
from jaxreflow.run.record.metrics import MetricsLog, read_metrics
from jaxreflow.support import storage
from jaxreflow.support.new_folder import new_directory
from jaxreflow.support.storage import as_path, check_path, list_files, local_copy, remove_folder, upload
from tests.event_files import shown_scalars
from tests.fake_gcs import fake_gcs
from tests.lerobot_fixtures import write_v21
from tests.test_checkpoint import make_state
from tests.test_train_cli import ARCHITECTURE
from tests.tiny_policy import DATASET, make_vlm

TEACHER = DATASET.parent / "teacher"
# What gcsfs does with files of a megabyte and more.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")


@pytest.fixture(scope="module")
def _servers() -> Iterator[None]:
    """Both stores, empty but for a bucket; the clients find them by their own environment variables."""
    amazon = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    amazon.start()
    with fake_gcs("bucket") as google, pytest.MonkeyPatch.context() as patch:
        environment = {
            "STORAGE_EMULATOR_HOST": google,
            "TENSORSTORE_GCS_HTTP_URL": google,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*amazon.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
        yield
    amazon.stop()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(params=["gs", "s3"])
def folder(request: pytest.FixtureRequest, _servers: None, tmp_path: Path) -> str:
    """A folder of its own in either store."""
    return f"{request.param}://bucket/{tmp_path.name}"


@pytest.fixture
def google(_servers: None, tmp_path: Path) -> str:
    return f"gs://bucket/{tmp_path.name}"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def export(out: storage.AnyPath) -> None:
    with new_directory(out) as local:
        write(local, {"config.json": "{}"})


def test_copy_follows_its_original(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is new or changed is fetched, what is gone is removed, and a folder whose name begins alike is another."""
    fetched: list[str] = []
    fetch = storage._fetch
    monkeypatch.setattr(storage, "_fetch", lambda source, files, to: (fetched.extend(files), fetch(source, files, to)))
    upload(write(tmp_path / "a", {"x": "1", "sub/y": "2", "sub/z": "3"}), as_path(folder))
    upload(write(tmp_path / "b", {"x": "other"}), as_path(folder + "2"))

    def contents() -> dict[str, str]:
        copy = local_copy(folder)
        return {name: (copy / name).read_text() for name in list_files(copy)}

    assert contents() == {"sub/y": "2", "sub/z": "3", "x": "1"}
    assert fetched == ["sub/y", "sub/z", "x"]
    assert contents() == {"sub/y": "2", "sub/z": "3", "x": "1"}
    assert len(fetched) == 3
    as_path(f"{folder}/x").write_text("changed")
    as_path(f"{folder}/sub/z").unlink()
    assert contents() == {"sub/y": "2", "x": "changed"}
    assert fetched[3:] == ["x"]
    remove_folder(as_path(folder))
    with pytest.raises(StorageError, match="expected a folder with files, found none"):
        local_copy(folder)
    assert list_files(as_path(folder + "2"))


def test_names_that_leave_the_folder_are_refused(google: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def find(self, key: str, **_: bool) -> dict[str, dict]:
            return {f"{key}/../../evil": {}}

    monkeypatch.setattr(storage, "_store", lambda _: Client())
    with pytest.raises(StorageError, match=r"found '../../evil'; remove that object"):
        local_copy(google)


def test_dataset_of_chosen_episodes(folder: str, tmp_path: Path) -> None:
    upload(write_v21(tmp_path / "data"), as_path(folder))
    expected, found = (LeRobotDataset.open(root, episodes=[1]) for root in (tmp_path / "data", folder))
    for frame in expected.frame_indices().tolist():
        mine, other = expected.frame(frame), found.frame(frame)
        assert all(np.array_equal(mine[key], other[key]) for key in mine)
    names = [name for name in list_files(found.root) if not name.startswith("meta/")]
    assert names == ["data/chunk-000/episode_000001.parquet", *[n for n in names if n.endswith("episode_000001.mp4")]]


def test_policy(folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: no such file; expected a policy in LeRobot's layout"):
        find_saved_policy(folder)
    upload(TEACHER, as_path(folder))
    found = list_files(find_saved_policy(folder))
    assert {name: file.digest() for name, file in list_files(TEACHER).items() if name in found} == {
        name: file.digest() for name, file in found.items()
    }
    assert {"config.json", "model.safetensors", "vlm/tokenizer.json"} <= found.keys()


def test_export_is_complete_or_not_there(folder: str) -> None:
    out = as_path(f"{folder}/policy")
    export(out)
    assert list(list_files(out)) == ["config.json"]
    with pytest.raises(CheckpointError, match="is there already"):
        export(out)
    with pytest.raises(
        StorageError, match=r"://no-such-bucket/.*: FileNotFoundError .*; check the path, your credentials"
    ):
        export(as_path(folder.replace("bucket", "no-such-bucket", 1)))
    with pytest.raises(ConfigError, match=r"OUT gs:/x: expected a local path, found gs://"):
        export(Path("gs://x"))


@pytest.mark.slow
def test_checkpoints(google: str) -> None:
    store = CheckpointStore(as_path(f"{google}/checkpoints"), keep=2)
    assert store.newest_intact() is None
    for step in (1, 2, 3):
        store.save(step, make_state(step), {"seed": step}, export)
    store.wait()
    assert storage.list_folders(store.directory) == ["000002", "000003"]
    assert (last_step(store.directory), store.newest_intact()) == (3, 3)
    assert str(newest_policy(store.directory)) == f"{google}/checkpoints/000003/pretrained_model"
    assert store.read_meta(3) == {"seed": 3}
    found, expected = (jax.tree.leaves(state) for state in (store.read_state(3, make_state(0)), make_state(3)))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    files = list_files(store.path(3)).items()
    name, size = next((name, file.size) for name, file in files if "/state/" in name and file.size > 1000)
    as_path(f"{store.path(3)}/{name}").write_bytes(b"x" * size)
    assert store.newest_intact() == 2
    store.close()


def test_metrics_are_cut_off_and_go_on(google: str) -> None:
    run = as_path(google)
    for start, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        with MetricsLog(run, start=start, steps=4) as metrics:
            for step in steps:
                metrics.write(step, {"start": float(start)})
    assert list(read_metrics(run)) == [{"step": s, "start": 0 if s < 3 else 2} for s in (1, 2, 3, 4)]


@pytest.mark.slow
def test_run(google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Dataset in one store, a new policy and the run in the other."""
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)
    data, run = f"s3://bucket/{tmp_path.name}", f"{google}/run"
    upload(DATASET, as_path(data))
    vlm = make_vlm(tmp_path / "vlm")
    flags = [*ARCHITECTURE, "--policy.vlm", str(vlm), "--dataset.root", data, "--dataset.holdout", "0", "--steps", "1"]
    flags += ["--batch-size", "2", "--output-dir", run, "--tracker", "tensorboard", "--profile", "1,1"]
    assert train.main(["finetune", *flags]) == 0
    (record,) = read_metrics(as_path(run))
    assert record.pop("step") == 1
    points = shown_scalars(local_copy(f"{run}/tensorboard"))
    assert points == {name: [(1, pytest.approx(value))] for name, value in record.items()}
    names = list_files(as_path(run))
    assert {"cameras/observation.image.png", "provenance.jsonl"} <= set(names)
    assert any(name.startswith("profile/") and name.endswith(".xplane.pb") for name in names)
    student = find_saved_policy(f"{run}/checkpoints/000001/pretrained_model")
    assert json.loads((student / "train_config.json").read_text())["dataset"]["root"] == data
    assert train.main(["finetune", *flags]) == 1
    assert f"error: {run} holds a run; nothing is overwritten" in capsys.readouterr().err
    assert train.main(["finetune", "--output-dir", run, "--resume"]) == 0
    assert f"{run} is complete after update 1" in capsys.readouterr().err


REFUSED = {
    "--output-dir s3://b/run: expected a local path or gs://, found s3:// (where Orbax cannot write": lambda: (
        ReflowConfig(output_dir="s3://b/run")
    ),
    "--vlm gs://b/vlm: expected a local path, found gs://": lambda: ReflowConfig(vlm="gs://b/vlm"),
    "--stats-from gs://b/x.json: expected a local path": lambda: ReflowConfig(stats_from="gs://b/x.json"),
    "--dataset.root az://b/data: expected a local path or gs:// or s3://": lambda: DatasetConfig(root="az://b/data"),
    "--dataset.features is checked against all files": lambda: DatasetConfig(
        root="gs://b", features="f", episodes=(1,)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_remote_is_refused_at_once(message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        REFUSED[message]()


def test_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"expected the package s3fs, found none; install it with pip"):
        check_path("--dataset.root", "s3://b/data")
    check_path("--dataset.root", "C:/data")
    check_path("--teacher.path", "owner/name")
