"""Which arrays of the two sides are compared with each other, for live tests and goldens alike; imports no torch."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]

# Adds the same number to all of a query's scores, unseen by softmax: its gradient is zero but for rounding.
WITHOUT_GRADIENT = ".self_attn.k_proj.bias"


class Compare(Protocol):
    """Takes one quantity of `report.QUANTITIES`: what was found, what was expected, and which of several tensors."""

    def __call__(self, quantity: str, found: np.ndarray, expected: np.ndarray, name: str = "") -> None: ...


def compare_preparation(compare: Compare, found: Arrays, expected: Arrays) -> None:
    """Images, masks, tokens, state and actions; stand-ins for cameras must be black and masked in LeRobot."""
    for name, value in expected.items():
        kind = name.split("/")[0]
        if kind in ("images", "image_mask") and name not in found:
            compare(kind, value, np.full_like(value, -1.0 if kind == "images" else False), name)
        elif kind in ("images", "image_mask", "state", "actions"):
            compare(kind, found[name], value, name)
    length = expected["tokens"].shape[1]
    compare("tokens", found["tokens"][:, :length], expected["tokens"], "tokens")
    compare("tokens", found["token_mask"][:, :length], expected["token_mask"].astype(bool), "token_mask")
    # LeRobot may pad to the longest task only; the rest must be padding.
    compare("tokens", found["token_mask"][:, length:], np.zeros_like(found["token_mask"][:, length:]), "token_mask")


def compare_network(compare: Compare, found: Arrays, expected: Arrays) -> None:
    """Image tokens, K and V of the layers that run, velocity, samples."""
    for name, value in found.items():
        kind = name.split("/")[0]
        if kind in ("key", "value"):
            # Trailing padding and stand-in cameras have rows in LeRobot only; valid rows come in the same order.
            compare("context", value[found["prefix_mask"]], expected[name][expected["prefix_mask"]], name)
        elif kind in ("vision", "velocity", "sample"):
            compare(kind, value, expected[name], name)


def compare_losses_and_gradients(compare: Compare, found: Arrays, expected: Arrays) -> None:
    """Both losses, and the gradient of every tensor that either side trains."""
    trained = {name for name in expected if name.startswith(("loss/", "grad/"))}
    assert set(found) == trained, f"trainable on one side only: {sorted(set(found) ^ trained)}"
    largest = max(float(np.abs(value).max()) for name, value in expected.items() if name.startswith("grad/"))
    for name, value in found.items():
        if name.endswith(WITHOUT_GRADIENT):
            assert max(np.abs(value).max(), np.abs(expected[name]).max()) < 1e-6 * largest, name
            continue
        compare("loss" if name.startswith("loss/") else "gradient", value, expected[name], name)
