"""A metric is a number that says how good outputs are, and that has a mean over batches of any size.

It is a function ``(outputs, targets)`` of device arrays that gives one of

* a scalar, the mean of the batch's examples;
* a pair ``(total, count)``, where examples do not count alike: positions that are masked count nothing, say;
* ``None``, where it says nothing about such targets: accuracy, where they are no labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.engine.losses import label_hits, predicts_labels, token_losses
from jaxdecouple.network.trees import PyTree, count_examples, describe

MetricFunction = Callable[[PyTree, PyTree], Any]
Sums = tuple[jax.Array, jax.Array]  # total, count


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric whose mean is not yet what is reported: perplexity is e to the mean loss.

    Attributes:
      measure: ``(outputs, targets)`` -> a scalar, ``(total, count)`` or ``None``.
      finish: from the mean, over one batch or over many, to the number that is reported.
    """

    measure: MetricFunction
    finish: Callable[[Any], Any] = lambda mean: mean

    def sums(self, outputs: PyTree, targets: PyTree) -> Sums | None:
        """``(total, count)`` of a batch; a scalar counts as often as there are examples."""
        found = self.measure(outputs, targets)
        if found is None:
            return None
        if isinstance(found, tuple):
            total, count = found
            return jnp.asarray(total), jnp.asarray(count)
        found = jnp.asarray(found)
        examples = count_examples(targets) or count_examples(outputs) or 1
        return found * examples, jnp.asarray(examples)

    def value(self, sums: Sums) -> jax.Array:
        """The number that is reported; NaN where nothing was counted."""
        total, count = sums
        return self.finish(total / count)


MetricFunctions = Mapping[str, Metric | MetricFunction]


def as_metrics(metrics: MetricFunctions | None, loss: Callable) -> dict[str, Metric]:
    """Metrics by name; for ``None``, accuracy, where ``loss`` says that it has a meaning.

    Raises:
      ValueError: no mapping of functions, or a name that is taken.
    """
    if metrics is None:
        metrics = {"accuracy": label_hits} if predicts_labels(loss) else {}
    if not isinstance(metrics, Mapping) or not all(callable(getattr(m, "measure", m)) for m in metrics.values()):
        raise ValueError(
            f"metrics is {metrics!r}; write a dict from names to functions of outputs and targets, such as "
            "{'accuracy': jaxdecouple.accuracy}"
        )
    if "loss" in metrics:
        raise ValueError("a metric is named 'loss', as what is trained is; write another name")
    return {name: each if isinstance(each, Metric) else Metric(each) for name, each in metrics.items()}


def sums_of(metrics: Mapping[str, Metric], outputs: PyTree, targets: PyTree) -> dict[str, Sums]:
    """The sums of a batch, of those metrics that say something about it."""
    found = {name: metric.sums(outputs, targets) for name, metric in metrics.items()}
    return {name: sums for name, sums in found.items() if sums is not None}


def check_metrics(metrics: Mapping[str, Metric], outputs: PyTree, targets: PyTree) -> None:
    """Refuses a metric that cannot take such outputs and targets, or gives no scalars, by shapes alone.

    Raises:
      ValueError: the metric fails, or gives something else.
    """
    for name, metric in metrics.items():
        given = f"outputs {describe(outputs)} and targets {describe(targets)}"
        try:
            sums = jax.eval_shape(metric.sums, outputs, targets)
        except Exception as error:
            raise ValueError(f"the metric {name!r} cannot take {given}: {error}") from error
        if sums is not None and any(leaf.shape != () for leaf in sums):
            raise ValueError(
                f"the metric {name!r} gives {describe(sums)} for {given}; write one that gives a scalar, the batch's "
                "mean, or a pair of scalars, a total and a count"
            )


def language_metrics(bytes_per_token: float | None = None) -> dict[str, Metric]:
    """What language models are measured by: perplexity, and bits per byte where a token's bytes are known.

    Positions whose target is negative count nothing.

    Args:
      bytes_per_token: mean length of a token, in bytes of text: 1 where tokens are bytes.

    Raises:
      ValueError: it is not positive.
    """
    metrics = {"perplexity": Metric(token_losses, jnp.exp)}
    if bytes_per_token is not None:
        if not bytes_per_token > 0:
            raise ValueError(f"bytes_per_token is {bytes_per_token}; write the mean length of a token, in bytes")
        bits = 1 / (math.log(2) * bytes_per_token)
        metrics["bits_per_byte"] = Metric(token_losses, lambda nats: bits * nats)
    return metrics


class Evaluation(NamedTuple):
    """What a test of the network found: means over all examples of what its batches gave.

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
