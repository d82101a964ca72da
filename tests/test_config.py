"""LeRobot's config.json: what is honoured, carried and refused, and that the documents say so."""

import json
from pathlib import Path

import pytest

from jaxreflow.errors import ConfigError
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.config_fields import CARRIED_DEFAULTS, POLICY_FIELDS
from tests.make_config_table import config_table
from tests.tiny import tiny_policy

DOCS = Path(__file__).parents[1] / "docs"


def test_the_document_is_up_to_date():
    assert (DOCS / "config.md").read_text(encoding="utf-8") == config_table()


def test_every_field_of_the_config_is_in_the_table():
    fields = set(PolicyConfig.__dataclass_fields__) - {"carried"}
    assert fields <= {name for name, (use, _) in POLICY_FIELDS.items() if use == "honoured"}
    assert set(CARRIED_DEFAULTS) <= {name for name, (use, _) in POLICY_FIELDS.items() if use in ("carried", "refused")}


def test_a_config_survives_the_way_through_json():
    policy = tiny_policy(resize_imgs_with_padding=None, self_attn_every_n_layers=3)
    assert PolicyConfig.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_carried_fields_come_back_as_they_were():
    fields = {**tiny_policy().to_json(), "rtc_config": {"enabled": False, "x": [1]}, "compile_mode": "reduce-overhead"}
    written = PolicyConfig.from_json(fields).to_json()
    assert written["rtc_config"] == {"enabled": False, "x": [1]}
    assert written["compile_mode"] == "reduce-overhead"


def test_artefacts_of_an_old_fork_are_dropped_with_a_warning():
    fields = {**tiny_policy().to_json(), "use_reflow": True, "teacher_model_path": "x", "training_mode": "reflow"}
    with pytest.warns(UserWarning, match="teacher_model_path, training_mode, use_reflow"):
        written = PolicyConfig.from_json(fields).to_json()
    assert not {"use_reflow", "teacher_model_path", "training_mode"} & set(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "act"}, "only SmolVLA"),
        ({"new_field": 1}, "unknown field.*new_field"),
        ({"use_delta_joint_actions_aloha": True}, "use_delta_joint_actions_aloha"),
        ({"chunk_size": 2, "n_action_steps": 3}, "n_action_steps"),
        ({"chunk_size": "50"}, "chunk_size"),
        ({"chunk_size": 10**9}, "`chunk_size` must be at least 1 and at most 65536"),
        ({"num_steps": [[]]}, "`num_steps` must be a whole number"),
        ({"optimizer_lr": float("nan")}, "`optimizer_lr` must be a finite number"),
        ({"optimizer_betas": 0.9}, "`optimizer_betas` must be a list of 2"),
        ({"resize_imgs_with_padding": [32, "x"]}, "`resize_imgs_with_padding.1` must be a whole number"),
        ({"expert_width_multiplier": 1e308}, "expert_width_multiplier"),
        ({"output_features": {"action": {"type": "ACTION", "shape": []}}}, "shape of `action`"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [1e999]}}}, "action.shape"),
        ({"num_steps": 0}, "num_steps"),
        ({"normalization_mapping": {"STATE": "LOG"}}, "LOG"),
        ({"pad_language_to": "shortest"}, "pad_language_to"),
        ({"min_period": 0.0}, "min_period"),
        ({"max_action_dim": 3}, "`action` has 4 dimensions, more than the padded width 3"),
        ({"empty_cameras": 10**9}, "`empty_cameras` must be at least 0 and at most 65536"),
        ({"input_features": {"observation.state": {"shape": [5]}}}, "wrong form"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig.from_json({**tiny_policy().to_json(), **changes})


@pytest.mark.parametrize("shape", [[3, -1, -1], [3, 100_000, 100_000], [3, 0, 4], [], [3, 5]])
def test_a_declared_size_that_no_picture_has_is_not_believed(shape):
    """LeRobot never reads it."""
    config = PolicyConfig.from_json({"type": "smolvla", "input_features": {"cam": {"type": "VISUAL", "shape": shape}}})
    assert config.declared_size("cam") == (480, 640)


def test_a_policy_without_an_action_is_refused():
    with pytest.raises(ConfigError, match="output_features"):
        _ = tiny_policy(output_features={}).action_dim
