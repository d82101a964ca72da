"""What the commands are called: in a clone `python train.py`, of an installed package `jaxreflow-train`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# A wheel holds train.py, configs and convert in here; in a clone they are the user's to call.
INSTALLED = (Path(__file__).parents[1] / "cli" / "train.py").is_file()
_COMMANDS = (
    (re.compile(r"(?:python )?(?<![\w/.-])train\.py\b"), "jaxreflow-train"),
    (re.compile(r"python -m convert\b|(?<=`)convert(?= )"), "jaxreflow-convert"),
)


def as_typed(text: str) -> str:
    """The commands in a text as the user has them; also in a clone, by their installed names where one of these was typed."""
    if not INSTALLED and not Path(sys.argv[0]).name.startswith("jaxreflow-"):
        return text
    for ours, installed in _COMMANDS:
        text = ours.sub(installed, text)
    return text
