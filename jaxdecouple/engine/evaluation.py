"""What a test of the network found: means over all examples of what its batches gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdecouple.engine.metrics import Metric


class Evaluation(NamedTuple):
    """What a network does on all batches.

    Attributes:
      loss: mean over all examples; with `token_cross_entropy`, over all targets that are not negative.
      accuracy: that among the metrics, over labels that are not negative; ``None`` where it is not measured: where
        targets are not labels, or with a loss of one's own, which may mean something else by them.
      examples: how many there were.
      metrics: by name, of all that was counted.
    """

    loss: float
    accuracy: float | None
    examples: int
    metrics: Mapping[str, float]


def evaluation_of(
    scores: Sequence[tuple[jax.Array, jax.Array | None, Mapping[str, Any]]],
    sizes: Sequence[int],
    metrics: Mapping[str, Metric],
) -> Evaluation:
    """The evaluation; waits for the devices.

    Args:
      scores: of each batch, the mean loss, over how many targets that is (``None``: all of its size), and the sums of
        the metrics that say something about it.
      sizes: of each batch.
      metrics: by name.
    """
    losses, counts, sums = zip(*jax.device_get(scores), strict=True)
    found = {}
    for name, metric in metrics.items():
        batches = [each[name] for each in sums if name in each]
        if batches:
            total, count = np.asarray(batches, np.float64).sum(axis=0)
            found[name] = float(metric.finish(total / count if count else math.nan))
    weights = [size if count is None else int(count) for size, count in zip(sizes, counts, strict=True)]
    loss = float(np.average(np.asarray(losses, np.float64), weights=weights)) if any(weights) else math.nan
    return Evaluation(loss, found.get("accuracy"), sum(sizes), found)
