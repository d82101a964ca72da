"""What is wrong with a checkpoint is found and explained; repairs keep the original and change nothing else."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert import positions
from convert.__main__ import main
from convert.doctor import examine
from jaxreflow.model.vision import position_ids
from jaxreflow.pretrained import WEIGHTS
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


def zero_extent(stats):
    return {**stats, "action.max": stats["action.max"] * 0, "action.min": stats["action.min"] * 0}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "old.pt").write_bytes(b"x"), "pickle files: old.pt"),
        (lambda s: edit_tensors(s / PRE_STATS, lambda t: {f"a.{k}": v for k, v in t.items()}), "match no feature"),
        (lambda s: edit_tensors(s / PRE_STATS, zero_extent), "must be positive, found zero"),
        (lambda s: [p.unlink() for p in s.glob("policy_p*")], "no policy_preprocessor.json"),
        (lambda s: (s / "policy_postprocessor.json").unlink(), "no such file, though policy_preprocessor.json"),
        (lambda s: edit_config(s, colour="red"), "unknown field(s) colour"),
        (
            lambda s: edit_tensors(s / WEIGHTS, lambda t: {**t, NORM: t[NORM].astype(np.float16)}),
            "unusual dtypes: expert: float16",
        ),
    ],
    ids=["pickle", "unbound", "zero", "no processors", "half", "field", "dtype"],
)
def test_findings(source, damage, message):
    damage(source)
    assert any(message in what for what in whats(source))
    assert main(["doctor", str(source)]) == 1


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
