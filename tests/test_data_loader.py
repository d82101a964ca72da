"""The pipeline: one global order whatever the workers, processes and restarts; what an example holds; cameras."""

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.loader import TrainingSource, iterate_once, make_loader, to_batch
from jaxreflow.data.matching import check_features, dataset_key, match_cameras, pad_last
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.run.data import SkippedFrames
from tests.lerobot_fixtures import CAMERA, actions, write_v30

POLICY_CAMERA = "observation.images.camera1"
ONE, TWO, THREE = (f"observation.images.camera{i}" for i in (1, 2, 3))


def tokenize(tasks):
    """Tokens that spell the task's first letter."""
    return np.array([[ord(task[0]), 2] for task in tasks], np.int32), np.array([[True, False]] * len(tasks))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return LeRobotDataset.open(write_v30(tmp_path_factory.mktemp("loader") / "data"))


def source_of(dataset, frames=None, **changes):
    arguments = {
        "cameras": {POLICY_CAMERA: CAMERA},
        "chunk_size": 4,
        "max_state_dim": 5,
        "max_action_dim": 6,
        "tokenize": tokenize,
        "normalize_state": lambda x: x / 2,
        "normalize_action": lambda x: x - 1,
    }
    return TrainingSource(dataset, dataset.frame_indices() if frames is None else frames, **(arguments | changes))


@pytest.fixture(scope="module")
def source(dataset):
    """From a cache, which spares the tests of the order the decoding."""
    cached = LeRobotDataset(dataset.metadata)
    cached.cache_frames()
    return source_of(cached)


def indices(source, steps, **options):
    """Frame indices `[steps, local batch]` of the first batches."""
    loader = make_loader(source, **({"batch_size": 4, "seed": 7} | options))
    result = np.stack([batch["index"] for batch in itertools.islice(loader, steps)])
    loader.close()
    return result


def test_example(dataset, source):
    example = source[10]
    np.testing.assert_array_equal(example["images"][POLICY_CAMERA], dataset.image(10, CAMERA))
    assert example["image_mask"] == {POLICY_CAMERA: True}
    assert (example["tokens"].tolist(), example["token_mask"].tolist()) == ([ord("p"), 2], [True, False])
    np.testing.assert_array_equal(example["state"], np.float32([5, -5, 0, 0, 0]))
    np.testing.assert_array_equal(example["actions"], np.pad(actions([10, 11, 11, 11]) - 1, ((0, 0), (0, 3))))
    np.testing.assert_array_equal(example["action_is_pad"], [False, False, True, True])
    assert example["index"] == 10


def test_tasks_have_their_own_tokens(dataset):
    part = LeRobotDataset(dataset.metadata, (1, 2))
    source = source_of(
        part,
        tokenize=lambda tasks: (
            np.array([[len(t), ord(t[1])] for t in tasks], np.int32),
            np.ones((len(tasks), 2), bool),
        ),
    )
    assert [chr(source[i]["tokens"][1]) for i in range(11)] == ["u"] * 11
    assert source_of(dataset, np.array([8, 2]))[0]["index"] == 8


def test_batches(source):
    loader = make_loader(source, batch_size=3, seed=0, shuffle=False)
    batch = to_batch(next(loader))
    loader.close()
    assert (batch.index.tolist(), batch.index.dtype) == ([0, 1, 2], np.int32)
    assert batch.observation.images[POLICY_CAMERA].shape == (3, 64, 96, 3)
    assert batch.observation.images[POLICY_CAMERA].dtype == np.uint8
    assert batch.observation.image_mask[POLICY_CAMERA].tolist() == [True] * 3
    assert (batch.observation.tokens.dtype, batch.observation.token_mask.dtype) == (np.int32, bool)
    assert (batch.observation.state.dtype, batch.observation.state.shape) == (np.float32, (3, 5))
    assert (batch.actions.dtype, batch.actions.shape, batch.action_is_pad.shape) == (np.float32, (3, 4, 6), (3, 4))


def test_every_epoch_visits_every_frame_once_in_a_new_order(source):
    flat = indices(source, 27).ravel()  # 108 examples: 6 epochs of 18, batches of 4 across their ends
    epochs = flat.reshape(6, 18)
    for epoch in epochs:
        assert sorted(epoch) == list(range(18))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert not np.array_equal(flat, indices(source, 27, seed=8).ravel())
    np.testing.assert_array_equal(flat, indices(source, 27).ravel())


@pytest.mark.parametrize("start", [0, 8, 16, 36, 400, 5])
def test_resumes_by_example(source, start):
    whole = indices(source, (start + 24) // 4 + 1).ravel()
    np.testing.assert_array_equal(indices(source, 6, start_example=start).ravel(), whole[start : start + 24])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(source, processes):
    parts = [indices(source, 12, start_example=8, process_index=i, process_count=processes) for i in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), indices(source, 14)[2:])


@pytest.mark.slow
def test_workers_outlive_signals_and_their_death_is_an_error(dataset, source):
    """Schedulers and terminals signal every process of a job; the run decides when it ends."""
    loader, expected = make_loader(source_of(dataset), batch_size=4, seed=7, num_workers=2), indices(source, 40)
    np.testing.assert_array_equal([next(loader)["index"] for _ in range(2)], expected[:2])  # Both are up.
    workers = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in workers:
            os.kill(worker.pid, number)
    np.testing.assert_array_equal([next(loader)["index"] for _ in range(8)], expected[2:10])
    os.kill(workers[1].pid, signal.SIGKILL)
    read = []
    with pytest.raises(DatasetError) as death:
        read.extend(batch["index"].tolist() for batch in loader)
    loader.close()
    assert read == expected[10 : 10 + len(read)].tolist()
    lost = ", ".join(source.dataset.describe(index) for index in expected[10 + len(read)].tolist())
    assert f"{source.dataset.root}: a loader worker died" in str(death.value)
    assert f"while it read {lost}; out of memory" in str(death.value)


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(dataset, tmp_path):
    (tmp_path / "source.pkl").write_bytes(pickle.dumps(source_of(dataset)))
    program = """
import multiprocessing, os, pickle, signal, sys
from jaxreflow.data.loader import make_loader
if __name__ == "__main__":
    loader = make_loader(pickle.load(open(sys.argv[1], "rb")), batch_size=4, seed=7, num_workers=2)
    next(loader)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "run.py").write_text(program)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "source.pkl")]
    killed = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers, deadline = [int(pid) for pid in killed.stdout.split()], time.monotonic() + 30
    assert len(workers) == 2
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one without a parent may stay as a zombie."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_workers_do_not_change_the_order(dataset, source):
    def constant(tasks):
        return tokenize(tasks)

    # Local functions cannot be pickled: the source holds tables, not the callables.
    local = pickle.loads(pickle.dumps(source_of(dataset, tokenize=constant, normalize_state=lambda x: x)))
    loader = make_loader(local, batch_size=4, seed=7, start_example=4, num_workers=2)
    batches = list(itertools.islice(loader, 5))
    loader.close()
    np.testing.assert_array_equal(np.stack([batch["index"] for batch in batches]), indices(source, 6)[1:])
    for batch in batches:
        for index, image in zip(batch["index"], batch["images"][POLICY_CAMERA], strict=True):
            np.testing.assert_array_equal(image, dataset.image(int(index), CAMERA))


def test_iterate_once(source):
    batches = list(iterate_once(source, 4, [3, 1, 2, 17, 5, 9]))
    assert [(batch["index"].tolist(), valid) for batch, valid in batches] == [([3, 1, 2, 17], 4), ([5, 9, 9, 9], 2)]
    assert batches[1][0]["images"][POLICY_CAMERA].shape == (4, 64, 96, 3)
    assert sum(valid for _, valid in iterate_once(source, 4)) == 18


def test_loader_errors(dataset, source):
    with pytest.raises(DatasetError, match="18 frames are fewer than a batch of 19"):
        make_loader(source, batch_size=19, seed=0)
    with pytest.raises(ConfigError, match="multiple of the 3 process"):
        make_loader(source, batch_size=4, seed=0, process_count=3)
    for wrong in (
        {"process_index": 1},
        {"start_example": -1},
        {"num_workers": -1},
        {"prefetch": 0},
        {"seed": -1},
        {"seed": 2**32},
    ):
        with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))} from"):
            make_loader(source, **({"batch_size": 4, "seed": 0} | wrong))
    with pytest.raises(DatasetError, match="3 entries does not fit the policy's 2"):
        source_of(dataset, max_action_dim=2)
    with pytest.raises(DatasetError, match="frame 99"):
        source_of(dataset, np.array([0, 99]))


def test_cache_serves_the_loader_without_workers(dataset, source):
    with pytest.raises(ConfigError, match="use 0 workers"):
        make_loader(source, batch_size=4, seed=0, num_workers=1)
    for position in (9, 2, 17):
        for camera, image in source_of(dataset)[position]["images"].items():
            np.testing.assert_array_equal(source[position]["images"][camera], image)


def test_errors_in_the_pipeline_reach_the_caller(dataset):
    part = LeRobotDataset(dataset.metadata)
    part.column("timestamp")[:] += 0.033
    with pytest.raises(DatasetError, match="no frame within"):
        next(make_loader(source_of(part), batch_size=4, seed=0))


def test_bad_frames_are_replaced_counted_and_named(dataset, monkeypatch, caplog):
    """The same frames take their places in every epoch and on every host."""
    good = LeRobotDataset(dataset.metadata)
    image = good.image

    def decode(index, camera):
        if index in (3, 4):
            raise DatasetError(f"cannot decode {index}")
        return image(index, camera)

    monkeypatch.setattr(good, "image", decode)
    with pytest.raises(DatasetError, match="cannot decode 3"):
        source_of(good)[3]
    source = source_of(good, skip_bad=True)
    assert [int(source[i]["skipped"]) for i in range(6)] == [-1, -1, -1, 3, 4, -1]
    places = [int(source[i]["index"]) for i in (3, 4)]
    assert places == [int(source[i]["index"]) for i in (3, 4)]
    assert not {3, 4} & set(places)
    loader, skipped, seen = make_loader(source, batch_size=6, seed=0), SkippedFrames(good), []
    for batch in itertools.islice(loader, 6):  # two epochs
        skipped.note(batch)
        seen += batch["index"].tolist()
    loader.close()
    assert len(seen) == 36
    assert not {3, 4} & set(seen)
    assert caplog.text.count("cannot be decoded") == 2
    assert f"frame 3 of episode 0 cannot be decoded, {good.describe(places[0])} takes its place" in caplog.text
    assert "2 bad frame(s) so far" in caplog.text


def test_a_dataset_without_a_good_frame_is_an_error(dataset, monkeypatch):
    bad = LeRobotDataset(dataset.metadata)
    monkeypatch.setattr(bad, "image", lambda *_: (_ for _ in ()).throw(DatasetError("nothing here")))
    with pytest.raises(DatasetError, match="nothing here"):
        source_of(bad, skip_bad=True)[0]


def test_pad_last():
    np.testing.assert_array_equal(pad_last(np.ones((2, 3), np.float32), 5), [[1, 1, 1, 0, 0]] * 2)


def test_cameras_match_in_policy_order():
    assert match_cameras([TWO, ONE], [ONE, TWO], {}, 0) == {ONE: ONE, TWO: TWO}
    assert list(match_cameras([TWO, ONE], [ONE, TWO], {}, 0)) == [ONE, TWO]
    assert match_cameras(["observation.image"], [ONE], {"observation.image": ONE}, 0) == {ONE: "observation.image"}
    swapped = match_cameras([ONE, TWO], [ONE, TWO], {ONE: TWO, TWO: ONE}, 0)
    assert swapped == {ONE: TWO, TWO: ONE}


def test_absent_cameras_are_allowed_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert match_cameras([THREE], [ONE, TWO, THREE], {}, 1) == {THREE: THREE}
    assert f"no {ONE}, {TWO}: 1 of 2 stood in" in caplog.text


def test_foreign_cameras_are_left_out_and_told(caplog):
    """As in LeRobot: all that the policy wants is there, or a map says which cameras are meant."""
    assert match_cameras([ONE, TWO, "spare"], [ONE, TWO], {}, 0) == {ONE: ONE, TWO: TWO}
    assert match_cameras(["front", "side"], [ONE, TWO, THREE], {"front": ONE}, 0) == {ONE: "front"}
    assert "has no camera spare: left out" in caplog.text
    assert "has no camera side: left out" in caplog.text


def test_an_empty_camera_need_not_be_there_but_may(caplog):
    empty = "observation.images.empty_camera_0"
    assert match_cameras([ONE], [ONE, empty], {}, 1) == {ONE: ONE}
    assert not caplog.text
    assert match_cameras([ONE, "wrist"], [ONE, empty], {"wrist": empty}, 1) == {ONE: ONE, empty: "wrist"}
    assert match_cameras([ONE, "wrist"], [ONE, empty], {}, 1) == {ONE: ONE}


def test_a_map_may_name_cameras_that_the_dataset_has_under_the_policys_names(caplog):
    """A checkpoint's map is that of the robot it was trained on."""
    assert match_cameras([ONE, TWO], [ONE, TWO], {"front": ONE, "wrist": TWO}, 0) == {ONE: ONE, TWO: TWO}
    assert not caplog.text
    assert match_cameras([ONE], [ONE, TWO], {"tip": TWO}, 0) == {ONE: ONE}
    assert "has tip, which is no camera of the dataset's" in caplog.text


def test_camera_mismatch_proposes_the_map():
    with pytest.raises(DatasetError, match=r"""--rename-map '\{"observation.image": "observation.images.camera1"\}'"""):
        match_cameras(["observation.image"], [ONE], {}, 0)
    with pytest.raises(DatasetError) as error:
        match_cameras(["top", ONE, "side"], [ONE, TWO, THREE], {}, 2)
    assert f'--rename-map \'{{"top": "{TWO}", "side": "{THREE}"}}\'' in str(error.value)
    proposal = json.loads(re.search(r"to do without top, side, add --rename-map '(.*)'$", str(error.value))[1])
    assert match_cameras(["top", ONE, "side"], [ONE, TWO, THREE], proposal, 2) == {ONE: ONE}


def test_impossible_cameras():
    with pytest.raises(
        DatasetError, match=r"no camera 'tip'.* add --rename-map '\{\"top\": \"observation.images.camera1\"\}'"
    ):
        match_cameras(["top"], [ONE], {"tip": ONE}, 0)
    with pytest.raises(DatasetError, match="several of the dataset's cameras, a, b") as error:
        match_cameras(["a", "b"], [ONE], {"a": ONE, "b": ONE}, 0)
    proposal = json.loads(re.search(r"to take a, give --rename-map '(.*)'$", str(error.value))[1])
    assert match_cameras(["a", "b"], [ONE], proposal, 0) == {ONE: "a"}
    with pytest.raises(DatasetError, match="at least one camera"):
        match_cameras([], [ONE], {}, 1)


def test_dimensions_must_agree(dataset):
    def check(state_dim, action_dim, **rename_map):
        check_features(dataset, state_dim=state_dim, action_dim=action_dim, rename_map=rename_map)

    check(2, 3)
    check(None, 3)
    check(2, 3, joints="observation.state")
    with pytest.raises(
        DatasetError, match=r"'observation.state' has shape \[2\], the policy's 'observation.state' has \[14\]"
    ):
        check(14, 3)
    with pytest.raises(DatasetError, match=r"'action' has shape \[3\], the policy's 'action' has \[7\]"):
        check(2, 7)
    bare = SimpleNamespace(root=dataset.root, features={"joints": dataset.features["observation.state"]})
    with pytest.raises(DatasetError, match=r"no feature .observation\.state., which the policy needs; it has joints"):
        check_features(bare, state_dim=2, action_dim=3, rename_map={})
    with pytest.raises(DatasetError, match="no feature 'action'"):
        check_features(bare, state_dim=2, action_dim=3, rename_map={"joints": "observation.state"})


def test_a_maps_names_count_where_the_dataset_has_them():
    assert dataset_key("action", {"a": "b"}, ["action", "a"]) == "action"
    assert dataset_key("action", {"a": "action"}, ["a"]) == "a"
    assert dataset_key("action", {"a": "action"}, ["action"]) == "action"
    assert dataset_key("action", {"a": "action", "b": "action"}, ["b"]) == "b"
