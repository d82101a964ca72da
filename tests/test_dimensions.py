"""What a policy's files declare of state, actions and cameras, against what LeRobot goes by; expected values by its formulas."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.__main__ import main as convert
from jaxreflow import SmolVLAPolicy
from jaxreflow.data.lerobot import LeRobotDataset, load_dataset
from jaxreflow.errors import ConfigError, DatasetError, ProcessorError
from jaxreflow.policy.config import Feature, PolicyConfig
from jaxreflow.policy.processors import POSTPROCESSOR, PREPROCESSOR
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained
from jaxreflow.run.config import DatasetConfig, FinetuneConfig, PolicySource, ReflowConfig, TeacherSource
from jaxreflow.run.data import split_data
from jaxreflow.run.start import check_action_names, open_initial_policy
from tests.checkpoint_edits import PRE_STATS, copy_checkpoint, edit_tensors
from tests.lerobot_fixtures import METAWORLD, actions, write_v30
from tests.tiny import tiny_policy
from tests.tiny_policy import make_vlm

POST_STATS = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
STATE, ACTION = "observation.state", "action"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A policy with states and actions of six dimensions, normalised by mean and std."""
    return copy_checkpoint("cross", tmp_path / "policy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """States of two dimensions, actions of three, one camera; statistics of all frames."""
    root = write_v30(tmp_path_factory.mktemp("data") / "data")
    frames = np.arange(18.0)
    columns = {STATE: np.stack([frames, -frames], axis=-1), ACTION: actions(range(18))}
    stats = {
        key: {name: getattr(x, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")} | {"count": [18]}
        for key, x in columns.items()
    }
    (root / "meta/stats.json").write_text(json.dumps(stats))
    return LeRobotDataset.open(root)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2))


def declare_state(policy: Path, shape: list[int]) -> None:
    """What LeRobot writes when it fine-tunes a policy of another robot: statistics of the new one, the old one's shape."""
    edit_json(policy / "config.json", lambda c: c["input_features"][STATE].update(shape=shape))
    edit_json(policy / PREPROCESSOR, lambda p: p["steps"][5]["config"]["features"][STATE].update(shape=shape))


def declared(policy: Path) -> list[list[int]]:
    config = json.loads((policy / "config.json").read_text())
    features = json.loads((policy / PREPROCESSOR).read_text())["steps"][5]["config"]["features"]
    return [config["input_features"][STATE]["shape"], features[STATE]["shape"]]


def open_policy(path: Path) -> SavedPolicy:
    with pytest.warns(
        UserWarning, match=r"declares `observation.state` with \d+ .* the statistics have 6\. LeRobot never"
    ):
        return load_saved_policy(path)


@pytest.mark.parametrize("width", [1, 7, 14, 32, 64])
def test_the_statistics_say_how_wide_a_state_is(source, tmp_path, width):
    original = load_saved_policy(source)
    declare_state(source, [width])
    saved = open_policy(source)
    assert saved.policy.state_dim == 6
    state = np.linspace(-1, 1, 6, dtype=np.float32)
    stats = load_file(source / PRE_STATS)
    expected = (state - stats[f"{STATE}.mean"]) / (stats[f"{STATE}.std"] + np.float32(1e-8))
    np.testing.assert_allclose(saved.load_transforms().normalize_state(state), expected, rtol=1e-6)
    save_pretrained(tmp_path / "out", saved, original.load_params())
    assert declared(tmp_path / "out") == [[6], [6]]
    assert load_saved_policy(tmp_path / "out").policy == original.policy


def test_a_policy_acts_alike_whatever_state_is_declared(source):
    observation = {
        **{key: np.full((24, 32, 3), 90, np.uint8) for key in load_saved_policy(source).policy.camera_keys},
        STATE: np.linspace(-1, 1, 6),
        "task": "push",
    }
    right = SmolVLAPolicy.from_pretrained(source).predict_action_chunk(observation, num_steps=1)
    declare_state(source, [4])
    with pytest.warns(UserWarning, match="the statistics have 6"):
        policy = SmolVLAPolicy.from_pretrained(source)
    np.testing.assert_array_equal(policy.predict_action_chunk(observation, num_steps=1), right)


def test_doctor_corrects_the_declared_state(source, capsys):
    sound = [(source / name).read_bytes() for name in ("config.json", PREPROCESSOR)]
    declare_state(source, [4])
    wrong = (source / "config.json").read_bytes()
    assert convert(["doctor", str(source)]) == 1
    assert "declares `observation.state` with 4 dimension(s), the statistics have 6" in capsys.readouterr().out
    assert convert(["doctor", str(source), "--fix"]) == 0
    out = capsys.readouterr().out
    assert "config.json: the shape of observation.state set to [6], as in the statistics" in out
    assert "policy_preprocessor.json: the original is policy_preprocessor.json.bak" in out
    assert declared(source) == [[6], [6]]
    assert (source / "config.json.bak").read_bytes() == wrong
    for name, content in zip(("config.json", PREPROCESSOR), sound, strict=True):
        assert json.loads((source / name).read_text()) == json.loads(content)
    load_saved_policy(source)


def test_a_state_that_is_not_declared_is_as_wide_as_its_statistics(source):
    """LeRobot normalises what the preprocessor lists, whatever config.json has."""
    sound = json.loads((source / "config.json").read_text())
    edit_json(source / "config.json", lambda c: c["input_features"].pop(STATE))
    with pytest.warns(UserWarning, match=r"with no dimension\(s\), the statistics have 6"):
        saved = load_saved_policy(source)
    assert saved.load_transforms().state_dim == saved.policy.state_dim == 6
    assert convert(["doctor", str(source), "--fix"]) == 0
    assert json.loads((source / "config.json").read_text()) == sound
    edit_json(source / "config.json", lambda c: c["input_features"].pop(STATE))
    edit_json(source / PREPROCESSOR, lambda p: p["steps"][5]["config"]["features"].pop(STATE))
    assert load_saved_policy(source).load_transforms().state_dim is None


def test_inspect_names_a_misdeclared_state(source, capsys):
    declare_state(source, [4])
    convert(["inspect", str(source)])
    assert "declares `observation.state` with 4 dimension(s), the statistics have 6" in capsys.readouterr().out


def test_a_state_wider_than_its_padding_is_refused(source):
    wide = {f"{STATE}.{name}": np.ones(40, np.float32) for name in ("mean", "std")}
    edit_tensors(source / PRE_STATS, lambda t: {**t, **wide})
    with pytest.raises(ProcessorError, match=r"`observation.state` has 40 dimensions, more than the padded width 32"):
        load_saved_policy(source)


def test_an_actions_declared_width_counts_as_in_lerobot(source):
    edit_json(source / "config.json", lambda c: c["output_features"][ACTION].update(shape=[4]))
    with pytest.raises(ProcessorError, match=r"`action.\w+` must have shape \[4\], as the feature in config.json"):
        load_saved_policy(source)


@pytest.mark.parametrize("shape", [[3, 24, 40], [24, 40, 3], [24, 40, 1]])
def test_a_cameras_axes_may_be_declared_in_any_order(shape):
    policy = tiny_policy(input_features={"observation.images.top": Feature("VISUAL", tuple(shape))})
    assert policy.declared_size("observation.images.top") == (24, 40)


def test_a_shape_that_nobody_reads_is_no_error(source):
    edit_json(
        source / "config.json",
        lambda c: [f.update(shape=[]) for f in c["input_features"].values() if f["type"] == "VISUAL"],
    )
    policy = load_saved_policy(source).policy
    assert {policy.declared_size(key) for key in policy.camera_keys} == {(480, 640)}


def test_lerobots_empty_cameras_are_there_without_being_listed():
    policy = tiny_policy(empty_cameras=2)
    own = tiny_policy().camera_keys
    assert policy.camera_keys == own
    assert policy.visual_keys == (*own, "observation.images.empty_camera_0", "observation.images.empty_camera_1")
    again = PolicyConfig.from_json(policy.to_json())
    assert again.visual_keys == policy.visual_keys


def finetune(policy: Path, **fields: object) -> FinetuneConfig:
    own = {name: fields.pop(name) for name in list(fields) if name in PolicySource.__dataclass_fields__}
    return FinetuneConfig(policy=PolicySource(path=str(policy), **own), dataset=DatasetConfig(holdout=0.0), **fields)


def start(config: FinetuneConfig | ReflowConfig, dataset: LeRobotDataset, folder: Path) -> SavedPolicy:
    """The policy as a run starts with it, and its first example."""
    saved = open_initial_policy(config, dataset, folder)
    split_data(dataset, saved.policy, saved.load_transforms(), config)
    return saved


CAMERA = {"observation.images.front": "observation.images.top"}


def test_finetune_takes_the_datasets_statistics_and_dimensions(source, dataset, tmp_path, caplog):
    """As in LeRobot; the student's files say so."""
    assert load_saved_policy(source).policy.camera_keys[0] == CAMERA["observation.images.front"]
    saved = start(finetune(source, rename_map=CAMERA), dataset, tmp_path)
    assert (saved.policy.state_dim, saved.policy.action_dim) == (2, 3)
    assert "`action` of the policy has 6 dimension(s), now 3 as in the dataset" in caplog.text
    recorded = actions(range(18))
    expected = (recorded - recorded.mean(axis=0)) / recorded.std(axis=0)
    np.testing.assert_allclose(saved.load_transforms().normalize_action(recorded), expected, rtol=1e-4)
    save_pretrained(tmp_path / "out", saved, load_saved_policy(source).load_params())
    assert declared(tmp_path / "out") == [[2], [2]]
    again = load_saved_policy(tmp_path / "out")
    assert (again.policy.action_dim, again.processors.unnormalizer.features[ACTION].shape) == (3, (3,))
    assert again.load_transforms().unnormalize_action(np.zeros((1, 32), np.float32)).shape == (1, 3)


def test_finetune_keeps_the_policys_statistics_where_it_is_told_to():
    teacher = Path(__file__).parent / "assets" / "teacher"
    dataset = load_dataset(str(METAWORLD))
    own = load_file(teacher / POST_STATS)["action.mean"]
    assert FinetuneConfig().stats_from == "dataset"
    assert ReflowConfig().stats_from == "policy"
    for config in (finetune(teacher, stats_from="policy"), ReflowConfig(teacher=TeacherSource(path=str(teacher)))):
        saved = open_initial_policy(config, dataset, teacher)
        np.testing.assert_array_equal(saved.processors.unnormalizer.stats[ACTION]["mean"], own)


def test_reflow_refuses_a_dataset_of_another_width_than_the_statistics(source, dataset, tmp_path):
    config = ReflowConfig(teacher=TeacherSource(path=str(source)), rename_map=CAMERA)
    with pytest.raises(DatasetError, match=r"'observation.state' has shape \[2\], .* has \[6\] in its statistics"):
        start(config, dataset, tmp_path)


def test_the_dataset_says_how_wide_a_state_is_that_nobody_normalises(source, dataset, tmp_path):
    for name in ("config.json", PREPROCESSOR):
        edit_json(source / name, lambda c: (c.get("steps", [c] * 6)[5].get("config") or c).update(norm_map_of(c)))
    edit_json(source / "config.json", lambda c: c["output_features"][ACTION].update(shape=[3]))
    three = {f"{ACTION}.{name}": np.ones(3, np.float32) for name in ("mean", "std", "min", "max")}
    for name in (PRE_STATS, POST_STATS):
        edit_tensors(source / name, lambda t: {**{k: v for k, v in t.items() if not k.startswith(ACTION)}, **three})
    config = ReflowConfig(teacher=TeacherSource(path=str(source)), rename_map=CAMERA)
    assert start(config, dataset, tmp_path).policy.state_dim == 2


def norm_map_of(content: dict) -> dict:
    name = "norm_map" if "steps" in content else "normalization_mapping"
    return {name: {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MEAN_STD"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk_size": 3, "n_action_steps": 2},
        {"empty_cameras": 2},
        {"resize_imgs_with_padding": (16, 16)},
        {"min_period": 0.01},
        {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "IDENTITY"}},
    ],
)
def test_what_no_tensor_depends_on_is_free_in_finetune(source, dataset, tmp_path, fields):
    saved = start(finetune(source, rename_map=CAMERA, **fields), dataset, tmp_path)
    for name, value in fields.items():
        assert getattr(saved.policy, name) == value
        assert getattr(saved.config, name, value) == value
    assert (
        len(saved.config.visual_keys) == len(load_saved_policy(source).policy.camera_keys) + saved.policy.empty_cameras
    )
    assert saved.processors.normalizer.norm_map == saved.policy.normalization_mapping
    assert saved.processors.unnormalizer.norm_map == saved.policy.normalization_mapping


@pytest.mark.parametrize("fields", [{"max_state_dim": 64}, {"num_vlm_layers": 1}, {"self_attn_every_n_layers": 3}])
def test_what_tensors_depend_on_is_fixed_in_finetune(source, dataset, tmp_path, fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=f"--policy.{name.replace('_', '-')} differs from"):
        start(finetune(source, rename_map=CAMERA, **fields), dataset, tmp_path)


def test_the_length_of_instructions_is_the_preprocessors_as_in_lerobot(source, dataset, tmp_path, caplog):
    saved = start(finetune(source, rename_map=CAMERA, tokenizer_max_length=7), dataset, tmp_path)
    assert saved.policy.tokenizer_max_length == 7
    assert saved.processors.tokenizer.max_length == load_saved_policy(source).processors.tokenizer.max_length
    assert "--policy.tokenizer-max-length goes into config.json only" in caplog.text


def test_an_extra_camera_of_the_dataset_is_left_out(source, dataset, tmp_path, caplog):
    """With the checkpoint's own map as with the command line's."""
    other = {"elsewhere": "observation.images.top"}
    edit_json(source / PREPROCESSOR, lambda p: p["steps"][0]["config"].update(rename_map=other))
    with pytest.raises(DatasetError, match="add --rename-map") as error:
        start(finetune(source), dataset, tmp_path)
    proposal = json.loads(re.search(r"add --rename-map '(.*?)'", str(error.value))[1])
    assert proposal == CAMERA
    with caplog.at_level(logging.WARNING):
        assert start(finetune(source, rename_map=proposal), dataset, tmp_path).processors.rename_map == CAMERA


def test_action_names_are_compared_with_those_that_a_run_recorded(source, caplog):
    saved = load_saved_policy(source)
    check_action_names(saved, ["lift", "turn"], distils=True)
    (source / "train_config.json").write_text(json.dumps({"action_names": ["lift", "turn"]}))
    check_action_names(saved, ["lift", "turn"], distils=True)
    check_action_names(saved, ["0", "1"], distils=True)
    assert not caplog.text
    with pytest.raises(DatasetError, match=r"named lift, turn, the dataset has turn, lift, the same in another order"):
        check_action_names(saved, ["turn", "lift"], distils=True)
    for names, distils in ((["turn", "lift"], False), (["lift", "grip"], True)):
        caplog.clear()
        check_action_names(saved, names, distils=distils)
        assert f"named lift, turn, the dataset has {', '.join(names)}; see that" in caplog.text


def test_a_dataset_without_statistics_is_told_the_ways_out(source, dataset, tmp_path):
    bare = LeRobotDataset.open(bare_of(dataset, tmp_path))
    with pytest.raises(ProcessorError, match=r"--stats-from dataset: .* or `policy` for those that the policy brings"):
        start(finetune(source, rename_map=CAMERA), bare, tmp_path)


def test_a_locked_joint_is_trained_on_with_a_warning(source, dataset, tmp_path):
    """By a policy of another robot, and by a new one."""
    stats = json.loads((dataset.root / "meta/stats.json").read_text())
    stats[ACTION]["std"][1] = 0.0
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    file = str(tmp_path / "stats.json")
    config = finetune(source, rename_map=CAMERA, stats_from=file)
    with pytest.warns(
        UserWarning, match=rf"{POSTPROCESSOR}: `action`: std is zero in dimension\(s\) 1\. Actions stay at"
    ):
        saved = start(config, dataset, tmp_path)
    chunk = saved.load_transforms().unnormalize_action(np.full((1, 5, 32), 3.0, np.float32))
    np.testing.assert_allclose(chunk[..., 1], stats[ACTION]["mean"][1], rtol=1e-6)
    size = {"num_vlm_layers": 2, "chunk_size": 3, "n_action_steps": 3, "resize_imgs_with_padding": (32, 32)}
    new = PolicySource(new=True, vlm=str(make_vlm(tmp_path)), vlm_model_name="tiny/vlm", **size)
    config = FinetuneConfig(policy=new, dataset=DatasetConfig(holdout=0.0), stats_from=file)
    with pytest.warns(UserWarning, match=r"`action`: std is zero in dimension\(s\) 1"):
        saved = start(config, LeRobotDataset.open(bare_of(dataset, tmp_path)), tmp_path)
    assert saved.processors.unnormalizer.stats[ACTION]["std"][1] == 0


def bare_of(dataset: LeRobotDataset, folder: Path) -> Path:
    """The dataset without its statistics."""
    root = Path(shutil.copytree(dataset.root, folder / "bare"))
    (root / "meta/stats.json").unlink()
    return root
