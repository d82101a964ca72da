"""LoRA teachers as LeRobot 0.6 saves them with PEFT, against PEFT's own `merge_and_unload`."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxreflow.policy.saved import load_saved_policy
from tests.parity.lerobot_shim import PreTrainedConfig, SmolVLAPolicy, torch, upstream_warnings_ignored

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "tests" / "assets" / "teacher"
EXPERT = r"model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj"
SETTINGS: dict[str, dict[str, Any]] = {
    "LeRobot's default": {"target_modules": rf"({EXPERT}|model\.(state_proj|action_in_proj|action_out_proj))"},
    "rank-stabilised, patterns": {
        "target_modules": EXPERT, "use_rslora": True, "rank_pattern": {r"layers\.1\..*q_proj": 2},
        "alpha_pattern": {r"layers\.1\..*q_proj": 5},
    },
    "whole modules": {"target_modules": EXPERT, "modules_to_save": ["state_proj", "action_out_proj"]},
    "the tower's patches and the tokens": {"target_modules": ["patch_embedding", "embed_tokens", "down_proj"]},
    "biases": {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"},
}  # fmt: skip


def opened() -> SmolVLAPolicy:
    with upstream_warnings_ignored(), contextlib.redirect_stdout(sys.stderr):
        config = PreTrainedConfig.from_pretrained(TEACHER)
        config.device, config.vlm_model_name, config.load_vlm_weights = "cpu", str(TEACHER / "vlm"), False
        return SmolVLAPolicy.from_pretrained(TEACHER, config=config)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_merged_weights_equal_pefts(name: str, dtype: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model  # after the shim, which makes torchvision importable

    base = opened()
    if dtype == "float32":
        base.float()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    torch.manual_seed(0)
    with upstream_warnings_ignored():
        adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, **SETTINGS[name]))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        base.config.use_peft = True
        base.config._save_pretrained(tmp_path / "adapter")
        for path in TEACHER.glob("policy_*"):
            (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
        again = opened()
        if dtype == "float32":
            again.float()
        merged = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
    expected = {key: value.float().numpy() for key, value in merged.state_dict().items()}
    found = load_saved_policy(tmp_path / "adapter", vlm=TEACHER / "vlm").tensors
    before, changed = load_saved_policy(TEACHER).tensors, 0
    for key in found.keys:
        value = found.read(key).astype(np.float32)
        bound = 1e-6 if dtype == "float32" else 2**-8
        np.testing.assert_allclose(
            value, expected[key], rtol=bound, atol=bound * np.abs(expected[key]).max(), err_msg=key
        )
        changed += not np.array_equal(value, before.read(key).astype(np.float32))
    assert changed > 4
