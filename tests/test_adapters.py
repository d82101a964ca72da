"""Weights as people have them: adapters of PEFT, shards, and names with a wrapper's prefix; each against numpy's own arithmetic."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from convert.doctor import examine
from jaxreflow import SmolVLAPolicy
from jaxreflow.errors import CheckpointError
from jaxreflow.policy.saved import WEIGHTS, load_saved_policy
from tests.checkpoint_edits import copy_checkpoint, edit_config, edit_tensors

Q_PROJ = "model.vlm_with_expert.lm_expert.layers.0.self_attn.q_proj"
TEXT_Q = "model.vlm_with_expert.vlm.model.text_model.layers.0.self_attn.q_proj"
PATCHES = "model.vlm_with_expert.vlm.model.vision_model.embeddings.patch_embedding"
TOKENS = "model.vlm_with_expert.vlm.model.text_model.embed_tokens"
STATE = "model.state_proj"
RNG = np.random.default_rng(0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return copy_checkpoint("mixed", tmp_path / "base")


def factors(shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    a = RNG.normal(size=(rank, *shape[1:])).astype(np.float32)
    return a, RNG.normal(size=(shape[0], rank, *[1] * (len(shape) - 2))).astype(np.float32)


def make_adapter(base: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    """As LeRobot 0.6 saves one: config and processors of the policy, no weights and no VLM."""
    out = copy_checkpoint("mixed", base.with_name("adapter"))
    (out / WEIGHTS).unlink()
    for path in (out / "vlm").iterdir():
        path.unlink()
    (out / "vlm").rmdir()
    edit_config(out, use_peft=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 8,
        "revision": None,
        **settings,
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"base_model.model.{key}": value for key, value in tensors.items()}, out / "adapter_model.safetensors")
    return out


def merged(folder: Path, key: str) -> np.ndarray:
    return load_saved_policy(folder).tensors.read(key)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 8 / 2),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 3}}, 3 / 2),
        ({"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"v_proj": 7}}, 8 / 2),
        ({"init_lora_weights": "gaussian", "use_dora": False, "arrow_config": None}, 8 / 2),
    ],
)
def test_a_linear_layer_is_merged_as_peft_does(base: Path, settings: dict[str, Any], scale: float) -> None:
    before = load_file(base / WEIGHTS)[f"{Q_PROJ}.weight"].astype(np.float32)
    edit_tensors(base / WEIGHTS, lambda t: {**t, f"{Q_PROJ}.weight": before})
    a, b = factors(before.shape, 2)
    adapter = make_adapter(base, {f"{Q_PROJ}.lora_A.weight": a, f"{Q_PROJ}.lora_B.weight": b}, **settings)
    found = merged(adapter, f"{Q_PROJ}.weight")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, before + scale * (b @ a), rtol=1e-6, atol=1e-6)


def test_convolutions_embeddings_whole_tensors_and_stored_dtypes(base: Path) -> None:
    before = load_file(base / WEIGHTS)
    conv, embedding = (before[f"{name}.weight"] for name in (PATCHES, TOKENS))
    conv_a, conv_b = factors(conv.shape, 3)
    token_a, token_b = factors((embedding.shape[1], embedding.shape[0]), 2)
    text_a, text_b = factors(before[f"{TEXT_Q}.weight"].shape, 2)
    whole = RNG.normal(size=before[f"{STATE}.weight"].shape).astype(np.float32)
    adapter = make_adapter(
        base,
        {
            f"{PATCHES}.lora_A.weight": conv_a,
            f"{PATCHES}.lora_B.weight": conv_b,
            f"{TOKENS}.lora_embedding_A": token_a,
            f"{TOKENS}.lora_embedding_B": token_b,
            f"{TEXT_Q}.lora_A.default.weight": text_a,
            f"{TEXT_Q}.lora_B.default.weight": text_b,
            f"{STATE}.modules_to_save.weight": whole,
        },
    )
    expected = {
        f"{PATCHES}.weight": conv.astype(np.float32) + 8 / 3 * np.einsum("orxy,rihw->oihw", conv_b, conv_a),
        f"{TOKENS}.weight": embedding.astype(np.float32) + 4 * (token_b @ token_a).T,
        f"{TEXT_Q}.weight": before[f"{TEXT_Q}.weight"].astype(np.float32) + 4 * (text_b @ text_a),
        f"{STATE}.weight": whole,
    }
    tensors = load_saved_policy(adapter).tensors
    for key, value in expected.items():
        found = tensors.read(key)
        assert found.dtype == before[key].dtype
        bound = 1e-5 if found.dtype == np.float32 else 2**-7
        np.testing.assert_allclose(found.astype(np.float32), value, rtol=bound, atol=bound * np.abs(value).max())
    assert before[f"{TEXT_Q}.weight"].dtype == ml_dtypes.bfloat16
    untouched = f"{STATE}.bias"
    np.testing.assert_array_equal(tensors.read(untouched), before[untouched])


def test_an_adapter_is_a_policy_for_every_command(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = load_file(base / WEIGHTS)[f"{Q_PROJ}.weight"].shape
    a, b = factors(shape, 2)
    adapter = make_adapter(base, {f"{Q_PROJ}.lora_A.weight": a, f"{Q_PROJ}.lora_B.weight": b})
    SmolVLAPolicy.from_pretrained(adapter).save_pretrained(tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / WEIGHTS)
    np.testing.assert_array_equal(whole[f"{Q_PROJ}.weight"], merged(adapter, f"{Q_PROJ}.weight"))
    assert whole.keys() == load_file(base / WEIGHTS).keys()
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["use_peft"] is False
    assert (tmp_path / "whole" / "vlm" / "config.json").is_file()
    found = [finding.what for finding in examine(adapter, measure=False) if finding.severity != "note"]
    assert found == []
    assert convert(["inspect", str(adapter)]) == 0
    assert convert(["from-lerobot", str(adapter), str(tmp_path / "orbax")]) == 0
    assert convert(["to-lerobot", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    capsys.readouterr()
    np.testing.assert_array_equal(load_file(tmp_path / "back" / WEIGHTS)[f"{Q_PROJ}.weight"], whole[f"{Q_PROJ}.weight"])
    SmolVLAPolicy.from_pretrained(tmp_path / "back")


def test_other_weights_are_another_identity(base: Path) -> None:
    shape = load_file(base / WEIGHTS)[f"{Q_PROJ}.weight"].shape
    a, b = factors(shape, 2)
    adapter = make_adapter(base, {f"{Q_PROJ}.lora_A.weight": a, f"{Q_PROJ}.lora_B.weight": b})
    first = load_saved_policy(adapter).tensors.sha256
    assert first != load_saved_policy(base).tensors.sha256
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    assert load_saved_policy(adapter).tensors.sha256 != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"peft_type": "LOHA"},
            "expected a LoRA adapter, found LOHA, which jaxreflow cannot merge; merge it in LeRobot",
        ),
        ({"use_dora": True}, r"found DoRA.*merge_and_unload\(\)\.save_pretrained\(OUT\); then copy .* policy_\* files"),
        (
            {"init_lora_weights": "pissa"},
            "found LoRA that pissa began, which changes the base's weights, which jaxreflow",
        ),
        ({"init_lora_weights": "pissa_niter_16"}, "found LoRA that pissa_niter_16 began"),
        ({"init_lora_weights": "olora"}, "found LoRA that olora began"),
        ({"alora_invocation_tokens": [1, 2]}, "found activated LoRA"),
        ({"lora_alpha": "much"}, "no settings of an adapter .*; copy or download it again"),
        ({"alpha_pattern": {"(": 3}}, "no settings of an adapter .*; copy or download it again"),
        ({"lora_bias": True}, "found LoRA with a bias of its own"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing; put the base's folder"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "the adapter's base cannot be had .*no such folder"),
    ],
)
def test_what_cannot_be_merged_is_named(base: Path, settings: dict[str, Any], message: str) -> None:
    adapter = make_adapter(base, {}, **settings)
    with pytest.raises(CheckpointError, match=message):
        load_saved_policy(adapter)


def test_an_adapter_whose_base_is_itself_is_named(base: Path) -> None:
    adapter = make_adapter(base, {}, base_model_name_or_path=str(base.with_name("adapter")))
    with pytest.raises(
        CheckpointError, match=r"the adapter's base cannot be had .*is the adapter itself.*; put the base"
    ):
        load_saved_policy(adapter)


def test_a_damaged_base_is_called_damaged(base: Path) -> None:
    adapter = make_adapter(base, {})
    (base / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"^[^(]*base/model\.safetensors: not a complete safetensors file"):
        load_saved_policy(adapter)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("model.no_such_layer", ((2, 4), (4, 2)), "adapts model.no_such_layer.weight, which its base .* does not have"),
        (Q_PROJ, ((2, 5), (4, 2)), "has another shape than its base's tensor"),
        (Q_PROJ, ((2, 5), None), "has only lora_A; copy or download it again"),
    ],
)
def test_an_adapter_of_another_base_is_named(
    base: Path, name: str, shapes: tuple[tuple[int, ...], tuple[int, ...] | None], message: str
) -> None:
    tensors = {
        f"{name}.lora_{part}.weight": np.zeros(shape, np.float32)
        for part, shape in zip("AB", shapes, strict=True)
        if shape is not None
    }
    with pytest.raises(CheckpointError, match=message):
        load_saved_policy(make_adapter(base, tensors))


def shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


@pytest.mark.slow
def test_shards_are_one_policy(base: Path, tmp_path: Path) -> None:
    before = load_file(base / WEIGHTS)
    shard(base)
    SmolVLAPolicy.from_pretrained(base).save_pretrained(tmp_path / "out")
    after = load_file(tmp_path / "out" / WEIGHTS)
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        np.testing.assert_array_equal(after[key], tensor)
    assert [finding.what for finding in examine(base, measure=False) if finding.severity != "note"] == []
    assert convert(["doctor", str(base), "--fix"]) == 0
    assert convert(["from-lerobot", str(base), str(tmp_path / "orbax")]) == 0
    assert convert(["to-lerobot", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    assert sorted(p.name for p in (tmp_path / "back").glob("model*")) == [WEIGHTS]
    np.testing.assert_array_equal(load_file(tmp_path / "back" / WEIGHTS)[f"{STATE}.weight"], before[f"{STATE}.weight"])


def test_what_fix_leaves_alone_is_repaired_in_one_file(base: Path, tmp_path: Path) -> None:
    edit_tensors(base / WEIGHTS, lambda t: {f"module.{key}": value for key, value in t.items()})
    shard(base)
    (found,) = [finding for finding in examine(base, measure=False) if finding.severity != "note"]
    assert found.do.startswith("take it out of the names: save it in one file by SmolVLAPolicy.from_pretrained(DIR)")
    SmolVLAPolicy.from_pretrained(base).save_pretrained(tmp_path / "new")
    assert [finding for finding in examine(tmp_path / "new", measure=False) if finding.severity != "note"] == []


def test_missing_and_hostile_shards_are_named(base: Path) -> None:
    shard(base)
    (base / "model-00002-of-00002.safetensors").rename(base / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: no such file"):
        load_saved_policy(base)
    (base / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere"}}))
    with pytest.raises(CheckpointError, match=r"index\.json: no list of shards .*expected names of files beside it"):
        load_saved_policy(base)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out(
    base: Path, tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(base / WEIGHTS)
    edit_tensors(base / WEIGHTS, lambda t: {prefix + key: value for key, value in t.items()})
    SmolVLAPolicy.from_pretrained(base).save_pretrained(tmp_path / "out")
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == before.keys()
    assert convert(["doctor", str(base), "--fix"]) == 0
    assert f"{prefix} taken out of {len(before)} names" in capsys.readouterr().out
    repaired = load_file(base / WEIGHTS)
    assert repaired.keys() == before.keys()
    np.testing.assert_array_equal(repaired[f"{STATE}.weight"], before[f"{STATE}.weight"])


def test_use_peft_beside_whole_weights_is_a_leftover(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(base, use_peft=True)
    SmolVLAPolicy.from_pretrained(base)
    (found,) = [finding.what for finding in examine(base, measure=False) if finding.severity == "error"]
    assert found == "config.json: use_peft is true, although the weights are whole"
    assert convert(["doctor", str(base), "--fix"]) == 0
    assert "set use_peft to false" in capsys.readouterr().out
    assert json.loads((base / "config.json").read_text())["use_peft"] is False


def test_a_file_in_float32_with_statistics_is_repaired_at_once(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dtypes are stored anew, which moves every tensor; the processor files are then made of the statistics where they are now."""
    statistics = load_file(base / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    for path in base.glob("policy_*"):
        path.unlink()

    def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        buffers = {
            f"{group}.buffer_{key.replace('.', '_')}.{name}": statistics[f"{key}.{name}"]
            for name in ("min", "max")
            for group, key in (
                ("normalize_inputs", "observation.state"), ("normalize_targets", "action"), ("unnormalize_outputs", "action"),
            )
        }  # fmt: skip
        return {**{key: value.astype(np.float32) for key, value in tensors.items()}, **buffers}

    edit_tensors(base / WEIGHTS, old)
    assert convert(["doctor", str(base), "--fix", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)["repaired"]
    assert [line.split(": ")[-1] for line in done] == [
        next(line.split(": ")[-1] for line in done if "stored as LeRobot loads them" in line),
        "the original is model.safetensors.bak",
        "wrote policy_preprocessor.json and policy_postprocessor.json with the statistics among the weights",
    ]
    made = load_saved_policy(base).processors.normalizer.stats["observation.state"]["min"]
    np.testing.assert_array_equal(made, statistics["observation.state.min"])
