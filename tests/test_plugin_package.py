"""The plugin's package where LeRobot is too old or absent: an error that names both versions and the remedy."""

import importlib
import importlib.metadata
import sys
from pathlib import Path

import pytest

PACKAGE = "lerobot_policy_jaxreflow"


@pytest.fixture(autouse=True)
def _found_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins" / PACKAGE))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)


@pytest.mark.parametrize("version", ["0.4.4", "0.5.1", "0.3.3.dev0"])
def test_an_older_lerobot_is_named(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(
        ImportError, match=rf"expected LeRobot 0\.6 or newer, found {version}; .*Python 3\.12.*--upgrade"
    ):
        importlib.import_module(PACKAGE)


def test_no_lerobot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ImportError, match=r"expected LeRobot 0\.6 or newer, found none"):
        importlib.import_module(PACKAGE)
