"""Checkpoints: complete or not there, `last` always at a complete one, whatever goes wrong while writing."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow.errors import CheckpointError
from jaxreflow.run.checkpoints import CheckpointStore, last_step, newest_policy
from jaxreflow.support.mesh import make_mesh, sharded_copy
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer
from jaxreflow.training.step import TrainState, init_state


def make_state(value: float, *, ema: bool = True, optimizer: str = "adamw") -> TrainState:
    params = {"expert": {"kernel": np.full((64, 64), value, np.float32)}, "state_proj": {"bias": np.arange(3.0)}}
    made = make_optimizer(OptimizerConfig(name=optimizer), 100)
    return sharded_copy(init_state(params, made, ema=ema), make_mesh())


def export(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, keep_every=20)
    yield store
    store.close()


@pytest.mark.parametrize(("ema", "optimizer"), [(True, "adamw"), (False, "adamw"), (True, "muon")])
def test_round_trip_while_training_goes_on(store: CheckpointStore, ema: bool, optimizer: str) -> None:
    state = make_state(1.5, ema=ema, optimizer=optimizer)
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    store.save(5, state, {"seed": 3, "nested": {"path": "é"}}, export)
    state = advance(advance(state))  # the buffers that are being saved are reused
    store.wait()
    assert store.read_meta(5) == {"seed": 3, "nested": {"path": "é"}}
    restored = store.read_state(5, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, expected in zip(
        jax.tree.leaves(restored), jax.tree.leaves(make_state(1.5, ema=ema, optimizer=optimizer)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.sharding == expected.sharding
    assert (store.directory / "last" / "pretrained_model" / "config.json").is_file()


def test_newest_and_every_nth_are_kept(store: CheckpointStore) -> None:
    assert last_step(store.directory) is None
    for step in (10, 20, 30, 40, 50):
        store.save(step, make_state(step), {}, export)
    store.wait()
    assert sorted(path.name for path in store.directory.iterdir()) == ["000020", "000040", "000050", "last"]
    assert last_step(store.directory) == 50


def test_pointer_file_where_links_cannot_be_made(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for step in (1, 2):
        store.save(step, make_state(step), {}, export)
    store.wait()
    assert (store.directory / "last").read_text() == "000002\n"
    assert last_step(store.directory) == 2


def test_damaged_pointer_and_state_are_named(store: CheckpointStore) -> None:
    store.save(1, make_state(1), {}, export)
    store.wait()
    state_files = [path for path in (store.path(1) / "training_state" / "state").rglob("*") if path.is_file()]
    for path in state_files:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"000001/training_state: the training state cannot be read"):
        store.read_state(1, make_state(1))
    (store.directory / "last").unlink()
    (store.directory / "last").write_text("yesterday")
    with pytest.raises(CheckpointError, match=r"last: expected a link"):
        last_step(store.directory)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "expected": truncate,
    "its bytes are not the ones": flip,
    "is missing": Path.unlink,
}


@pytest.mark.parametrize("says", DAMAGES)
@pytest.mark.parametrize("what", ["pretrained_model/config.json", "training_state/state", "checksums.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    store: CheckpointStore, says: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        store.save(step, make_state(step), {}, export)
    store.wait()
    assert store.newest_intact() == 2
    assert not caplog.text
    for count, step in enumerate((2, 1), 1):
        path = store.path(step) / what
        file = (
            path if path.is_file() else max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        )
        DAMAGES[says](file)
        if step == 2:
            assert store.newest_intact() == 1
            assert f"{store.path(2)}: damaged" in caplog.text
            if what != "checksums.json":
                assert f"{file}" in caplog.text
                assert says in caplog.text
        else:
            with pytest.raises(CheckpointError, match=rf"all of the {count} checkpoint\(s\) up to 000002 are damaged"):
                store.newest_intact()


def test_without_the_pointer_the_newest_complete_checkpoint_is_used(store: CheckpointStore) -> None:
    assert store.newest_intact() is None
    for step in (1, 2, 3):
        store.save(step, make_state(step), {}, export)
    store.wait()
    (store.directory / "last").unlink()
    (store.path(3) / "checksums.json").unlink()  # As a kill leaves it.
    assert store.newest_intact() == 2


def test_a_pointer_that_a_copy_made_a_folder_of_counts_as_none(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, make_state(step), {}, export)
    store.wait()
    (store.directory / "last").unlink()
    shutil.copytree(store.path(1), store.directory / "last")
    assert last_step(store.directory) == 2
    assert newest_policy(store.directory) == store.path(2) / "pretrained_model"
    assert store.newest_intact() == 2
    store.save(3, make_state(3), {}, export)
    store.wait()
    assert (store.directory / "last").readlink() == Path("000003")
    assert (store.directory / "last.copied" / "pretrained_model").is_dir()
    assert last_step(store.directory) == 3


def test_failing_export_leaves_the_checkpoint_before(store: CheckpointStore) -> None:
    def fail(out: Path) -> None:
        out.mkdir(parents=True)
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    store.save(1, make_state(1), {}, export)
    with pytest.raises(CheckpointError, match=r"000002: .*No space left.*000001 is complete.*--resume"):
        store.save(2, make_state(2), {}, fail)
    assert last_step(store.directory) == 1
    assert not store.path(2).exists()
    store.save(2, make_state(2), {}, export)
    store.wait()
    assert last_step(store.directory) == 2


def save_and_wait(store: CheckpointStore, state: TrainState) -> None:
    store.save(2, state, {}, export)
    store.wait()


def test_full_disk_while_the_state_is_written(store: CheckpointStore, request: pytest.FixtureRequest) -> None:
    """A limit on file sizes stands in for the full disk: both make the writer's `write` fail in the background."""
    store.save(1, make_state(1), {}, export)
    store.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    noise = np.random.default_rng(0).normal(size=(64, 64))  # which zstd cannot make small
    full = make_state(2)
    state = TrainState(full.step, {"expert": {"kernel": jnp.asarray(noise, jnp.float32)}}, full.opt_state, full.ema)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    with pytest.raises(CheckpointError, match=r"000002: cannot be written.*000001 is complete"):
        save_and_wait(store, state)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last_step(store.directory) == 1
    assert not store.path(2).exists()
    np.testing.assert_array_equal(store.read_state(1, make_state(0)).trainable["expert"]["kernel"], 1.0)
