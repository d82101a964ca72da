"""Measures what jaxreflow does on this machine.

    python -m benchmarks reflow-step --batch 1 --noises 4

Commands, results and limits: docs/benchmarks.md.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from jaxreflow.support.command_line import choose, first_sentence, parse, run

HERE = Path(__file__).parent
# Each is a module with a `run` and its flags; only the chosen one is imported.
BENCHMARKS = {
    "reflow-step": "ReflowStepConfig",
    "sample": "SampleConfig",
    "compact": "CompactConfig",
    "plugin": "PluginConfig",
    "reuse": "ReuseConfig",
    "loader": "LoaderConfig",
    "convert": "ConvertConfig",
    "startup": "StartupConfig",
    "tpu": "TpuConfig",
    "pod": "PodConfig",
    "jpeg": "JpegConfig",
}


def main() -> int:
    """Runs one benchmark; 0 if all went well, 1 after an error, 2 for wrong usage."""
    return run(_main, None)


def _main(args: list[str]) -> int:
    sentences = {name: first_sentence(HERE / f"{name.replace('-', '_')}.py") for name in BENCHMARKS}
    name, flags = choose(args, sentences, prog="python -m benchmarks", about=__doc__ or "")
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    prog = f"python -m benchmarks {name}"
    module.run(parse(getattr(module, BENCHMARKS[name]), flags, prog=prog, about=f"{module.__doc__}\n\n    {prog}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
