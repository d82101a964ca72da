"""The choice among several chunks of one observation, each of which the policy might have taken alone.

Backward coherence (Liu et al. 2024, "Bidirectional Decoding", arXiv 2408.17355) takes the chunk that is nearest to what is left of
the chunk before. So a policy that can do a task in two ways stays with the way it has begun. Every candidate is a sample of the
policy; nothing leads it off the learned distribution, as guidance does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

DECAY = 0.5
"""Weight of each action beside the one before: that of the method's authors for diffusion policies."""


def choose(
    chunks: Float[np.ndarray, "B K C d"], left_over: Sequence[Float[np.ndarray, "_ d"]] | None = None
) -> Int[np.ndarray, " B"]:
    """The index of one of K chunks for each observation, all in the policy's normalised units.

    With a left-over of T actions it is the chunk whose first T actions are nearest to it; the squared distance of the i-th of them
    counts `DECAY`^i. Without one, or where T is 0, it is the medoid: the chunk with the smallest sum of distances to the others. Of
    equals the first is taken.
    """
    rows = [None] * len(chunks) if left_over is None else left_over
    pairs = zip(chunks, rows, strict=True)
    return np.array([_medoid(own) if row is None or not len(row) else _nearest(own, row) for own, row in pairs])


def _nearest(chunks: Float[np.ndarray, "K C d"], left_over: Float[np.ndarray, "T d"]) -> int:
    weights = DECAY ** np.arange(len(left_over))
    distances = np.sum(np.square(chunks[:, : len(left_over)] - left_over), axis=2)
    return int(np.argmin(distances @ weights))


def _medoid(chunks: Float[np.ndarray, "K C d"]) -> int:
    flat = chunks.reshape(len(chunks), -1)
    # One candidate at a time: all differences at once would take K times the memory of the chunks.
    return int(np.argmin([np.linalg.norm(flat - one, axis=1).sum() for one in flat]))
