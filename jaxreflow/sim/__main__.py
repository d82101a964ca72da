"""`python -m jaxreflow.sim`: closed-loop evaluation of policies; `python -m jaxreflow.sim record`: demonstrations."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from jaxreflow.errors import JaxReflowError
from jaxreflow.sim import evaluate as evaluation
from jaxreflow.sim import record as recording


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all went well, 1 after an error, 2 for wrong usage."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["record"]:
            prog, about = "python -m jaxreflow.sim record", recording.__doc__
            recording.record(tyro.cli(recording.RecordConfig, args=args[1:], prog=prog, description=about))
        else:
            prog, about = "python -m jaxreflow.sim", evaluation.__doc__
            print(evaluation.evaluate(tyro.cli(evaluation.SimConfig, args=args, prog=prog, description=about)))
    except JaxReflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
