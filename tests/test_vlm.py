"""Where the VLM's config and tokenizer are looked for, and what is refused; no test touches the network."""

import json
import shutil
from pathlib import Path

import pytest

from jaxreflow.errors import CheckpointError, ConfigError, ProcessorError
from jaxreflow.model.config import VLMConfig
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.vlm import has_weights, load_tokenizer, load_vlm

VLM = Path(__file__).parent / "goldens" / "cross" / "vlm"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def vlm_copy(folder: Path, **changes) -> Path:
    shutil.copytree(VLM, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_default_model_is_built_in(tmp_path):
    found = load_vlm(PolicyConfig(), tmp_path)
    assert found.config == VLMConfig()
    assert found.directory is None


def test_order_of_places(tmp_path):
    argument = vlm_copy(tmp_path / "argument", text_config__hidden_size=64)
    checkpoint = tmp_path / "checkpoint"
    inside = vlm_copy(checkpoint / "vlm", text_config__hidden_size=48)
    vlm_copy(tmp_path / "named", text_config__hidden_size=80)
    policy = PolicyConfig(vlm_model_name="named")
    for place, args in ((argument, (checkpoint, argument)), (inside, (checkpoint,)), (Path("named"), (tmp_path,))):
        found = load_vlm(policy, *args)
        assert found.directory == place
        assert (
            found.config.text.hidden_size
            == json.loads((place / "config.json").read_text())["text_config"]["hidden_size"]
        )


def test_dimensions_are_read():
    config = load_vlm(PolicyConfig(), None, VLM).config
    stored = json.loads((VLM / "config.json").read_text())
    for part in ("text", "vision"):
        for name, value in vars(getattr(config, part)).items():
            assert stored[f"{part}_config"].get(name, value) == value, name
    assert config.scale_factor == stored["scale_factor"]


def test_special_tokens_come_from_the_tokenizer_where_they_are_needed():
    added = json.loads((VLM / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(index) for index, token in added.items()}
    config = load_vlm(PolicyConfig(add_image_special_tokens=True), None, VLM).config
    assert config.fake_image_token_id == ids["<fake_token_around_image>"]
    assert config.global_image_token_id == ids["<global-img>"]
    assert load_vlm(PolicyConfig(), None, VLM).config.fake_image_token_id == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "idefics3"}, "smolvlm.*idefics3"),
        ({"model_type": "never-heard-of"}, "config.json"),
        ({"text_config__hidden_act": "gelu"}, "text_config.hidden_act.*silu"),
        ({"vision_config__hidden_act": "relu"}, "vision_config.hidden_act"),
        ({"text_config__attention_bias": True}, "attention_bias"),
        ({"text_config": False}, "config.json: not a VLM's config"),
        ({"text_config__hidden_size": 10**12}, "text_config.hidden_size. must be a whole number from 1 to"),
        ({"text_config__num_key_value_heads": 3}, "num_attention_heads. must be a multiple of num_key_value_heads"),
        ({"vision_config__num_hidden_layers": 10**6}, "num_hidden_layers. must be a whole number from 1 to 64"),
        ({"vision_config__patch_size": [[]]}, "config.json"),
        ({"scale_factor": 0}, "scale_factor"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_vlm(PolicyConfig(), None, vlm_copy(tmp_path / "vlm", **changes))


def test_what_is_not_found_says_where_it_was_looked_for(tmp_path):
    policy = PolicyConfig(vlm_model_name="owner/model")
    with pytest.raises(CheckpointError, match=r"config.json.*checkpoint.*owner/model.*hub cache.*--vlm DIR"):
        load_vlm(policy, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(policy, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="no folder"):
        load_vlm(policy, None, "gone")
    with pytest.raises(CheckpointError, match="no hub name"):
        load_vlm(PolicyConfig(vlm_model_name="/elsewhere/on/another/machine"), None)


def test_the_tokenizer_may_lie_beside_the_pipeline(tmp_path):
    shutil.copytree(VLM, tmp_path / "checkpoint" / "tokenizer")
    policy = PolicyConfig(vlm_model_name="owner/model")
    tokenizer = load_tokenizer(policy, tmp_path / "checkpoint", tokenizer_name="tokenizer")
    assert tokenizer.pad_token_id == 2


def test_a_name_leads_to_no_folder_beside_the_checkpoints(tmp_path):
    shutil.copytree(VLM, tmp_path / "elsewhere" / "other")
    (tmp_path / "elsewhere" / "checkpoint").mkdir()
    policy = PolicyConfig(vlm_model_name="../other")
    with pytest.raises(CheckpointError, match="no hub name"):
        load_vlm(policy, tmp_path / "elsewhere" / "checkpoint")


def test_the_hub_cache_is_used_offline(tmp_path):
    snapshot = tmp_path / "cache" / "models--owner--model" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    shutil.copytree(VLM, snapshot)
    policy = PolicyConfig(vlm_model_name="owner/model")
    assert load_vlm(policy, None).config.text.hidden_size == 32
    assert load_tokenizer(policy, None, tokenizer_name="/elsewhere/tokenizer").pad_token_id == 2


def test_remote_code_and_damaged_tokenizers_are_refused(tmp_path):
    folder = vlm_copy(tmp_path / "vlm")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ProcessorError, match="tokenizer"):
        load_tokenizer(PolicyConfig(), None, folder)
    remote = vlm_copy(tmp_path / "remote", model_type="mine", auto_map={"AutoConfig": "code.Config"})
    (remote / "code.py").write_text("raise SystemExit('ran remote code')")
    with pytest.raises(ConfigError):
        load_vlm(PolicyConfig(), None, remote)


def test_names_that_no_folder_can_have_are_not_found(tmp_path):
    for name in ("x" * 10_000, "\0", "\ud800"):
        assert not has_weights(name)
        with pytest.raises(CheckpointError, match="no hub name"):
            load_vlm(PolicyConfig(vlm_model_name=name), tmp_path)


def test_weights_are_a_hub_name_or_safetensors(tmp_path):
    assert has_weights("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    assert not has_weights("/home/someone/vlm")
    folder = vlm_copy(tmp_path / "vlm")
    assert not has_weights(str(folder))
    (folder / "model.safetensors").touch()
    assert has_weights(str(folder))
