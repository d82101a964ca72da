"""The two-way table: what is read is written back byte for byte, and nothing is missing, doubled or left over."""

import json
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxreflow.errors import CheckpointError, ConfigError
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.model.params import PROJECTIONS, count_parameters, merge_params, split_params, trainable_in_reflow
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.weights import (
    VISION,
    Entry,
    dead_tensors,
    expected_tensors,
    parameter_table,
    read_params,
    surplus_warning,
    write_params,
)
from jaxreflow.run.programs import trainable_by_policy
from jaxreflow.support.safetensors_file import TensorFile
from tests.tiny import VLM, tiny_policy

CONFIG = network_of(tiny_policy(), VLM)
ARRANGEMENTS = [
    {},
    {"attention_mode": "self_attn"},
    {"self_attn_every_n_layers": 3},
    {"self_attn_every_n_layers": -1, "num_expert_layers": 2},
    {"num_vlm_layers": 1},
]
EXPERT_Q = "model.vlm_with_expert.lm_expert.layers.3.self_attn.q_proj.weight"


def random_tensors(config: ModelConfig, dtypes=(np.float32, ml_dtypes.bfloat16, np.float16, np.float64)):
    rng = np.random.default_rng(0)
    shapes = expected_tensors(config).items()
    return {key: rng.normal(size=shape).astype(dtypes[i % len(dtypes)]) for i, (key, shape) in enumerate(shapes)}


def write(path: Path, tensors, metadata=None) -> TensorFile:
    save_file(tensors, path, metadata)
    return TensorFile(path)


@pytest.mark.parametrize("changes", ARRANGEMENTS)
def test_round_trip_is_byte_identical(tmp_path, changes):
    config = network_of(tiny_policy(**changes), VLM)
    file = write(tmp_path / "in.safetensors", random_tensors(config), {"format": "pt", "note": "kept"})
    write_params(tmp_path / "out.safetensors", file, read_params(file, config), config)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_what_wrappers_put_into_names_is_not_written(tmp_path):
    tensors = random_tensors(CONFIG)
    wrapped = {key.replace("model.", "model._orig_mod.", 1): tensor for key, tensor in tensors.items()}
    file = write(tmp_path / "in.safetensors", wrapped, {"format": "pt", "note": "kept"})
    write_params(tmp_path / "out.safetensors", file, read_params(file, CONFIG), CONFIG)
    found = TensorFile(tmp_path / "out.safetensors")
    assert found.metadata == file.metadata
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        assert tensor.tobytes() == tensors.pop(key).tobytes()
    assert not tensors


def test_what_was_not_trained_keeps_its_bits(tmp_path):
    file = write(tmp_path / "in.safetensors", random_tensors(CONFIG))
    trainable, _ = split_params(read_params(file, CONFIG), trainable_in_reflow)
    trained = jax.tree.map(lambda x: x + 1, trainable)
    write_params(tmp_path / "out.safetensors", file, trained, CONFIG)
    before, after = load_file(file.path), load_file(tmp_path / "out.safetensors")
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        if "lm_expert" in key or key.split(".")[1] in PROJECTIONS:
            np.testing.assert_allclose(
                after[key].astype(np.float64), tensor.astype(np.float64) + 1, rtol=1e-2, atol=1e-2
            )
        else:
            assert after[key].tobytes() == tensor.tobytes()


def test_a_leaf_comes_from_its_key(tmp_path):
    tensors = random_tensors(CONFIG, (np.float32,))
    params = read_params(write(tmp_path / "in.safetensors", tensors), CONFIG)
    np.testing.assert_array_equal(params["expert"]["layers"]["3"]["self_attn"]["q_proj"]["kernel"], tensors[EXPERT_Q].T)
    patch = tensors["model.vlm_with_expert.vlm.model.vision_model.embeddings.patch_embedding.weight"]
    np.testing.assert_array_equal(params["vision_model"]["patch_embedding"]["kernel"][2, 5, 1, 7], patch[7, 1, 2, 5])
    np.testing.assert_array_equal(params["state_proj"]["bias"], tensors["model.state_proj.bias"])


def test_the_full_model_has_its_published_counts():
    config = network_of(
        tiny_policy(max_state_dim=32, max_action_dim=32, num_vlm_layers=16, resize_imgs_with_padding=(512, 512)),
        VLMConfig(),
    )
    expected = expected_tensors(config)
    assert len(expected) == 500
    assert count_parameters(expected) == 450_046_176
    trained = [e for e in parameter_table(config) if trainable_by_policy(tiny_policy(), config)(e.path)]
    assert sum(int(np.prod(e.shape)) for e in trained) == 99_880_992
    assert {e.path for e in trained} == {e.path for e in parameter_table(config) if trainable_in_reflow(e.path)}
    # The tail of the last text layer (q, o, three of the MLP, a norm), the final norm and lm_head never run.
    assert count_parameters(dead_tensors(config)) == 2 * 960 * 960 + 3 * 960 * 2560 + 960 + 960 + 49280 * 960


def test_all_problems_are_listed_at_once(tmp_path):
    tensors = random_tensors(CONFIG)
    del tensors["model.state_proj.bias"]
    tensors["model.surplus"] = np.zeros(3, np.float32)
    tensors[EXPERT_Q] = np.zeros((2, 2), np.float32)
    tensors["normalize_inputs.buffer_observation_state.mean"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError) as error:
        read_params(write(tmp_path / "in.safetensors", tensors), CONFIG)
    message = str(error.value)
    assert "3 problems" in message
    assert "missing: model.state_proj.bias" in message
    assert "unexpected: model.surplus" in message
    assert f"shape of {EXPERT_Q}: expected [24, 18], found [2, 2]" in message


def test_what_nothing_reads_may_be_missing_or_too_much(tmp_path):
    """As in LeRobot, which loads weights with strict=False: the same numbers, and a student with the same tensors."""
    tensors = random_tensors(CONFIG)
    dead = set(dead_tensors(CONFIG))
    surplus = {VISION + "embeddings.position_ids": np.arange(9)[None]}
    pruned = {key: tensor for key, tensor in tensors.items() if key not in dead} | surplus
    file = write(tmp_path / "in.safetensors", pruned)
    params = read_params(file, CONFIG)
    whole = read_params(write(tmp_path / "whole.safetensors", tensors), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    (warning,) = surplus_warning(file, CONFIG)
    assert "in.safetensors holds " in warning
    assert "position_ids, for which the policy of config.json has no place" in warning
    assert surplus_warning(write(tmp_path / "whole.safetensors", tensors), CONFIG) == []
    write_params(tmp_path / "out.safetensors", file, params, CONFIG)
    assert load_file(tmp_path / "out.safetensors").keys() == pruned.keys()


def test_a_tensor_stored_twice_is_refused(tmp_path):
    tensors = random_tensors(CONFIG)
    tensors["model._orig_mod.state_proj.bias"] = tensors["model.state_proj.bias"]
    with pytest.raises(CheckpointError, match="stored twice"):
        write(tmp_path / "in.safetensors", tensors)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        TensorFile(path)
    save_file(random_tensors(CONFIG), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        TensorFile(path)
    path.write_bytes(struct.pack("<Q", 1 << 40) + json.dumps({}).encode())
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        TensorFile(path)


def test_a_header_is_bounded_before_it_is_read(tmp_path, monkeypatch):
    """A sparse file of 200 MB: its header would be within the format's 100 MB, and 1 GB in memory."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(200_000_000)
    monkeypatch.setattr("safetensors.safe_open", pytest.fail)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*at most 16777216 bytes, found 90000000"):
        TensorFile(path)
    for content in (b"", b"\0" * 7, struct.pack("<Q", 9) + b"{}      "):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file \(expected"):
            TensorFile(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
        '{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        '{"a": {"shape": [2]}}',
        "[1, 2]",
        '{"a": ' * 5000 + "1" + "}" * 5000,
    ],
)
def test_headers_that_do_not_fit_the_data_are_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        TensorFile(path)


@pytest.mark.parametrize("multiplier", [1e-300, 0.04, 0.625])
def test_an_expert_has_an_even_width(multiplier):
    with pytest.raises(ConfigError, match=r"expert_width_multiplier.*must give an even width"):
        network_of(tiny_policy(expert_width_multiplier=multiplier), VLM)


def test_shapes_of_any_size_take_no_memory():
    assert Entry(("x", "kernel"), "x.weight", (1 << 20, 1 << 30)).torch_shape == (1 << 30, 1 << 20)


def test_pickled_weights_are_named_and_never_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickled"):
        TensorFile(tmp_path / "model.safetensors")


def test_splitting_and_merging_is_lossless():
    tree = {"expert": {"norm": {"scale": 1}}, "state_proj": {"bias": 2}, "vision_model": {"x": 3}}
    trainable, frozen = split_params(tree, trainable_in_reflow)
    assert frozen == {"vision_model": {"x": 3}}
    assert merge_params(trainable, frozen) == tree


@pytest.mark.parametrize(
    ("changes", "trained", "not_trained"),
    [
        ({}, {"expert", "state_proj"}, {"text_model", "connector", "vision_model"}),
        ({"train_state_proj": False}, {"expert"}, {"state_proj"}),
        ({"train_expert_only": False}, {"text_model", "connector"}, {"vision_model"}),
        ({"train_expert_only": False, "freeze_vision_encoder": False}, {"vision_model"}, set()),
        ({"freeze_vision_encoder": False}, {"expert"}, {"vision_model", "connector"}),
    ],
)
def test_trainable_sets_of_lerobot(changes, trained, not_trained):
    policy = tiny_policy(**changes)
    is_trained = trainable_by_policy(policy, network_of(policy, VLM))
    assert all(is_trained((name, "x")) for name in trained)
    assert not any(is_trained((name, "x")) for name in not_trained)
    # LeRobot freezes the last text layer, all of it.
    last = str(policy.num_vlm_layers - 1)
    assert not is_trained(("text_model", "layers", last, "self_attn", "k_proj", "kernel"))
