"""A card says what is known, from where, and with what numbers; what is not known it does not claim."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.report.report import read_report
from jaxreflow.policy.public_names import PolicyName
from jaxreflow.policy.saved import read_policy_config
from jaxreflow.publish.model_card import CardSource, model_card, pictures
from jaxreflow.run.config import (
    DatasetConfig,
    FinetuneConfig,
    OptimizerFlags,
    PolicySource,
    ReflowConfig,
    StudentConfig,
    TeacherSource,
)
from jaxreflow.training.augmentation import ImageTransformsConfig
from jaxreflow.training.lora import LoraConfig

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "results" / "default" / "report.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFLOW = ReflowConfig(
    teacher=TeacherSource("lerobot/base"),
    dataset=DatasetConfig(repo_id="lerobot/set", revision="v2"),
    steps=20_000,
    optimizer=OptimizerFlags(name="muon", lr=2e-3),
)
SOURCE = CardSource(
    repo="me/student",
    policy=dataclasses.replace(read_policy_config(ROOT / "tests" / "assets" / "teacher"), num_steps=1),
    own_vlm=False,
    settings=REFLOW,
    update=15_000,
    start=PolicyName("lerobot/base", True, COMMIT),
    start_sha256="ab" * 32,
    report=None,
    license=None,
)


def split(card: str) -> tuple[dict, str]:
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.mark.slow
def test_a_report_is_read_as_it_was_written(tmp_path):
    content = json.loads(REPORT.read_text())
    for row in content["measures"]["fidelity"]:
        row |= {"episode_errors": [], "episode_references": []}  # of a version that did not keep them
    for row in (*content["measures"]["latency"], *content["measures"]["rates"]):
        row["name"] = ""  # of a version whose policies had one network
    content["measures"]["consistency"]["held_out_loss"] = None  # of a version that compared with the training loss only
    assert read_report(REPORT).to_json() == content
    content["measures"]["fidelity"][0]["jerk"] = None  # not finite
    (tmp_path / "report.json").write_text(json.dumps(content))
    report = read_report(tmp_path / "report.json")
    assert np.isnan(report.measures.fidelity[0].jerk)
    assert report.to_json() == content
    for damage in ({"about": []}, {"colour": 1}, {"verdict": {**content["verdict"], "passed": "yes"}}):
        (tmp_path / "report.json").write_text(json.dumps({**content, **damage}))
        with pytest.raises(ConfigError, match=r"report\.json: expected a report of `python -m jaxreflow.evaluate`"):
            read_report(tmp_path / "report.json")


def test_the_hub_is_told_what_the_policy_is_and_what_it_comes_from():
    metadata, _ = split(model_card(SOURCE))
    assert metadata == {
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lerobot", "smolvla", "reflow", "rectified-flow", "distillation", "jaxreflow"],
        "base_model": "lerobot/base",
        "datasets": ["lerobot/set"],
    }
    local = dataclasses.replace(SOURCE, start=PolicyName("base", False), license="mit")
    assert split(model_card(local))[0] == {**{k: v for k, v in metadata.items() if k != "base_model"}, "license": "mit"}
    own = dataclasses.replace(SOURCE.policy, carried={**SOURCE.policy.carried, "license": "apache-2.0"})
    assert split(model_card(dataclasses.replace(SOURCE, policy=own)))[0]["license"] == "apache-2.0"


def test_a_student_without_a_report_says_so_and_how_to_make_one():
    _, text = split(model_card(SOURCE))
    assert "That was not measured." in text
    assert "evaluate --teacher lerobot/base --student me/student --dataset.repo-id lerobot/set --out REPORT" in text
    assert "images/" not in text
    for row in (
        "| teacher | `lerobot/base` |",
        f"| its revision | `{COMMIT}` |",
        f"| its weights | sha256 `{'ab' * 32}` |",
        "| dataset | `lerobot/set`, revision `v2` |",
        "| updates | 15,000 of 20,000 |",
        "| pairs from | the teacher, 10 Euler steps |",
        "| optimizer | muon, peak learning rate 0.002, gradients clipped to 10 |",
        "| weights | moving average, decay 0.999 |",
    ):
        assert row in text


def test_adapters_and_changed_images_are_named():
    _, plain = split(model_card(SOURCE))
    assert "| trained | expert and projections |" in plain
    dataset = dataclasses.replace(REFLOW.dataset, image_transforms=ImageTransformsConfig(enable=True))
    settings = dataclasses.replace(REFLOW, lora=LoraConfig(rank=8), dataset=dataset)
    _, text = split(model_card(dataclasses.replace(SOURCE, settings=settings)))
    assert "| trained | adapters of rank 8 (LoRA), merged |" in text
    assert "| images | changed at random |" in text
    assert "expert and projections" not in text


def test_a_report_becomes_tables_with_intervals_and_pictures():
    report = read_report(REPORT)
    source = dataclasses.replace(SOURCE, report=report)
    _, text = split(model_card(source))
    assert "| student@1 | 0.093 [0.087, 0.098] | 0.206 [0.199, 0.213] | 0.089 [0.080, 0.097] |" in text
    assert "| teacher@1 | 0.363 [0.348, 0.377] | 0.725 [0.720, 0.731] | 0.325 [0.303, 0.347] |" in text
    assert f"**{report.verdict.headline}**" in text
    assert "| 10 Euler steps | 8.84 | 9.42 | 11.87 | 100 |" in text
    assert "float32, compiled by jax 0.10.2 on cpu (cpu)" in text
    assert "not measured" not in text
    drawn = pictures(report)
    assert set(re.findall(r"!\[.+?\]\((.+?)\)", text)) == set(drawn)
    for content in drawn.values():
        image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert (image[0, 0] == 255).all()
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert pictures(report) == drawn


def test_measures_that_were_left_out_are_left_out():
    report = read_report(REPORT)
    measures = dataclasses.replace(report.measures, latency=[], rates=[], distributions=[])
    report = dataclasses.replace(report, measures=measures)
    _, text = split(model_card(dataclasses.replace(SOURCE, report=report)))
    assert "Latency" not in text
    assert "energy" not in text
    assert set(re.findall(r"!\[.+?\]\((.+?)\)", text)) == set(pictures(report))


def test_a_policy_that_was_looked_at_alone_is_nobodys_student():
    report = read_report(REPORT)
    rows = [row for row in report.measures.fidelity if row.name == "teacher"]
    alone = dataclasses.replace(
        report,
        about=dataclasses.replace(report.about, student=None),
        measures=dataclasses.replace(report.measures, fidelity=rows),
    )
    _, text = split(model_card(dataclasses.replace(SOURCE, settings=None, start=None, report=alone)))
    assert "## In how few steps does it act?" in text
    assert "| teacher@1 |" in text
    assert "| student@1 | 0.093" not in text
    assert pictures(alone)


def test_a_fine_tuned_policy_has_no_teacher_to_be_compared_with():
    settings = FinetuneConfig(policy=PolicySource("lerobot/base"), dataset=DatasetConfig(root="set"), steps=5)
    metadata, text = split(model_card(dataclasses.replace(SOURCE, settings=settings, update=5)))
    assert "reflow" not in metadata["tags"]
    assert "datasets" not in metadata
    assert "trained it from `lerobot/base` by flow matching on recorded actions" in text
    assert "| dataset | `set`, a local folder |" in text
    assert "Is it its teacher?" not in text
    new = dataclasses.replace(settings, policy=PolicySource(new=True))
    _, text = split(model_card(dataclasses.replace(SOURCE, settings=new, start=None, start_sha256=None)))
    assert "trained it from a new policy" in text


def test_of_another_programs_policy_the_card_claims_nothing():
    source = dataclasses.replace(SOURCE, settings=None, update=None, start=None, start_sha256=None)
    metadata, text = split(model_card(source))
    assert metadata["tags"] == ["robotics", "lerobot", "smolvla"]
    assert "distilled" not in text
    assert "Recipe" not in text


def test_it_is_run_in_lerobot_with_the_steps_that_it_was_made_for():
    _, text = split(model_card(SOURCE))
    assert "lerobot-eval --policy.path=me/student --policy.num_steps=1 --policy.n_action_steps=50" in text
    assert "lerobot-rollout --strategy.type=base --policy.path=me/student --policy.num_steps=1 --robot.type=" in text
    assert 'SmolVLAPolicy.from_pretrained("me/student")\npreprocess' in text
    _, own = split(model_card(dataclasses.replace(SOURCE, own_vlm=True)))
    assert 'config.vlm_model_name = f"{path}/vlm"' in own
    for card in (text, own):
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (
            StudentConfig(),
            "Architecture, statistics, tokenizer and all weights that were not trained are the teacher's.",
        ),
        (StudentConfig(image_size=48), "It sees images of 48 x 48 pixels; statistics, tokenizer and all weights"),
        (
            StudentConfig(image_size=48, vlm_layers=2),
            "It has 2 of its teacher's VLM layers and sees images of 48 x 48 pixels; statistics,",
        ),
    ],
)
def test_a_card_says_in_what_the_network_differs_from_the_teachers(student, sentence):
    source = dataclasses.replace(SOURCE, settings=dataclasses.replace(REFLOW, student=student))
    assert sentence in model_card(source)
