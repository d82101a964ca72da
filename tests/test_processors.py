"""Normalisation, statistics and processor files, against hand values and LeRobot's files in `goldens`."""

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save

from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.policy import aloha
from jaxreflow.policy.config import Feature, PolicyConfig
from jaxreflow.policy.fitting import surprises
from jaxreflow.policy.normalization import normalize, unnormalize
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.processors import (
    PREPROCESSOR,
    Processors,
    create_processors,
    parse_processors,
    read_processor_files,
)
from jaxreflow.policy.saved import load_processors, read_policy_config
from jaxreflow.policy.statistics import parse_tensors, stats_in_weights, to_float32
from jaxreflow.policy.vlm import load_tokenizer
from jaxreflow.support.safetensors_file import TensorFile

GOLDENS = Path(__file__).parent / "goldens"
STATS = {
    "mean": np.float32([1, 2]),
    "std": np.float32([0.5, 4]),
    "min": np.float32([-1, 0]),
    "max": np.float32([3, 10]),
    "q01": np.float32([-0.5, 1]),
    "q99": np.float32([2, 9]),
    "q10": np.float32([0, 2]),
    "q90": np.float32([1, 6]),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDENS / "cross", tmp_path / "source"))


def small_policy(**fields) -> PolicyConfig:
    inputs = {
        "observation.images.top": Feature("VISUAL", (3, 4, 6)),
        "observation.images.wrist": Feature("VISUAL", (3, 4, 6)),
        "observation.state": Feature("STATE", (2,)),
    }
    return PolicyConfig(input_features=inputs, output_features={"action": Feature("ACTION", (2,))}, **fields)


def small_stats(**names) -> dict[str, dict[str, np.ndarray]]:
    return {key: {"mean": STATS["mean"], "std": STATS["std"]} | names for key in ("observation.state", "action")}


def small_transforms(policy: PolicyConfig | None = None, **stats) -> Transforms:
    policy = policy or small_policy()
    return Transforms(
        policy, create_processors(policy, small_stats(**stats)), load_tokenizer(policy, GOLDENS / "cross")
    )


def small_observation(**entries) -> dict:
    observation = {
        "observation.images.top": np.full((4, 6, 3), 51, np.uint8),
        "observation.images.wrist": np.zeros((4, 6, 3), np.uint8),
        "observation.state": np.float32([2, 2]),
        "task": "open the drawer",
    }
    return {key: value for key, value in (observation | entries).items() if value is not None}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("IDENTITY", [2, 8]),
        ("MEAN_STD", [2, 1.5]),
        ("MIN_MAX", [0.5, 0.6]),
        ("QUANTILES", [1, 0.75]),
        ("QUANTILE10", [3, 2]),
    ],
)
def test_modes(mode, expected):
    x = np.float32([[2, 8]])
    y = normalize(x, STATS, mode)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [expected], rtol=1e-6)
    np.testing.assert_allclose(unnormalize(y, STATS, mode), x, rtol=1e-6)


def test_eps_is_added_on_the_way_in_only():
    stats = {"mean": np.float32([0]), "std": np.float32([1])}
    assert normalize(np.float32([1]), stats, "MEAN_STD", eps=1.0) == 0.5
    assert unnormalize(np.float32([1]), stats, "MEAN_STD", eps=1.0) == 1.0


def test_aloha_maps_are_inverse_and_match_hand_values():
    x = np.full((2, 14), 0.5, np.float32)
    encoded = aloha.encode_actions(x)
    # 0.5 -> 0.95 rad -> (0.95 + 0.6213) / 2.1123
    np.testing.assert_allclose(
        encoded[0, [0, 1, 2, 8, 9, 6, 13]], [0.5, -0.5, -0.5, -0.5, -0.5, 0.743881, 0.743881], 1e-5
    )
    np.testing.assert_allclose(aloha.encode_actions_inv(encoded), x, atol=1e-6)
    # Linear 0.5 -> 0.03822 m -> arcsin of 0.38579 -> 0.39606 rad -> -0.00358.
    np.testing.assert_allclose(aloha.decode_state(x)[0, [1, 6]], [-0.5, -0.003582], atol=1e-5)
    np.testing.assert_array_equal(x, np.float32(0.5))
    with pytest.raises(ConfigError, match="14"):
        aloha.decode_state(x[:, :8])


def test_files_of_lerobot_come_back_byte_for_byte(source, tmp_path):
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    processors = parse_processors(read_processor_files(source))
    processors.save(tmp_path / "out")
    for name in (*[p.name for p in source.glob("policy_*")], "tokenizer/tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert processors.with_rename_map({}) is processors


def test_created_files_equal_those_of_lerobot(source):
    policy = read_policy_config(source)
    theirs = parse_processors(read_processor_files(source))
    ours = create_processors(policy, theirs.normalizer.stats)
    assert ours.files.keys() == theirs.files.keys()
    for name in theirs.files:
        if name.endswith(".json"):
            assert json.loads(ours.files[name]) == json.loads(theirs.files[name])


def test_changes_are_written_and_read_again(source, tmp_path):
    processors = parse_processors(read_processor_files(source))
    stats = {key: {"mean": np.zeros(6), "std": np.full(6, 2.0)} for key in ("observation.state", "action")}
    processors.with_statistics(stats).with_rename_map({"front": "observation.images.top"}).save(tmp_path)
    again = parse_processors(read_processor_files(tmp_path))
    assert again.rename_map == {"front": "observation.images.top"}
    np.testing.assert_array_equal(again.unnormalizer.unnormalize("action", np.ones(6, np.float32)), 2)
    np.testing.assert_array_equal(again.normalizer.stats["observation.state"]["std"], np.full(6, 2, np.float32))
    assert read_processor_files(source) == processors.files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.append({"registry_name": "relative_actions_processor"}), "relative_actions_processor"),
        (lambda steps: steps.append({"class": "my.Step"}), "my.Step"),
        (lambda steps: steps.pop(3), "tokenizer_processor"),
        (lambda steps: steps.insert(4, steps.pop(2)), "order"),
        (lambda steps: steps.insert(1, steps.pop(0)) or steps.insert(0, steps.pop(2)), "order"),
        (lambda steps: steps[4]["config"].update(float_dtype="bfloat16"), "float_dtype"),
        (lambda steps: steps[5]["config"]["norm_map"].update(STATE="ZSCORE"), "ZSCORE"),
        (lambda steps: steps[5]["config"].pop("features"), "features"),
        (lambda steps: steps[5].update(state_file="../secret"), "state_file"),
        (lambda steps: steps[5].update(state_file=".."), "state_file"),
        (lambda steps: steps[5].update(state_file="/etc/passwd"), "state_file"),
        (lambda steps: steps[5].update(state_file="config.json"), "state_file"),
        (lambda steps: steps[5].update(state_file="model.safetensors"), "state_file"),
        (lambda steps: steps[5].update(state_file=["x"]), "state_file"),
        (lambda steps: steps[5].update(config=64), "not a pipeline"),
        (lambda steps: steps[5]["config"].update(eps=float("nan")), "eps"),
        (lambda steps: steps[3]["config"].update(max_length=10**9), "max_length"),
        (lambda steps: steps[3]["config"].update(max_length=float("inf")), "max_length"),
        (lambda steps: steps[3]["config"].update(tokenizer_name=7), "tokenizer_name"),
        (lambda steps: steps[0]["config"].update(rename_map={"a": 1}), "rename_map"),
        (lambda steps: steps[5].update(state_file="gone.safetensors"), "gone.safetensors"),
    ],
)
def test_pipelines_that_cannot_be_honoured_are_refused_by_name(source, change, message):
    pipeline = json.loads((source / PREPROCESSOR).read_text())
    change(pipeline["steps"])
    (source / PREPROCESSOR).write_text(json.dumps(pipeline))
    with pytest.raises(ProcessorError, match=message):
        parse_processors(read_processor_files(source))


def test_files_of_any_size_are_not_read(source):
    state = next(source.glob("policy_preprocessor_step*.safetensors"))
    with state.open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ProcessorError, match=rf"{state.name} has 1099511627776 bytes, expected at most"):
        read_processor_files(source)


def test_damaged_and_missing_files(source):
    (source / "policy_postprocessor.json").write_text("{")
    with pytest.raises(ProcessorError, match="policy_postprocessor"):
        read_processor_files(source)
    (source / "policy_postprocessor.json").unlink()
    with pytest.raises(ProcessorError, match="policy_postprocessor"):
        read_processor_files(source)


def load(source: Path, **kwargs) -> Processors:
    return load_processors(source, read_policy_config(source), TensorFile(source / "model.safetensors"), **kwargs)


def rewrite_stats(source: Path, change) -> None:
    processors = parse_processors(read_processor_files(source))
    stats = {key: dict(group) for key, group in processors.normalizer.stats.items()}
    processors.with_statistics(change(stats) or stats).save(source)


def test_statistics_that_match_no_feature_are_refused(source, tmp_path):
    rewrite_stats(source, lambda stats: {f"so100.{key}": group for key, group in stats.items()})
    match = r"no feature.*`observation.state`, `action`.*so100.action.*: choose "
    with pytest.raises(ProcessorError, match=match + r"`--stats-from FILE` \(a stats"):
        load(source)
    with pytest.raises(ProcessorError, match=match + r"`--stats-from dataset` .* or `--stats-from FILE` \(a stats"):
        load(source, dataset_stats={"qpos": {"mean": [1.0]}})
    with pytest.raises(
        ProcessorError, match=r"found `qpos`.*: choose `--stats-from policy` .* or `--stats-from FILE` \("
    ):
        load(source, stats_from="dataset", dataset_stats={"qpos": {"mean": [1.0]}})
    stats = {key: {"mean": [1.0] * 6, "std": [2.0] * 6} for key in ("observation.state", "action")}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    (tmp_path / "stats.safetensors").write_bytes(
        save({f"{k}.{n}": np.float32(v) for k, group in stats.items() for n, v in group.items()})
    )
    expected = np.full(6, 3, np.float32)
    for kwargs in (
        {"stats_from": tmp_path / "stats.json"},
        {"stats_from": tmp_path / "stats.safetensors"},
        {"stats_from": "dataset", "dataset_stats": stats},
        {
            "stats_from": "dataset",
            "dataset_stats": {"qpos" if key == "observation.state" else key: group for key, group in stats.items()},
            "rename_map": {"qpos": "observation.state"},
        },
    ):
        processors = load(source, **kwargs)
        np.testing.assert_array_equal(processors.unnormalizer.unnormalize("action", np.ones(6, np.float32)), expected)
    with pytest.raises(ProcessorError, match=r"meta/stats\.json"):
        load(source, stats_from="dataset")
    with pytest.raises(ProcessorError, match="no such file"):
        load(source, stats_from=tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("observation.state") and None, "not every feature.*`observation.state`"),
        (lambda s: s["action"].pop("std") is None or None, "`action`.*`std`"),
        (lambda s: s["action"].update(mean=np.zeros(5, np.float32)), r"`action.mean`.*\[6\].*\[5\]"),
        (
            lambda s: s["action"].update(std=np.float32([1, -1, 1, 1, 0, 1])),
            r"std must not be negative.*dimension\(s\) 1;",
        ),
        (
            lambda s: s["observation.state"].update(mean=np.zeros(4, np.float32)),
            r"state.mean`.*\[6\], as its other.*\[4\]",
        ),
        (lambda s: s["action"].update(mean=np.full(6, np.inf, np.float32)), "not finite"),
    ],
)
def test_unsound_statistics_are_refused(source, change, message):
    rewrite_stats(source, change)
    with pytest.raises(ProcessorError, match=message):
        load(source)


@pytest.mark.parametrize(
    ("mode", "statistics", "held"),
    [
        ("MEAN_STD", {"mean": [1, 3], "std": [2, 0]}, 3),
        ("MIN_MAX", {"min": [0, 4], "max": [1, 4]}, 4),
        ("QUANTILES", {"q01": [0, 5], "q99": [1, 5]}, 5),
        ("QUANTILE10", {"q10": [0, 6], "q90": [1, 6]}, 6),
    ],
)
def test_a_dimension_without_spread_is_held_where_lerobot_holds_it(mode, statistics, held):
    """LeRobot: x * std + mean, or (x + 1) / 2 * eps + low; and (x - mean) / (std + eps), or 2 * (x - low) / eps - 1."""
    policy = small_policy(normalization_mapping={"STATE": mode, "ACTION": mode})
    group = {name: np.float32(value) for name, value in statistics.items()}
    processors = create_processors(policy, dict.fromkeys(("observation.state", "action"), group))
    processors.check(policy)
    assert [text.split(" is zero in")[1].split(".")[0] for text in surprises(policy, processors)] == [
        " dimension(s) 1"
    ] * 2
    chunk = processors.unnormalizer.unnormalize("action", np.float32([[0.3, -7], [0.1, 9]]))
    np.testing.assert_allclose(chunk[:, 1], held, rtol=1e-6)
    state = processors.normalizer.normalize("observation.state", np.float32([[1, held], [1, held + 1]]))
    expected = [0, 1e8] if mode == "MEAN_STD" else [-1, 2e8]
    np.testing.assert_allclose(state[:, 1], expected, rtol=1e-6)


def test_a_dimension_without_spread_needs_eps():
    policy = small_policy()
    group = {"mean": np.float32([1, 3]), "std": np.float32([2, 0])}
    processors = create_processors(policy, dict.fromkeys(("observation.state", "action"), group))
    without = dataclasses.replace(processors, normalizer=dataclasses.replace(processors.normalizer, eps=0.0))
    with pytest.raises(ProcessorError, match=r"`eps` is 0.*set `eps` of the normaliser to LeRobot's 1e-8"):
        without.check(policy)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)])
def test_the_form_of_a_vectors_statistics_does_not_matter(shape):
    stats = {
        key: {"mean": np.reshape([1.0, 2.0], shape).tolist(), "std": np.reshape([0.5, 4.0], shape).tolist()}
        for key in ("observation.state", "action")
    }
    processors = create_processors(small_policy(), to_float32(stats))
    processors.check(small_policy())
    np.testing.assert_allclose(processors.normalizer.normalize("action", np.float32([[2, 8]])), [[2, 1.5]], rtol=1e-6)
    (state,) = (
        content for name, content in processors.files.items() if name.startswith("policy_pre") and "step" in name
    )
    assert load_tensors(state)["action.mean"].shape == (2,)


def test_statistics_in_half_precision_are_no_damage():
    """As LeRobot reads them after `policy.to(torch.bfloat16)` or a tool that makes files smaller."""
    values = {"action.mean": np.float32([1.0, 2.5, -0.375]).astype(ml_dtypes.bfloat16), "action.count": np.int64([7])}
    found = parse_tensors(save(values), "stats.safetensors")["action"]
    np.testing.assert_array_equal(found["mean"], np.float32([1.0, 2.5, -0.375]))
    assert found["mean"].dtype == found["count"].dtype == np.float32
    small = save({"action.mean": np.zeros(3, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(
        ProcessorError, match=r"stats\.safetensors: action\.mean is stored as F8_E4M3; expected one of F64"
    ):
        parse_tensors(small, "stats.safetensors")


def test_one_number_holds_for_all_dimensions_as_in_lerobot():
    policy = small_policy()
    one = {"mean": np.float32([1]), "std": np.float32([2])}
    processors = create_processors(policy, dict.fromkeys(("observation.state", "action"), one))
    processors.check(policy)
    np.testing.assert_array_equal(processors.unnormalizer.unnormalize("action", np.float32([[1, 2]])), [[3, 5]])
    transforms = Transforms(policy, processors, load_tokenizer(policy, GOLDENS / "cross"))
    prepared = transforms.prepare(small_observation(**{"observation.state": np.float32([3, 5, 7])}))
    np.testing.assert_allclose(prepared.state[0, :4], [1, 2, 3, 0], rtol=1e-6)


def test_old_checkpoints_fall_back_to_buffers_then_to_the_dataset(source):
    stats = parse_processors(read_processor_files(source)).normalizer.stats
    for path in source.glob("policy_*"):
        path.unlink()
    with pytest.raises(ProcessorError, match="neither processor files"):
        load(source)
    from_dataset = load(source, dataset_stats=stats)
    file = TensorFile(source / "model.safetensors")
    tensors = {key: file.read(key) for key in file.keys}
    for name in ("mean", "std"):
        tensors[f"normalize_inputs.buffer_observation_state.{name}"] = stats["observation.state"][name]
        tensors[f"normalize_targets.buffer_action.{name}"] = stats["action"][name]
        tensors[f"unnormalize_outputs.buffer_action.{name}"] = stats["action"][name]
    (source / "model.safetensors").write_bytes(save(tensors))
    from_buffers = load(source)
    for key in ("observation.state", "action"):
        for name in ("mean", "std"):
            np.testing.assert_array_equal(from_buffers.normalizer.stats[key][name], stats[key][name])
            np.testing.assert_array_equal(from_dataset.unnormalizer.stats[key][name], stats[key][name])


def test_a_buffer_of_no_feature_keeps_its_name():
    found = stats_in_weights(
        {"normalize_inputs.so100_buffer_observation_state.mean": np.zeros(2)}, ["observation.state"]
    )
    assert list(found) == ["so100_buffer_observation_state"]
