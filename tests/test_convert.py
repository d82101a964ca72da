"""The conversion commands: nothing is lost on the way to Orbax and back, and what is wrong is named."""

import json
import shutil
import weakref
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from convert import archive
from convert.__main__ import main
from convert.inspection import inspect_checkpoint
from convert.orbax import LazyLeaf, TreeReader, save_tree
from jaxreflow.model.config import VLMConfig
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.saved import WEIGHTS, load_saved_policy
from jaxreflow.policy.weights import expected_tensors, read_params
from jaxreflow.support.safetensors_file import TensorFile
from tests.checkpoint_edits import NORM, PRE_STATS, contents, copy_checkpoint, edit_config, edit_tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small checkpoint of LeRobot's in which nothing is wrong: mixed dtypes, special tokens, three layers."""
    return copy_checkpoint("mixed", tmp_path / "policy")


# ---- Orbax and back


@pytest.mark.parametrize("name", ["aloha", "cross", "mixed"])
def test_round_trip_is_byte_identical(name, tmp_path, capsys):
    source = copy_checkpoint(name, tmp_path / "policy")
    assert main(["from-lerobot", str(source), str(tmp_path / "orbax")]) == 0
    assert main(["to-lerobot", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(source)
    assert "byte for byte the source's" in capsys.readouterr().out


def test_any_dtype_name_and_buffer_comes_back(source, tmp_path):
    kinds = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)

    def scramble(tensors):
        rng = np.random.default_rng(0)
        scrambled = {
            key.replace("model.", "model._orig_mod.", 1): rng.normal(size=tensor.shape).astype(kinds[i % 4])
            for i, (key, tensor) in enumerate(tensors.items())
        }
        return {
            **scrambled,
            "normalize_inputs.buffer_observation_state.mean": np.arange(6.0),
            "normalize_targets.count": np.array(7),
        }

    edit_tensors(source / WEIGHTS, scramble, {"format": "pt", "note": "kept"})
    archive.from_lerobot(source, tmp_path / "orbax")
    assert archive.to_lerobot(tmp_path / "orbax", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_the_archive_is_one_orbax_tree_of_which_every_value_counts(source, tmp_path):
    archive.from_lerobot(source, tmp_path / "orbax")
    params = tmp_path / "orbax" / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(params)
    checkpoint = load_saved_policy(source)
    expected = flatten_dict(read_params(checkpoint.tensors, checkpoint.config))
    assert flatten_dict(restored).keys() == expected.keys()
    for path, leaf in flatten_dict(restored).items():
        np.testing.assert_array_equal(leaf.astype(np.float32), expected[path])

    shutil.rmtree(params)
    changed = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), restored)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(params, changed)
    assert not archive.to_lerobot(tmp_path / "orbax", tmp_path / "back")
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    unused = {key for key in before if np.array_equal(before[key], after[key])}
    assert {key.rpartition(".layers.")[2] for key in unused if "lm_head" not in key} == {
        f"2.{name}.weight"
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    } | {"2.post_attention_layernorm.weight", "model.vlm_with_expert.vlm.model.text_model.norm.weight"}


def test_leaves_are_written_one_at_a_time(tmp_path):
    alive: list[weakref.ref] = []

    def read() -> np.ndarray:
        assert sum(ref() is not None for ref in alive) <= 1
        leaf = np.ones(1000, np.float32)
        alive.append(weakref.ref(leaf))
        return leaf

    save_tree(tmp_path / "tree", {(name,): LazyLeaf((1000,), np.dtype(np.float32), read) for name in "abcdefgh"})
    assert len(alive) == 8
    reader = TreeReader(tmp_path / "tree")
    assert list(reader.shapes) == [(name,) for name in "abcdefgh"]
    np.testing.assert_array_equal(reader.read(("d",)), np.ones(1000, np.float32))


def test_nothing_is_overwritten_or_left_half_written(source, tmp_path, capsys):
    out = tmp_path / "orbax"
    out.mkdir()
    (out / "mine").write_text("kept")
    assert main(["from-lerobot", str(source), str(out)]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    assert contents(out) == {"mine": b"kept"}

    archive.from_lerobot(source, tmp_path / "good")
    shutil.rmtree(tmp_path / "good" / "params" / "expert.norm.scale")
    assert main(["to-lerobot", str(tmp_path / "good"), str(tmp_path / "back")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if "back" in p.name]


def test_pickles_stay_behind(source, tmp_path, capsys):
    (source / "optimizer.pt").write_bytes(b"anything")
    assert main(["from-lerobot", str(source), str(tmp_path / "orbax")]) == 0
    assert "optimizer.pt" in capsys.readouterr().out
    assert not list((tmp_path / "orbax").rglob("*.pt"))


def test_other_folders_are_no_source(source, tmp_path, capsys):
    assert main(["to-lerobot", str(source), str(tmp_path / "back")]) == 1
    assert "neither a folder of `convert from-lerobot` nor a training run" in capsys.readouterr().err
    archive.from_lerobot(source, tmp_path / "orbax")
    assert main(["to-lerobot", str(tmp_path / "orbax"), str(tmp_path / "back"), "--ema"]) == 1
    assert "no training run" in capsys.readouterr().err


# ---- bad input


def truncate(source: Path) -> None:
    data = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(data[: len(data) // 2])


def to_pickle(source: Path) -> None:
    (source / WEIGHTS).rename(source / "pytorch_model.bin")


def reshape(source: Path) -> None:
    edit_tensors(source / WEIGHTS, lambda tensors: {**tensors, NORM: tensors[NORM][:-1], "other": tensors[NORM]})


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (lambda source: (source / WEIGHTS).unlink(), ["model.safetensors: no such file"]),
        (truncate, ["not a complete safetensors file"]),
        (to_pickle, ["pytorch_model.bin is pickled and never loaded"]),
        (reshape, [f"shape of {NORM}", "unexpected: other"]),
        (lambda source: edit_config(source, type="pi0"), ["`type` must be \"smolvla\", found 'pi0'"]),
        (lambda source: (source / "config.json").unlink(), ["config.json"]),
    ],
    ids=["missing", "truncated", "pickle", "shape", "type", "config"],
)
def test_bad_checkpoints_are_named_by_every_command(source, tmp_path, capsys, damage, messages):
    damage(source)
    before = contents(source)
    for command in (["inspect"], ["from-lerobot", str(tmp_path / "out")], ["doctor"]):
        assert main([command[0], str(source), *command[1:]]) == 1
        captured = capsys.readouterr()
        assert "error: " in captured.out + captured.err
        for message in messages:
            assert message in captured.out + captured.err
    assert contents(source) == before
    assert not (tmp_path / "out").exists()


# ---- inspect


def test_the_full_model_counts_what_lerobot_counts(tmp_path, monkeypatch):
    shapes = expected_tensors(network_of(PolicyConfig(), VLMConfig()))
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as file:  # sparse: no value is read
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    (tmp_path / "config.json").write_text(json.dumps(PolicyConfig().to_json()))
    monkeypatch.setattr(TensorFile, "sha256", "not read")
    found = inspect_checkpoint(tmp_path)
    assert (found.parameters, found.trainable, found.tensors) == (450_046_176, 99_880_992, 500)
    parts = {part.name: (part.tensors, part.parameters) for part in found.components}
    assert parts["vision tower"] == (197, 86_433_024)
    assert parts["expert"] == (145, 98_245_840)
    assert parts["projections"] == (10, 1_635_152)


def test_inspect_prints_components_config_and_statistics(source, capsys):
    assert main(["inspect", str(source), "--shapes"]) == 0
    text = capsys.readouterr().out
    for line in ("text model", "lm_expert.norm", "chunk_size: 6", "observation.state: MIN_MAX", "sha256 "):
        assert line in text
    assert main(["inspect", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tensors = load_file(source / WEIGHTS)
    assert found["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert found["tensors"] == len(tensors)
    dtypes = {part["name"]: part["dtypes"] for part in found["components"]}
    assert dtypes["vision tower"].keys() == {"float32"}
    assert dtypes["text model"].keys() == {"bfloat16"}
    state = found["statistics"]["policy_preprocessor.json"]["observation.state"]
    np.testing.assert_allclose(state["min"], load_file(source / PRE_STATS)["observation.state.min"])
    assert found["problems"] == []


def test_inspect_shows_what_it_can_of_bad_statistics(source, capsys):
    edit_tensors(source / PRE_STATS, lambda stats: {f"robot.{key}": value for key, value in stats.items()})
    assert main(["inspect", str(source)]) == 0
    text = capsys.readouterr().out
    assert "problem: policy_preprocessor.json: the statistics match no feature" in text
    assert "robot.observation.state: not used" in text
