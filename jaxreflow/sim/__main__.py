"""`python -m jaxreflow.sim`: closed-loop evaluation of policies; `python -m jaxreflow.sim record`: demonstrations."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxreflow.sim.rendering import no_simulator
from jaxreflow.support.command_line import parse, run, usage_error


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all went well, 1 after an error, 2 for wrong usage."""
    return run(_main, argv, out_of_memory="lower --parallel or --candidates, or give --dtype bfloat16")


def _main(args: list[str]) -> int:
    if args and args[0] != "record" and not args[0].startswith("-"):
        usage_error("python -m jaxreflow.sim", f"expected options, or `record` before them, found {args[0]}")
    try:
        from jaxreflow.sim import closed_loop
        from jaxreflow.sim import record as recording
    except ModuleNotFoundError as error:
        raise no_simulator(f"{error.name} cannot be imported ({error})") from error
    if args[:1] == ["record"]:
        prog, about = "python -m jaxreflow.sim record", recording.__doc__ or ""
        recording.record(parse(recording.RecordConfig, args[1:], prog=prog, about=about))
    else:
        about = closed_loop.__doc__ or ""
        print(closed_loop.run_trials(parse(closed_loop.SimConfig, args, prog="python -m jaxreflow.sim", about=about)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
