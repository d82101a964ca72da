"""Checkpoints and datasets from strangers: whatever is in their files, they are read, or refused with the file named.

    make fuzz                       150 cases of each kind of file, others each time; prints the outcomes
    python -m pytest tests/fuzz     a few of each, the same each time: part of `make test`

A case damages or forges one file and has a process of its own open it as train.py and convert do. It must end in success or
one of `jaxreflow.errors` that names the file, within 10 s and 1 GiB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxreflow.policy.processors import POSTPROCESSOR, PREPROCESSOR
from jaxreflow.policy.saved import CONFIG, TRAIN_CONFIG, WEIGHTS
from tests.fuzz.harness import Tally, Target, Worker, replaced
from tests.fuzz.mutations import damaged, json_lines, json_text, mp4_file, parquet_file, safetensors_file
from tests.lerobot_fixtures import CAMERA

TARGETS = (
    Target("config.json", "policy", CONFIG, json_text),
    Target("vlm/config.json", "policy", "vlm/config.json", json_text),
    Target("vlm/tokenizer.json", "policy", "vlm/tokenizer.json", json_text, ("vlm",)),
    Target("preprocessor", "policy", PREPROCESSOR, json_text),
    Target("postprocessor", "policy", POSTPROCESSOR, json_text),
    Target("train_config.json", "policy", TRAIN_CONFIG, json_text),
    Target("weights", "policy", WEIGHTS, safetensors_file),
    Target("state", "policy", "policy_preprocessor_step_5_normalizer_processor.safetensors", safetensors_file, (PREPROCESSOR,)),
    Target("info.json", "v30", "meta/info.json", json_text),
    Target("info.json v2.1", "v21", "meta/info.json", json_text),
    Target("stats.json", "v30", "meta/stats.json", json_text, stats_from="dataset"),
    Target("episodes_stats.jsonl", "v21", "meta/episodes_stats.jsonl", json_lines),
    Target("episodes.jsonl", "v21", "meta/episodes.jsonl", json_lines, ("meta/episodes", "info.json")),
    Target("tasks.jsonl", "v21", "meta/tasks.jsonl", json_lines),
    Target("data parquet", "v30", "data/chunk-000/file-000.parquet", parquet_file, (".mp4", "tasks.parquet")),
    Target("image parquet", "images", "data/chunk-000/file-000.parquet", parquet_file, ("tasks.parquet",)),
    Target("episodes parquet", "v30", "meta/episodes/chunk-000/file-000.parquet", parquet_file, ("meta/episodes", ".mp4")),
    Target("tasks parquet", "v30", "meta/tasks.parquet", parquet_file),
    Target("packed manifest", "packed", "frames/manifest.json", json_text, ("frames",)),
    Target("packed frames", "packed", "frames/shard-00000.arrayrecord", damaged, ("frames",)),
    Target("mp4", "v30", f"videos/{CAMERA}/chunk-000/file-000.mp4", mp4_file),
)  # fmt: skip

MANY = int(os.environ.get("FUZZ_CASES", "150"))


def fuzz(target: Target, folders: Mapping[str, Path], worker: Worker, cases: int, *, repeatable: bool) -> Tally:
    """Outcomes of so many cases of a target."""
    file, tally = folders[target.folder] / target.file, Tally()
    dataset = target.folder if target.folder != "policy" else "v30"
    case = {"policy": str(folders["policy"]), "dataset": str(folders[dataset]), "stats_from": target.stats_from}
    sound = file.read_bytes()

    @settings(
        max_examples=cases,
        derandomize=repeatable,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.just(sound).flatmap(target.mutate))
    def check(mutant):
        worker.start(case)
        with replaced(file, mutant.data):
            tally.count(worker.ask(case), mutant, (file.name, *target.also))

    check()
    return tally


def report(tally: Tally) -> str:
    return "\n".join(f"- {recipe}\n    {defect}" for defect, recipe in tally.defects.items())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_few(target: Target, folders: Mapping[str, Path], worker: Worker, tallies: dict[str, Tally]) -> None:
    tally = tallies[target.name] = fuzz(target, folders, worker, 3, repeatable=True)
    assert not tally.defects, report(tally)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_dozen(target: Target, folders: Mapping[str, Path], worker: Worker, tallies: dict[str, Tally]) -> None:
    tally = tallies[target.name] = fuzz(target, folders, worker, 12, repeatable=True)
    assert not tally.defects, report(tally)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_many(target: Target, folders: Mapping[str, Path], worker: Worker, tallies: dict[str, Tally]) -> None:
    tally = tallies[target.name] = fuzz(target, folders, worker, MANY, repeatable=False)
    assert not tally.defects, report(tally)
