"""Prints what an update changes at full size, with and without LoRA, as docs/training.md has it.

python -m tests.count_adapters
"""

import math

from benchmarks.workload import full_policy
from jaxreflow.model.config import VLMConfig
from jaxreflow.model.params import trainable_in_reflow
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.weights import parameter_table
from jaxreflow.training.lora import LoraConfig, adapted_kernels, adapter_shapes


def main() -> None:
    model = network_of(full_policy(cameras=1), VLMConfig())
    sizes = {entry.path: math.prod(entry.shape) for entry in parameter_table(model)}
    numbers = {"expert and projections": sum(size for path, size in sizes.items() if trainable_in_reflow(path))}
    for rank in (64, 16, 8):
        shapes = adapter_shapes(LoraConfig(rank=rank), model)
        numbers[f"adapters of rank {rank}"] = sum(map(math.prod, shapes.values()))
    for name, number in numbers.items():
        print(f"{name}: {number:,} parameters, state {16 * number / 1e6:,.0f} MB, gradients {4 * number / 1e6:,.0f} MB")
    kernels = sum(sizes[path] for path in adapted_kernels(LoraConfig(rank=1), model))
    print(f"kernels that they change: {kernels:,} parameters, {4 * kernels / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
