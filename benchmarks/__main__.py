"""Measures what jaxreflow does on this machine: `python -m benchmarks NAME --help`."""

from __future__ import annotations

import importlib
import sys

import tyro

from jaxreflow.errors import JaxReflowError

# Each is a module with a `run` and its flags; only the chosen one is imported.
BENCHMARKS = {
    "reflow-step": "ReflowStepConfig",
    "sample": "SampleConfig",
    "loader": "LoaderConfig",
    "convert": "ConvertConfig",
    "startup": "StartupConfig",
    "tpu": "TpuConfig",
    "pod": "PodConfig",
    "jpeg": "JpegConfig",
}


def main() -> int:
    """Runs one benchmark; 0 if all went well, 1 after an error, 2 for wrong usage."""
    name, *flags = sys.argv[1:] or [""]
    if name not in BENCHMARKS:
        print(
            f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [flags], found {name or 'nothing'}",
            file=sys.stderr,
        )
        return 0 if name in ("-h", "--help") else 2
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    config = tyro.cli(
        getattr(module, BENCHMARKS[name]), args=flags, prog=f"python -m benchmarks {name}", description=module.__doc__
    )
    try:
        module.run(config)
    except JaxReflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
