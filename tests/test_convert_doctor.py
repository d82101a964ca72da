"""What is wrong with a checkpoint is found and explained; repairs keep the original and change nothing else."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert import positions
from convert.__main__ import main
from convert.doctor import examine
from jaxreflow.errors import ProcessorError
from jaxreflow.model.vision import position_ids
from jaxreflow.policy.saved import WEIGHTS, load_saved_policy
from jaxreflow.support.safetensors_file import TensorFile
from tests.checkpoint_edits import NORM, PRE_STATS, contents, copy_checkpoint, edit_config, edit_tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_checkpoint("mixed", tmp_path / "policy")


def whats(directory: Path, severities: tuple[str, ...] = ("error", "warning")) -> list[str]:
    return [finding.what for finding in examine(directory, measure=False) if finding.severity in severities]


def test_nothing_is_wrong_with_a_sound_checkpoint(source):
    before = contents(source)
    assert whats(source) == []
    assert any("vision tower is stored in float32" in what for what in whats(source, ("note",)))
    assert contents(source) == before


@pytest.mark.parametrize("name", [WEIGHTS, PRE_STATS])
def test_pointers_of_git_lfs_are_called_so(source, name):
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
    assert any(f"{name} is a pointer of Git LFS" in what and "run `git lfs pull`" in what for what in whats(source))


@pytest.mark.parametrize("inputs", [{"input_features": None}, {}])
def test_a_config_without_inputs_is_repaired_as_any_other(source, inputs, capsys):
    fields = json.loads((source / "config.json").read_text())
    del fields["input_features"]
    (source / "config.json").write_text(json.dumps(fields | inputs))
    assert main(["doctor", str(source), "--fix"]) == 1
    told = capsys.readouterr().out
    assert "set to [6], as in the statistics" in told
    assert "error: config.json: input_features has no camera" in told
    fixed = json.loads((source / "config.json").read_text())
    assert fixed["input_features"] == {"observation.state": {"type": "STATE", "shape": [6]}}


def test_what_is_no_policys_folder_leads_to_one(source, tmp_path, capsys):
    run = tmp_path / "run"
    source.rename(tmp_path / "moved")
    (run / "checkpoints/000010").mkdir(parents=True)
    (tmp_path / "moved").rename(run / "checkpoints/000010/pretrained_model")
    policy = run / "checkpoints/000010/pretrained_model"
    for wrong in (policy / "config.json", policy / WEIGHTS):
        assert main(["doctor", str(wrong)]) == 1
        assert f"{wrong} is a file; did you mean {policy}?" in capsys.readouterr().err
    assert main(["doctor", str(run)]) == 1
    assert f"config.json: no such file; did you mean {policy}?" in capsys.readouterr().out
    assert main(["doctor", "me/policy"]) == 1
    assert "fetch a policy of the hub by `hf download me/policy --local-dir DIR`" in capsys.readouterr().err


def test_every_command_takes_weights_as_lerobot_does(source, tmp_path, capsys):
    """Without the head, which nothing reads, and with a buffer of an older transformers."""
    surplus = "model.vlm_with_expert.vlm.model.vision_model.embeddings.position_ids"
    edit_tensors(
        source / WEIGHTS, lambda t: {k: v for k, v in t.items() if "lm_head" not in k} | {surplus: np.arange(4)}
    )
    (found,) = whats(source)
    assert (
        f"{WEIGHTS} holds {surplus}, for which the policy of config.json has no place: left out, as in LeRobot" in found
    )
    before = (source / WEIGHTS).read_bytes()
    assert main(["doctor", str(source), "--fix"]) == 1
    assert main(["inspect", str(source)]) == 0
    assert main(["from-lerobot", str(source), str(tmp_path / "orbax")]) == 0
    assert main(["to-lerobot", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    assert (source / WEIGHTS).read_bytes() == (tmp_path / "back" / WEIGHTS).read_bytes() == before
    assert "lm_head" not in capsys.readouterr().out


def test_config_artefacts_are_found_and_repaired(source, capsys):
    edit_config(source, training_mode="reflow", use_reflow=True, teacher_model_path="/t", load_vlm_weights=False)
    original = (source / "config.json").read_bytes()
    first, second = whats(source)
    assert "training_mode = 'reflow', use_reflow = True, teacher_model_path = '/t'" in first
    assert "load_vlm_weights is false" in second
    assert (source / "config.json").read_bytes() == original

    assert main(["doctor", str(source), "--fix", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["repaired"]) == 3
    assert (source / "config.json.bak").read_bytes() == original
    fixed = json.loads((source / "config.json").read_text())
    artefacts = ("training_mode", "use_reflow", "teacher_model_path")
    kept = {name: value for name, value in json.loads(original).items() if name not in artefacts}
    assert fixed == {**kept, "load_vlm_weights": True}


def test_a_guidance_weight_above_the_steps_is_found_and_lowered(source, capsys):
    rtc = {"enabled": True, "prefix_attention_schedule": "EXP", "execution_horizon": 10, "debug": False}
    edit_config(source, num_steps=10, rtc_config={**rtc, "max_guidance_weight": 10.0})
    assert whats(source) == []
    edit_config(source, num_steps=1)
    (found,) = [finding for finding in examine(source, measure=False) if finding.severity == "warning"]
    assert found.what == "config.json: rtc_config has max_guidance_weight 10, but num_steps is 1"
    assert "--inference.rtc.max_guidance_weight=1" in found.do
    assert main(["doctor", str(source), "--fix"]) == 0
    assert "lowered max_guidance_weight in rtc_config to num_steps, 1" in capsys.readouterr().out
    fixed = json.loads((source / "config.json").read_text())["rtc_config"]
    assert fixed == {**rtc, "max_guidance_weight": 1.0}
    assert whats(source) == []


def test_a_local_vlm_without_weights_is_left_alone(source):
    edit_config(source, load_vlm_weights=False, vlm_model_name=str(source / "vlm"))
    assert whats(source) == []


def test_compiled_names_are_found_and_repaired(source, capsys):
    original = (source / WEIGHTS).read_bytes()
    tensors = load_file(source / WEIGHTS)
    edit_tensors(source / WEIGHTS, lambda t: {k.replace("model.", "model._orig_mod.", 1): v for k, v in t.items()})
    compiled = (source / WEIGHTS).read_bytes()
    assert compiled != original
    assert f"{len(tensors)} names hold `_orig_mod.`" in whats(source)[0]
    assert main(["doctor", str(source), "--fix"]) == 0
    assert f"_orig_mod. taken out of {len(tensors)} names" in capsys.readouterr().out
    assert (source / f"{WEIGHTS}.bak").read_bytes() == compiled
    repaired = load_file(source / WEIGHTS)
    assert repaired.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert repaired[key].dtype == tensor.dtype
        np.testing.assert_array_equal(repaired[key], tensor)


EXPERT_LAYER = "model.vlm_with_expert.lm_expert.layers.0.mlp.up_proj.weight"
TEXT_LAYER = "model.vlm_with_expert.vlm.model.text_model.layers.0.mlp.up_proj.weight"
STATE_PROJ = "model.state_proj.weight"


def test_dtypes_that_are_not_lerobots_are_found_and_repaired(source, capsys):
    """To what LeRobot makes of them on loading; the others keep their bits, and the metadata stay."""
    before = load_file(source / WEIGHTS)
    kinds = {EXPERT_LAYER: np.float64, TEXT_LAYER: np.float32, STATE_PROJ: np.float16, NORM: np.float32}
    noisy = {key: (before[key].astype(np.float32) + 1e-4).astype(kind) for key, kind in kinds.items()}
    edit_tensors(source / WEIGHTS, lambda t: {**t, **noisy}, metadata={"format": "pt"})
    changed = (source / WEIGHTS).read_bytes()
    unusual, rounded = whats(source)
    assert unusual.endswith("unusual dtypes: expert: float64; projections: float16")
    assert "text model (1 tensors), expert (1 tensors) stored in float32" in rounded
    assert main(["doctor", str(source), "--fix"]) == 0
    assert "4 tensors stored as LeRobot loads them" in capsys.readouterr().out
    assert (source / f"{WEIGHTS}.bak").read_bytes() == changed
    after = load_file(source / WEIGHTS)
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype, key
        np.testing.assert_array_equal(after[key], noisy[key].astype(tensor.dtype) if key in noisy else tensor)
    assert TensorFile(source / WEIGHTS).metadata == {"format": "pt"}


def test_projections_that_another_tool_has_rounded_cannot_be_repaired(source):
    edit_tensors(source / WEIGHTS, lambda t: {**t, STATE_PROJ: t[STATE_PROJ].astype(ml_dtypes.bfloat16)})
    changed = contents(source)
    (found,) = whats(source)
    assert "projections (1 tensors) stored in bfloat16, where LeRobot's modules are float32" in found
    assert main(["doctor", str(source), "--fix"]) == 1
    assert contents(source) == changed


@pytest.mark.parametrize("loaded", [True, False])
def test_a_float32_vlm_is_lerobots_own_only_where_its_config_says_so(tmp_path, loaded):
    """Without its weights LeRobot makes the VLM in the dtype that its config names: float32 in this one."""
    source = copy_checkpoint("cross", tmp_path / "policy")
    edit_config(source, load_vlm_weights=loaded, vlm_model_name="tiny/vlm" if loaded else str(source / "vlm"))
    found = [what for what in whats(source) if "stored in float32" in what]
    assert [what.split(": ")[1].split(" (")[0] for what in found] == (["text model"] if loaded else [])


def test_statistics_among_the_weights_become_processor_files(source, capsys):
    stats = load_file(source / PRE_STATS)
    old = {}
    for key, value in stats.items():
        feature, name = key.rsplit(".", 1)
        for kind in ("normalize_inputs", "unnormalize_outputs"):
            old[f"{kind}.buffer_{feature.replace('.', '_')}.{name}"] = value
    edit_tensors(source / WEIGHTS, lambda t: {**t, **old})
    expected = load_saved_policy(source).processors
    for path in source.glob("policy_p*"):
        path.unlink()
    weights = (source / WEIGHTS).read_bytes()
    assert any("but statistics among the weights" in what for what in whats(source))
    assert main(["doctor", str(source), "--fix"]) == 0
    assert "wrote policy_preprocessor.json" in capsys.readouterr().out
    assert (source / WEIGHTS).read_bytes() == weights
    found = load_saved_policy(source).processors
    for name in ("normalizer", "unnormalizer"):
        before, after = getattr(expected, name), getattr(found, name)
        for key in after.stats:
            for statistic in after.stats[key]:
                np.testing.assert_array_equal(after.stats[key][statistic], before.stats[key][statistic])


def zero_extent(stats):
    return {**stats, "action.max": stats["action.max"] * 0, "action.min": stats["action.min"] * 0}


def infinite(stats):
    stats["action.max"][0] = np.inf
    return stats


def as_of_another_vlm(source: Path) -> None:
    path = source / "vlm" / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"]["vocab"]["p"] = 9_000
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "old.pt").write_bytes(b"x"), "pickle files: old.pt"),
        (lambda s: edit_tensors(s / PRE_STATS, lambda t: {f"a.{k}": v for k, v in t.items()}), "match no feature"),
        (lambda s: edit_tensors(s / PRE_STATS, zero_extent), "max - min is zero in dimension(s) 0, 1, 2, 3, 4, 5"),
        (lambda s: edit_tensors(s / PRE_STATS, infinite), "`action.max` is not finite in dimension(s) 0"),
        (lambda s: [p.unlink() for p in s.glob("policy_p*")], "no policy_preprocessor.json"),
        (lambda s: (s / "policy_postprocessor.json").unlink(), "no such file, though policy_preprocessor.json"),
        (lambda s: edit_config(s, colour="red"), "unknown field(s) colour"),
        (
            lambda s: edit_tensors(s / WEIGHTS, lambda t: {**t, NORM: t[NORM].astype(np.float16)}),
            "unusual dtypes: expert: float16",
        ),
        (lambda s: (s / "vlm" / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        (as_of_another_vlm, "the tokenizer gives token 9000, but the VLM knows 288 tokens"),
    ],
    ids=[
        *("pickle", "unbound", "zero", "infinite", "no processors", "half", "field", "dtype"),
        *("tokenizer", "other tokenizer"),
    ],
)
def test_findings(source, damage, message):
    damage(source)
    assert any(message in what for what in whats(source))
    assert main(["doctor", str(source)]) == 1


def test_the_tokenizer_of_another_vlm_is_refused_where_it_is_used(source):
    shutil.copytree(source / "vlm", source.parent / "own")
    as_of_another_vlm(source)
    with pytest.raises(ProcessorError, match=r"gives token 9000, but the VLM knows 288 tokens; .*--vlm DIR"):
        load_saved_policy(source).load_transforms().tokenize(["p, p"])
    ids, _ = load_saved_policy(source, vlm=source.parent / "own").load_transforms().tokenize(["p, p"])
    assert ids.max() < 288


def test_ids_that_transformers_gives():
    def old(side: int, dtype) -> list[int]:
        return positions.ids_4_57(side, side, np.dtype(dtype)).tolist()

    assert old(8, np.float32) == [0, 0, 1, 2, 3, 4, 5, 6]
    assert old(8, ml_dtypes.bfloat16) == list(range(8))
    assert old(6, ml_dtypes.bfloat16) == [0, 1, 2, 3, 4, 4]
    for side, table_side in ((32, 32), (8, 32), (16, 32)):
        found = positions.ids_4_57(side, table_side, np.dtype(np.float32))
        np.testing.assert_array_equal(found, position_ids(side, table_side, shifted=True)[::side] // table_side)


def test_the_change_in_actions_is_measured(source):
    (note,) = [finding for finding in examine(source) if finding.what.startswith("vision positions")]
    assert "shifted positions change the actions by" in note.means
    assert float(note.means.split(" by ")[1].split(" %")[0]) > 1
