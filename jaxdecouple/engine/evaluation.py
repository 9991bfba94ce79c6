"""What a test of the network found: means over all examples of what its batches gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Evaluation(NamedTuple):
    """Means over all examples.

    ``accuracy`` is over all labels but negative ones; ``None`` where targets are not labels, or with a loss of one's
    own, which may leave labels out or mean something else by them.
    """

    loss: float
    accuracy: float | None
    examples: int


def evaluation_of(scores: Sequence[tuple[jax.Array, Any]], sizes: Sequence[int]) -> Evaluation:
    """The evaluation; waits for the devices.

    Args:
      scores: of each batch, the mean loss, and how many labels were found and how many there are, or ``None``.
      sizes: of each batch.
    """
    losses, hits = zip(*jax.device_get(scores), strict=True)
    found, labels = (None, 0) if hits[0] is None else np.sum(hits, axis=0)
    return Evaluation(
        loss=float(np.average(np.asarray(losses, np.float64), weights=sizes)),
        accuracy=None if found is None else float(found / labels) if labels else math.nan,
        examples=sum(sizes),
    )
