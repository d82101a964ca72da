"""Shapes and types on public signatures are checked here, and only here: the package itself does not pay for it."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run many small programs once each: compiling them fast beats running them fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Programs are kept between sessions: compiling takes half of the first one. `make clean` removes them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "compiled_for_tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from jaxtyping import install_import_hook

install_import_hook("jaxreflow", "beartype.beartype")

# The files that take longest come first, so that parallel workers end together (`--no-loadscope-reorder` keeps this order).
LONGEST = (
    "test_topology",
    "test_processes",
    "test_train_cli",
    "test_features",
    "test_training",
    "test_model",
    "test_evaluate_cli",
    "test_lora",
    "test_dry_run",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def v21(tmp_path: Path) -> Path:
    """A small LeRobotDataset of version 2.1."""
    from tests.lerobot_fixtures import write_v21

    return write_v21(tmp_path / "data")


@pytest.fixture
def v30(tmp_path: Path) -> Path:
    """The same in version 3.0."""
    from tests.lerobot_fixtures import write_v30

    return write_v30(tmp_path / "data")
