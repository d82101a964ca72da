"""What an evaluation measures and how much of it: all that decides how long it takes."""

from __future__ import annotations

import dataclasses

from jaxreflow.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Step counts, frames, noises and draws of one evaluation."""

    num_steps: tuple[int, ...] = (10, 4, 2, 1)
    """Euler steps at which student and teacher are measured."""
    noises: int = 4
    """Noises per frame. Every policy and step count gets the same ones."""
    frames: int = 192
    """Frames of the set `all`, spread evenly over the episodes."""
    early_task: str | None = None
    """A task whose episodes have several ways open at their start. Their first frames are the set `early`."""
    early_frames: int = 3
    """Frames at the start of each episode of --early-task."""
    draws: int = 256
    """Chunks per policy and observation that are compared as distributions. 0 leaves that out."""
    observations: int = 16
    """Observations for distributions. They come from the set `early` if there is one, else from `all`."""
    field_frames: int = 32
    """Frames for velocity error and straightness, whose paths take 50 steps."""
    pairs: int = 48
    """Pairs of frames `n_action_steps` apart, for jumps between chunks."""
    n_action_steps: tuple[int, ...] = (10, 50)
    """Actions executed per chunk. Jumps, errors of the executed part and actions per second use them."""
    repeats: int = 100
    """Timed calls per latency, or fewer where they would take longer than some seconds. 0 leaves latency out."""
    batch_size: int = 16
    """Frames at a time. It changes the memory that is needed, and no result."""
    seed: int = 0
    """Seed of noises and intervals."""

    def __post_init__(self) -> None:
        for name in ("noises", "frames", "early_frames", "observations", "field_frames", "pairs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        for name in ("num_steps", "n_action_steps"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be numbers of at least 1, found {list(values)}")
        if self.draws == 1 or self.draws < 0:
            raise ConfigError(f"--draws must be 0 (none) or at least 2, found {self.draws}: a spread takes two draws")
        if self.repeats < 0 or self.seed < 0:
            raise ConfigError(f"--repeats and --seed must not be negative, found {self.repeats} and {self.seed}")
