"""What the reflow step needs on a TPU pod, by the real TPU compiler, without a TPU.

The step is the one that `train.py` runs, for the full model with `ReflowConfig`'s defaults. Only shapes go in. Compiling takes
5 to 15 minutes per formulation. `benchmarks/tpu_compile.py` says how the figures are computed.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks.result import result
from benchmarks.tpu_compile import FACTORISED, NAIVE, Estimate, Formulation, Work, compile_step, full_model, pod_mesh
from jaxreflow.errors import ConfigError

HBM_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """Memory, operations, seconds and traffic of the reflow step on a TPU pod, estimated by its compiler."""

    topology: str = "v5e:4x4"
    """The pod: chip and grid, such as v5e:16x16, v5p:4x4x4 or v6e:16x16."""
    batch_per_chip: int = 32
    """Observations per chip and update."""
    noises: int = 4
    """Noise draws per observation, M."""
    cameras: int = 2
    """Cameras of 512 x 512."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype; weights are trained in float32."""
    steps: int = 10
    """Euler steps of the teacher."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which chips send each other their gradients."""
    features: bool = False
    """Image tokens come from a cache, so no image is encoded. The naive formulation encodes images all the same."""
    against: Literal["none", "naive"] = "none"
    """Compile the naive formulation, too (`benchmarks/naive.py`), and compare: M times its work for one noise."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the results are appended as one line."""


def run(config: TpuConfig) -> None:
    """Compiles, prints a table and the ratio, and appends one JSON line."""
    mesh = pod_mesh(config.topology)
    chip = mesh.devices.flat[0].device_kind
    print(f"{config.topology}: {mesh.size} chips ({chip}), {config}", flush=True)
    with result("tpu", config) as record:
        model = full_model(config.cameras, config.dtype)
        work = Work(
            model, config.batch_per_chip, config.noises, config.steps, config.reduce_dtype, features=config.features
        )
        found = {"factorised": _compile(work, FACTORISED, mesh)}
        if config.against == "naive":
            # A noise brings its observation along: M noises are M times the work, in as many microbatches.
            found["naive"] = _compile(work._replace(noises=1, features=False), NAIVE, mesh)
        print(_table(found, HBM_GIB.get(chip)))
        record |= {"chips": mesh.size, "chip": chip} | {name: estimate_record(e) for name, e in found.items()}
        if "naive" in found:
            record["ratio"] = ratios(found["factorised"], found["naive"], config.noises)
            for name, value in record["ratio"].items():
                print(f"{name}: the naive formulation needs {value:.2f} times as many")


def ratios(ours: Estimate, naive: Estimate, noises: int) -> dict[str, float]:
    """How often our step would run in the time of `noises` naive steps of one noise, by both models of the compiler."""
    return {
        "optimal_seconds": noises * naive.optimal_seconds / ours.optimal_seconds,
        "cycles": noises * naive.cycles / ours.cycles,
        "flops": noises * naive.flops / ours.flops,
    }


def estimate_record(estimate: Estimate) -> dict[str, Any]:
    """The estimate as JSON. Collectives are listed by kind and dtype, with the number of arrays and their bytes."""
    fields = {field.name: getattr(estimate, field.name) for field in dataclasses.fields(estimate)}
    fields["collectives"] = [
        {
            "kind": c.kind,
            "dtype": c.dtype,
            "shapes": ["x".join(map(str, shape)) for _, shape in c.arrays],
            "bytes": c.bytes,
            "executions": c.executions,
        }
        for c in estimate.collectives
    ]
    return {**fields, "hbm": estimate.hbm}


def _compile(work: Work, formulation: Formulation, mesh: jax.sharding.Mesh) -> Estimate:
    try:
        return compile_step(work, formulation, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"--batch-per-chip {work.batch} with {work.noises} noise(s) does not fit the chip's memory: expected less, so "
            f"try a smaller batch; the compiler says: {error}"
        ) from error


def _table(found: dict[str, Estimate], hbm_gib: int | None) -> str:
    rows: dict[str, list[str]] = defaultdict(list)
    for estimate in found.values():
        for name in ("arguments", "temporaries", "outputs", "aliased", "program"):
            rows[f"{name}, GiB"].append(f"{getattr(estimate, name) / GIB:.2f}")
        rows[f"memory at once, of {hbm_gib or '?'} GiB"].append(f"{estimate.hbm / GIB:.2f}")
        rows["TFLOP"].append(f"{estimate.flops / 1e12:.2f}")
        rows["accessed, GB"].append(f"{estimate.bytes_accessed / 1e9:.1f}")
        rows["optimal seconds"].append(f"{estimate.optimal_seconds:.4f}")
        rows["scheduled, million cycles"].append(f"{estimate.cycles / 1e6:.0f}")
        rows["compiling, s"].append(f"{estimate.compile_seconds:.0f}")
    lines = [f"{'per chip and step':34}" + "".join(f"{name:>14}" for name in found)]
    lines += [f"{name:34}" + "".join(f"{value:>14}" for value in values) for name, values in rows.items()]
    for name, estimate in found.items():
        lines.append(f"collectives per step, {name}:")
        lines += [
            f"  {c.executions} x {c.kind} of {len(c.arrays)} {c.dtype} arrays, {c.bytes / 1e6:.3f} MB, "
            f"{', '.join(str(list(shape)) for _, shape in c.arrays[:4])}{' ...' if len(c.arrays) > 4 else ''}"
            for c in estimate.collectives
        ]
    return "\n".join(lines)
