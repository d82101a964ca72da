"""Does LeRobot act as jaxreflow does on an exported policy directory?

    python -m tests.parity.student DIR [--batch 2]

DIR is a `pretrained_model` directory with the VLM's config and tokenizer in `vlm/`.
"""

import argparse
from pathlib import Path

import numpy as np

from tests.parity.candidate import Candidate
from tests.parity.inputs import Inputs, random_inputs
from tests.parity.lerobot_shim import SHIFTS_FLOAT32_POSITIONS, torch
from tests.parity.oracle import Oracle
from tests.parity.report import QUANTITIES, number, relative_error

Chunks = dict[str, tuple[np.ndarray, np.ndarray]]


def inputs_for(candidate: Candidate, batch_size: int, seed: int) -> Inputs:
    """Random inputs of the shapes that the policy's config names."""
    policy = candidate.policy.config
    return random_inputs(
        cameras={key: policy.input_features[key].shape[1:] for key in policy.camera_keys},
        state_dim=policy.state_dim,
        action_dim=policy.action_dim,
        padded_action_dim=policy.max_action_dim,
        chunk_size=policy.chunk_size,
        batch_size=batch_size,
        seed=seed,
    )


def student_chunks(directory: Path, batch_size: int = 2, seed: int = 11) -> Chunks:
    """By quantity, jaxreflow's and LeRobot's chunk with the config's own `num_steps`, in units of the policy's chunk.

    LeRobot runs once cast to float32, with its vision positions as jaxreflow's, and once exactly as it comes.
    """
    candidate = Candidate(directory)
    inputs = inputs_for(candidate, batch_size, seed)
    steps = candidate.policy.config.num_steps
    found = candidate.chunk(inputs, steps)
    float32 = Oracle(directory).chunk(inputs, steps)["chunk_raw"]
    as_stored = Oracle(directory, positions="native", cast=None)
    if SHIFTS_FLOAT32_POSITIONS and as_stored.vision_dtype == torch.float32:
        shifted = Candidate(directory, vision_positions="shifted").chunk(inputs, steps)
    else:
        shifted = found
    return {
        "student_float32": (found, float32),
        "student_stored": (shifted, as_stored.chunk(inputs, steps)["chunk_raw"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    failed = False
    for quantity, (found, expected) in student_chunks(arguments.directory, arguments.batch).items():
        rule = QUANTITIES[quantity]
        error = relative_error(found, expected, rule.scale)
        failed |= not error <= rule.bound
        print(f"{rule.about}: error {number(error)}, bound {number(rule.bound)}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
