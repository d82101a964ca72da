"""Does a pod keep busy? Compares the chips' compute time, by the TPU's compiler, with the load on links and hosts.

    python -m benchmarks tpu --topology v5p:8x8x16 --batch-per-chip 32 --noises 4 --json docs/benchmarks.jsonl
    python -m benchmarks pod

Reads the newest line of `python -m benchmarks tpu` for each pod and prints a table in Markdown. In an all-reduce over N chips,
each chip sends 2 (N - 1) / N of the bytes. Over S slices, each chip's share of a slice's sum goes the same way through the data
centre's network. Nothing is assumed to overlap. The chips' figures come from docs.cloud.google.com/tpu/docs/v5e and /v5p.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.tpu_compile import FACTORISED, abstract_weights, full_model
from jaxreflow.errors import ConfigError

CHIPS_PER_HOST = 4


class Chip(NamedTuple):
    """A chip's links (inter-chip, both directions together; data centre), peak, matrix units, and its host's processors."""

    ici_gigabytes: float
    dcn_gigabits: float
    peak_teraflops: float
    matrix_units: int
    vcpus_per_host: int

    @property
    def hertz(self) -> float:
        """The chip's clock. A matrix unit does 128 x 128 multiplications and additions a cycle."""
        return self.peak_teraflops * 1e12 / (self.matrix_units * 2 * 128**2)


CHIPS = {"v5e": Chip(400, 25, 197, 4, 112), "v5p": Chip(1200, 50, 459, 8, 208)}


@dataclasses.dataclass(frozen=True)
class PodConfig:
    """The arithmetic of pods: gradients against links, input against hosts."""

    pods: tuple[str, ...] = ("v5e:16x16", "4xv5e:16x16", "v5p:8x8x16")
    """Pods, each as compiled. 4xv5e:16x16 is four slices in the same data centre."""
    image_size: int = 512
    """Height and width of a camera's frames as they are stored."""
    jpeg_ratio: float = 9.15
    """Bytes of raw frames over bytes of JPEG ones, measured with `python -m benchmarks jpeg`."""
    images_per_core: float = 720
    """JPEG frames that a core decodes in a second, measured in the same way."""
    lines: Path = Path("docs/benchmarks.jsonl")
    """Results of `python -m benchmarks tpu`."""


def run(config: PodConfig) -> None:
    """Prints what the all-reduces hold and the table."""
    columns = {name: pod_figures(name, config) for name in config.pods}
    student, _, _ = abstract_weights(full_model(2, "bfloat16"), FACTORISED)
    trained = sum(leaf.size for leaf in jax.tree.leaves(student))
    print(f"the gradients of {trained:,} trained parameters are {4 * trained:,} bytes in float32\n")
    print(f"| | {' | '.join(columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(figures[row] for figures in columns.values())} |")


def pod_figures(name: str, config: PodConfig) -> dict[str, str]:
    """The rows of one pod's column. ConfigError if the pod was not compiled, or its chip is unknown."""
    match = re.fullmatch(r"(?:(\d+)x)?((\w+):[\dx]+)", name)
    if not match or match[3] not in CHIPS:
        raise ConfigError(f"--pods {name}: expected a pod such as v5e:16x16 or 4xv5e:16x16, of {', '.join(CHIPS)}")
    slices, chip = int(match[1] or 1), CHIPS[match[3]]
    record = newest_record(match[2], config.lines)
    settings, step, chips = record["settings"], record["factorised"], record["chips"]
    compute, scheduled = step["optimal_seconds"], step["cycles"] / chip.hertz
    gradients = sum(c["bytes"] * c["executions"] for c in step["collectives"])
    ici = sent(gradients, chips) / (chip.ici_gigabytes / 2 * 1e9)
    dcn = sent(gradients / chips, slices) / (chip.dcn_gigabits / 8 * 1e9)
    observations = settings["batch_per_chip"] * CHIPS_PER_HOST
    images = observations * settings["cameras"]
    raw = images * config.image_size**2 * 3
    cores = images / compute / config.images_per_core
    return {
        "chips (hosts)": f"{chips * slices:,} ({chips * slices // CHIPS_PER_HOST})",
        "compute, s: roofline (scheduler)": f"{compute:.3f} ({scheduled:.3f})",
        "gradients of an update, MB": f"{gradients / 1e6:.1f}",
        "a chip sends over ICI, MB": f"{sent(gradients, chips) / 1e6:.0f}",
        "ms, at GB/s": f"{ici * 1e3:.2f}, {chip.ici_gigabytes / 2:.0f}",
        "a chip sends to other slices, MB": f"{sent(gradients / chips, slices) / 1e6:.2f}",
        "ms, at Gbit/s": f"{dcn * 1e3:.2f}, {chip.dcn_gigabits:.0f}",
        "efficiency, nothing overlapped": f"{compute / (compute + ici + dcn):.1%}",
        "observations/s": f"{observations * chips * slices / CHIPS_PER_HOST / (compute + ici + dcn):,.0f}",
        "images of a host and update": f"{images}",
        "raw, MB (MB/s)": f"{raw / 1e6:.0f} ({raw / compute / 1e6:.0f})",
        "JPEG, MB (MB/s)": f"{raw / config.jpeg_ratio / 1e6:.0f} ({raw / config.jpeg_ratio / compute / 1e6:.0f})",
        "cores that decode it, of a host's": f"{cores:.1f} of {chip.vcpus_per_host}",
    }


def sent(size: float, members: int) -> float:
    """Bytes that each member of an all-reduce of `size` bytes sends, at least."""
    return 2 * (members - 1) / members * size


def newest_record(topology: str, lines: Path) -> dict[str, Any]:
    """The last result for a topology with M = 4, two cameras and float32 reduction, without cached features."""
    wanted = {"topology": topology, "noises": 4, "cameras": 2, "reduce_dtype": "float32", "features": False}
    for line in reversed(lines.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if record["benchmark"] == "tpu" and wanted.items() <= record["settings"].items():
            return record
    raise ConfigError(
        f"--pods {topology}: expected a result in {lines}, found none; make it with `python -m benchmarks tpu --topology "
        f"{topology} --noises 4 --json {lines}`"
    )
