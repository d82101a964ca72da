"""The recipe's options from the command line, on cached image tokens."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from jaxreflow.run import setup
from jaxreflow.run.record.metrics import read_metrics
from jaxreflow.support.safetensors_file import TensorFile
from tests.cached_policy import make_cached_policy

RECIPE = ["--real-share", "0.5", "--objective", "pseudo-huber", "--loss-dims", "real", "--teacher-solver", "heun"]


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_cached_policy(tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("vlm"))


def run(made: SimpleNamespace, config: str, out: Path, *flags: str) -> int:
    """Two updates (or as the flags say), each logged and saved."""
    data = ["--dataset.root", str(made.root), "--dataset.holdout", "0.3", "--dataset.features", str(made.cache.root)]
    size = ["--steps", "2", "--batch-size", "4", "--log-every", "1", "--eval-every", "4", "--save-every", "1"]
    return train.main([config, *data, *size, "--output-dir", str(out), *flags])


def losses(out: Path) -> list[float]:
    return [record[name] for record in read_metrics(out) for name in ("loss", "held_out_loss") if name in record]


@pytest.fixture(scope="module")
def mixed(made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reflow run with every option of the recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "use_compilation_cache", lambda: None)
        out = tmp_path_factory.mktemp("recipe") / "mixed"
        teacher = ["--teacher.path", str(made.folder / "policy"), "--teacher-steps", "2", "--noises", "2"]
        assert run(made, "reflow", out, *teacher, *RECIPE) == 0
        return out


@pytest.mark.slow
def test_a_run_with_every_option_resumes_exactly(mixed: Path, tmp_path: Path) -> None:
    assert all(np.isfinite(losses(mixed)))
    out = Path(shutil.copytree(mixed, tmp_path / "resumed", symlinks=True))
    shutil.rmtree(out / "checkpoints" / "000002")
    (out / "checkpoints" / "last").unlink()
    (out / "checkpoints" / "last").symlink_to("000001")
    assert train.main(["reflow", "--output-dir", str(out), "--resume"]) == 0
    assert losses(out) == losses(mixed)
    weights = Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors"
    assert (out / weights).read_bytes() == (mixed / weights).read_bytes()


@pytest.mark.slow
def test_runs_from_before_an_option_existed_can_be_continued(mixed: Path, tmp_path: Path, capsys) -> None:
    """They had its default; a setting that is not known is named."""
    out = Path(shutil.copytree(mixed, tmp_path / "run", symlinks=True))
    settings = json.loads((out / "train_config.json").read_text())
    options = {flag.removeprefix("--").replace("-", "_") for flag in RECIPE[::2]}
    assert options < set(settings)
    old = {name: value for name, value in settings.items() if name not in options}
    (out / "train_config.json").write_text(json.dumps(old))
    resume = ["reflow", "--output-dir", str(out), "--resume"]
    assert train.main(resume) == 0
    assert "complete" in capsys.readouterr().err
    assert train.main([*resume, "--objective", "pseudo-huber"]) == 1
    assert "--objective mse -> pseudo-huber" in capsys.readouterr().err
    (out / "train_config.json").write_text(json.dumps({**old, "colour": "red"}))
    assert train.main(resume) == 1
    assert (
        "expected the settings of a `ReflowConfig` run (the document must have fields of `ReflowConfig` only, found 'colour')"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_noise_biased_finetune_of_the_expert(made: SimpleNamespace, tmp_path: Path) -> None:
    """The baseline without a teacher: Beta(4, 1), expert only, exported for one step."""
    policy = ["--policy.path", str(made.folder / "policy"), "--policy.train-expert-only", "True"]
    assert run(made, "finetune", tmp_path / "run", *policy, "--time-law", "noise-biased", "--num-steps", "1") == 0
    student = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    config = json.loads((student / "config.json").read_text())
    assert (config["num_steps"], config["train_expert_only"]) == (1, True)
    before, after = (TensorFile(path / "model.safetensors") for path in (made.folder / "policy", student))
    moved = {key for key in before.keys if not np.array_equal(before.read(key), after.read(key))}
    assert moved
    assert not any("vlm_with_expert.vlm." in key for key in moved)
