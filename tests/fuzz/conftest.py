"""What all fuzz tests share: sound folders, one worker, and the table of outcomes at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxreflow.data.pack import PackConfig, pack
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import Feature, PolicyConfig
from jaxreflow.policy.processors import create_processors
from jaxreflow.policy.saved import CONFIG, WEIGHTS
from jaxreflow.policy.statistics import to_float32
from jaxreflow.policy.vlm import load_vlm
from jaxreflow.policy.weights import expected_tensors
from jaxreflow.run.config import ReflowConfig
from jaxreflow.run.directory import CONFIG_FILE, write_config
from jaxreflow.support.new_folder import write_json
from tests.fuzz.harness import Tally, Worker
from tests.lerobot_fixtures import CAMERA, HEIGHT, LENGTHS, WIDTH, episode_stats, write_v21, write_v30

VLM = Path(__file__).parents[1] / "goldens" / "cross" / "vlm"
TALLIES = pytest.StashKey[dict[str, Tally]]()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small sound datasets by layout, and a policy that fits them all."""
    root = tmp_path_factory.mktemp("sound")
    found = {
        "v30": write_v30(root / "v30"),
        "v21": write_v21(root / "v21"),
        "images": write_v30(root / "images", image_format="PNG"),
    }
    state = np.arange(sum(LENGTHS))[:, None] * np.array([1.0, -1.0])
    moments = {"mean": state.mean(axis=0).tolist(), "std": state.std(axis=0).tolist()}
    stats = json.dumps({**episode_stats(0), "observation.state": moments})
    for name in ("v30", "images"):
        (found[name] / "meta" / "stats.json").write_text(stats)
    found["packed"] = pack(PackConfig(str(found["v30"]), str(root / "packed"))).root
    found["policy"] = write_policy(root / "policy", json.loads(stats))
    return found


def write_policy(folder: Path, stats: Mapping[str, Any]) -> Path:
    """A policy for these datasets; its weights are noise."""
    policy = PolicyConfig(
        input_features={"observation.state": Feature("STATE", (2,)), CAMERA: Feature("VISUAL", (3, HEIGHT, WIDTH))},
        output_features={"action": Feature("ACTION", (3,))},
        vlm_model_name="vlm",
        chunk_size=4,
        n_action_steps=4,
        resize_imgs_with_padding=(32, 32),
        num_vlm_layers=2,
    )
    shutil.copytree(VLM, folder / "vlm")
    config = network_of(policy, load_vlm(policy, folder).config)
    random = np.random.default_rng(0)
    tensors = {key: random.normal(size=shape).astype("f4") for key, shape in expected_tensors(config).items()}
    write_json(folder / CONFIG, policy.to_json())
    save_file(tensors, folder / WEIGHTS)
    create_processors(policy, to_float32(stats)).save(folder)
    write_config(ReflowConfig(output_dir="run"), folder / CONFIG_FILE)
    return folder


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The process that opens what is damaged."""
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def tallies(request: pytest.FixtureRequest) -> dict[str, Tally]:
    """Outcomes by target, for the table."""
    return request.config.stash.setdefault(TALLIES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints how many cases of each kind came to what."""
    tallies = config.stash.get(TALLIES, {})
    if tallies:
        cases = sum(tally.outcomes.total() for tally in tallies.values())
        terminalreporter.section(f"fuzz: {cases} cases; slowest and largest of each kind")
        for name, tally in tallies.items():
            terminalreporter.write_line(tally.line(name))
