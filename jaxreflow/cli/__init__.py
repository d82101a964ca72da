"""Home of the installed commands: a wheel holds train.py, configs and convert here."""

from pathlib import Path

# In a working tree they stand beside the package instead, at the top level; an editable install finds them there.
_root = Path(__file__).parents[2]
if not (Path(__file__).parent / "train.py").is_file() and (_root / "train.py").is_file():
    __path__.append(str(_root))
