"""One variant with everything computed on it, on both sides, each at most once."""

import dataclasses
import functools
from pathlib import Path

from tests.parity.candidate import Candidate
from tests.parity.inputs import Inputs, make_inputs
from tests.parity.make_checkpoint import make_checkpoint
from tests.parity.oracle import Arrays, Oracle
from tests.parity.variants import Variant


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint in LeRobot (float32, exact positions) and in jaxreflow, with the inputs that both receive."""

    variant: Variant
    checkpoint: Path
    inputs: Inputs

    @classmethod
    def make(cls, variant: Variant, checkpoint: Path, seed: int) -> "Case":
        """Build the checkpoint and draw the inputs."""
        return cls(variant, make_checkpoint(checkpoint, variant, seed), make_inputs(variant, seed + 100))

    @functools.cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.checkpoint)

    @functools.cached_property
    def candidate(self) -> Candidate:
        return Candidate(self.checkpoint)

    @functools.cached_property
    def prepared(self) -> Arrays:
        return self.oracle.preparation(self.inputs)

    @functools.cached_property
    def network(self) -> Arrays:
        return self.oracle.network(self.inputs)

    @functools.cached_property
    def gradients(self) -> Arrays:
        return self.oracle.gradients(self.inputs)
