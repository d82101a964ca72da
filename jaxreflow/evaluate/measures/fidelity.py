"""Same-noise error: how far a policy's chunks are from the teacher's, and from the recorded actions, on the same frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxreflow.data.frames import episode_of
from jaxreflow.evaluate.measures.estimate import Estimate, relative_error, root_quotient
from jaxreflow.evaluate.measures.smoothness import third_difference
from jaxreflow.evaluate.sampling import AtSteps, Candidate, Trial, chunks, noise_for
from jaxreflow.evaluate.settings import Settings
from jaxreflow.policy.observation import Transforms


@dataclasses.dataclass(frozen=True)
class Fidelity(AtSteps):
    """Same-noise error of one policy at one step count on one set of frames.

    Errors are `|| a - b || / || b ||`, sums over the set before the quotient, b the teacher's chunks at its own step count, in
    normalised units over real action dims and all positions of the chunk, unless said otherwise.
    """

    frames: str
    error: Estimate
    executed: Mapping[str, Estimate]
    """The same over the first n positions only, by n: what a robot executes that replans after n actions."""
    per_dim: tuple[float, ...]
    per_position: tuple[float, ...]
    padded_error: float | None
    """The same over the padded dims, which the sampler integrates like the real ones; None if there are none."""
    padded_rms: float
    """Root mean square of the teacher's endpoints in the padded dims."""
    physical_error: Estimate
    """The same in the dataset's units."""
    rmse: tuple[float, ...]
    """Root mean square difference per dim in the dataset's units."""
    recorded_error: Estimate
    """Against the recorded actions instead of the teacher's, positions past the episode's end left out."""
    jerk: float
    """Root mean square third difference along the chunk, normalised units."""
    episode_errors: tuple[float, ...] = ()
    """Squared norms behind `error`, episode by episode in the order of their numbers: reports on the same frames can be compared in
    pairs."""
    episode_references: tuple[float, ...] = ()
    """Those of the teacher's chunks."""


class _Sums:
    """Squared norms per episode, `[E, C, A]`: memory does not grow with the number of frames."""

    def __init__(self, episodes: int, shape: tuple[int, int], action_dim: int) -> None:
        real = (shape[0], action_dim)
        self.error, self.reference = np.zeros((episodes, *shape)), np.zeros((episodes, *shape))
        self.physical, self.physical_reference = np.zeros((episodes, *real)), np.zeros((episodes, *real))
        self.recorded, self.recorded_reference = np.zeros((episodes, *real)), np.zeros((episodes, *real))
        self.jerk = 0.0
        self.count = 0
        self.chunks = 0

    def add(
        self,
        episode: np.ndarray,
        sampled: Float[np.ndarray, "F M C A"],
        reference: Float[np.ndarray, "F M C A"],
        recorded: Float[np.ndarray, "F C A"],
        is_pad: Bool[np.ndarray, "F C"],
        transforms: Transforms,
    ) -> None:
        real = self.physical.shape[-1]
        np.add.at(self.error, episode, _squares(sampled - reference))
        np.add.at(self.reference, episode, _squares(reference))
        ours, theirs = transforms.unnormalize_action(sampled), transforms.unnormalize_action(reference)
        np.add.at(self.physical, episode, _squares(ours - theirs))
        np.add.at(self.physical_reference, episode, _squares(theirs))
        inside = ~is_pad[:, None, :, None]
        truth = np.broadcast_to(recorded[:, None, :, :real], (*sampled.shape[:-1], real))
        np.add.at(self.recorded, episode, _squares((sampled[..., :real] - truth) * inside))
        np.add.at(self.recorded_reference, episode, _squares(truth * inside))
        jerk = third_difference(sampled[..., :real])
        self.jerk += float(np.sum(np.square(jerk, dtype=np.float64)))
        self.count += jerk.size
        self.chunks += sampled.shape[0] * sampled.shape[1]


def _squares(x: np.ndarray) -> np.ndarray:
    return np.sum(np.square(x, dtype=np.float64), axis=1)


def measure_fidelity(trial: Trial, frames: str, positions: Sequence[int]) -> list[Fidelity]:
    """Same-noise errors of every candidate on one set of frames, in one pass over it."""
    config, settings, reference = trial.config, trial.settings, trial.reference
    number = np.unique(episode_of(trial.source)[list(positions)], return_inverse=True)[1]
    order = {position: int(n) for position, n in zip(positions, number, strict=True)}
    shape = (config.chunk_size, config.max_action_dim)
    sums = {c.label: _Sums(int(number.max()) + 1, shape, trial.action_dim) for c in trial.policies}
    for part in trial.batches(positions, task=f"errors on {frames} frames"):
        noise = noise_for(part, settings.noises, config, settings.seed)
        goal = chunks(reference, part.memories, noise)[: part.valid]
        episode = np.array([order[position] for position in part.positions.tolist()])
        recorded, is_pad = (np.asarray(x)[: part.valid] for x in (part.batch.actions, part.batch.action_is_pad))
        for candidate in trial.policies:
            sampled = (
                goal if candidate.label == reference.label else chunks(candidate, part.memories, noise)[: part.valid]
            )
            sums[candidate.label].add(episode, sampled, goal, recorded, is_pad, trial.transforms)
    return [_fidelity(c, frames, sums[c.label], trial.action_dim, settings) for c in trial.policies]


def _fidelity(candidate: Candidate, frames: str, sums: _Sums, real: int, settings: Settings) -> Fidelity:
    error, reference = sums.error[..., :real], sums.reference[..., :real]

    def over_positions(upto: int) -> Estimate:
        return relative_error(error[:, :upto].sum((1, 2)), reference[:, :upto].sum((1, 2)), seed=settings.seed)

    chunk = error.shape[1]
    padded_count = sums.chunks * chunk * (sums.error.shape[-1] - real)
    padded = float(root_quotient(sums.error[..., real:].sum(), sums.reference[..., real:].sum()))
    return Fidelity(
        name=candidate.subject.name,
        num_steps=candidate.num_steps,
        frames=frames,
        error=over_positions(chunk),
        executed={str(n): over_positions(n) for n in settings.n_action_steps if n <= chunk},
        per_dim=tuple(root_quotient(error.sum((0, 1)), reference.sum((0, 1))).tolist()),
        per_position=tuple(root_quotient(error.sum((0, 2)), reference.sum((0, 2))).tolist()),
        padded_error=padded if sums.error.shape[-1] > real else None,
        padded_rms=float(np.sqrt(sums.reference[..., real:].sum() / max(padded_count, 1))),
        physical_error=relative_error(
            sums.physical.sum((1, 2)), sums.physical_reference.sum((1, 2)), seed=settings.seed
        ),
        rmse=tuple(np.sqrt(sums.physical.sum((0, 1)) / (sums.chunks * chunk)).tolist()),
        recorded_error=relative_error(
            sums.recorded.sum((1, 2)), sums.recorded_reference.sum((1, 2)), seed=settings.seed
        ),
        jerk=float(np.sqrt(sums.jerk / sums.count)) if sums.count else 0.0,
        episode_errors=tuple(error.sum((1, 2)).tolist()),
        episode_references=tuple(reference.sum((1, 2)).tolist()),
    )
