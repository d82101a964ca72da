"""One thing that `convert doctor` has to say."""

from __future__ import annotations

import dataclasses
from typing import Literal

BY_FIX = "`python -m convert doctor DIR --fix` does it"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One observation: an error keeps the policy from acting rightly, a warning may, a note is worth knowing."""

    severity: Literal["error", "warning", "note"]
    what: str
    means: str = ""
    do: str = ""
