"""A partition cuts a network, a sequence of layers, into consecutive stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxdecouple.engine.checks import check_arrays
from jaxdecouple.network.adapters import as_layers
from jaxdecouple.network.layer import Layer, once_per_kind, walk
from jaxdecouple.network.stack import stack_layers
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree
from jaxdecouple.partitioning.profiling import Profile
from jaxdecouple.schedules import Weights, redoes_forward
from jaxdecouple.schedules.schedule import as_integer

Costs = Sequence[float] | Profile | Literal["flops", "params"]


def partition(
    layers: Any,
    num_stages: int | None = None,
    *,
    sample: PyTree | None = None,
    boundaries: Sequence[int] | None = None,
    costs: Costs | None = None,
    weights: Weights = "stash",
    scan: bool = True,
) -> tuple[Stage, ...]:
    """Cuts ``layers`` into stages.

    The cut is at ``boundaries`` if given; else it minimises the cost of the most expensive stage, and among the cuts
    that do, the bytes sent between stages where ``costs`` knows them. With a ``sample``, many identical layers
    in a row become one loop (`stack_layers`), after the cut, which may go anywhere.

    Args:
      layers: Flax modules, functions or `Layer` objects, in order; lists of such among them; or, instead, an
        ``nn.Sequential`` or ``nnx.Sequential`` of them.
      num_stages: K; may be left out when ``boundaries`` are given.
      sample: an input of the network, [B, ...]; only shapes and dtypes matter. With it, layers that do not fit
        together are found here.
      boundaries: K - 1 increasing layer indices at which a new stage starts; (5,) cuts in front of layer 5.
      costs: what a layer costs, forward and backward together. A `Profile`: the seconds measured (`profile`). A
        number of at least 0 for each layer. ``"flops"``: the floating-point operations of its forward, as XLA counts
        them; needs a sample, and is the default where there is one. ``"params"``: its parameters; needs a sample.
        Without anything: 1 each.
      weights: the policy of the schedule to come. Where the forward is redone, every stage but the last pays it twice
        (of costs other than a profile, a third is taken to be the forward).
      scan: whether many identical layers in a row become one loop, whose parameters are stacked along a new first
        axis. The optimizer sees each layer's in any case. Without, compilation takes longer.

    Raises:
      ValueError: more stages than layers, boundaries out of range or order, wrong costs, a profile of another model,
        layers that do not fit.
    """
    layers, num_stages = as_layers(layers), as_integer(num_stages)
    if not layers:
        raise ValueError("the network has no layers; write at least one for each stage")
    if num_stages is not None and not isinstance(num_stages, int):
        raise ValueError(f"num_stages is {num_stages!r}; write an integer")
    if isinstance(boundaries, int):
        raise ValueError(f"boundaries is {boundaries}; write a tuple, ({boundaries},), to cut in front of one layer")
    check_arrays(sample, "the sample is", "sample")
    if boundaries is not None and costs is None and sample is not None:
        costs = "params"  # nothing is chosen by them, and these are counted soonest
    known = _known(layers, sample, costs)
    if boundaries is not None:
        boundaries = _check_boundaries(tuple(map(as_integer, boundaries)), len(layers), num_stages)
    elif num_stages is None:
        raise ValueError("partition needs num_stages, or boundaries")
    elif not 1 <= num_stages <= len(layers):
        raise ValueError(
            f"num_stages is {num_stages}; the network has {len(layers)} layers: write 1..{len(layers)}" + _hint(layers)
        )
    else:
        boundaries = known.cut(num_stages, redoes_forward(weights))
    starts = (0, *boundaries, len(layers))
    return _stages(layers, starts, sample if scan else None)


def balance(
    costs: Sequence[float],
    num_stages: int,
    *,
    last: Sequence[float] | None = None,
    sent: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """The boundaries that minimise the largest stage cost; among those, the bytes sent; then the earliest.

    Args:
      costs: of each layer in a stage below the last, at least 0.
      num_stages: K, at most ``len(costs)``; no stage is left empty.
      last: of each layer in the last stage; by default the same.
      sent: bytes that a cut in front of each layer sends; by default all alike.
    """
    costs, last = _checked(costs, num_stages), _checked(costs if last is None else last, num_stages)
    count = len(costs)
    sends = np.zeros(count) if sent is None else np.asarray(sent, float)
    total, of_last = (np.concatenate([[0.0], np.cumsum(values)]) for values in (costs, last))
    worst = of_last[count] - of_last
    limit = _least(total, worst, num_stages)
    # For each i and number of stages: the fewest bytes, then the least largest cost, of a cut of the layers from i on.
    fewest, worst = np.where(worst <= limit, 0.0, np.inf), np.where(worst <= limit, worst, np.inf)
    fewest[count] = worst[count] = np.inf
    choices = []
    for _ in range(num_stages - 1):
        choice, next_fewest, next_worst = np.zeros(count + 1, int), *np.full((2, count + 1), np.inf)
        for i in range(count):
            cuts = np.arange(i + 1, count)
            cost = total[cuts] - total[i]
            largest, total_sent = (
                np.maximum(cost, worst[cuts]),
                np.where(cost <= limit, sends[cuts] + fewest[cuts], np.inf),
            )
            if not len(cuts) or not np.isfinite(total_sent.min()):
                continue
            largest = np.where(total_sent == total_sent.min(), largest, np.inf)
            best = int(largest.argmin())
            choice[i], next_fewest[i], next_worst[i] = cuts[best], total_sent[best], largest[best]
        fewest, worst = next_fewest, next_worst
        choices.append(choice)
    boundaries, position = [], 0
    for choice in reversed(choices):
        position = int(choice[position])
        boundaries.append(position)
    return tuple(boundaries)


def _least(total: np.ndarray, worst: np.ndarray, num_stages: int) -> float:
    """The least possible largest stage cost; ``worst[i]`` is that of the layers from i on as one stage."""
    count = len(total) - 1
    worst = np.where(np.arange(count + 1) == count, np.inf, worst)
    for _ in range(num_stages - 1):
        worst = np.array(
            [
                np.maximum(total[i + 1 : count] - total[i], worst[i + 1 : count]).min(initial=np.inf)
                for i in range(count)
            ]
            + [np.inf]
        )
    return float(worst[0])


def _checked(costs: Sequence[float], num_stages: int) -> list[float]:
    costs = [float(cost) for cost in costs]
    if len(costs) < num_stages or any(not 0 <= cost < math.inf for cost in costs):
        raise ValueError(f"got {len(costs)} costs for {num_stages} stages; write one number of at least 0 per layer")
    return costs


@dataclasses.dataclass(frozen=True)
class _Known:
    """Of each layer: its cost, the part of it that is the forward, and the bytes that a cut in front of it sends."""

    costs: Sequence[float]
    forward: Sequence[float]
    sent: Sequence[float] | None = None

    def cut(self, num_stages: int, redo: bool) -> tuple[int, ...]:
        below = [cost + f for cost, f in zip(self.costs, self.forward, strict=True)] if redo else self.costs
        return balance(below, num_stages, last=self.costs, sent=self.sent)


def _known(layers: tuple[Layer, ...], sample: PyTree | None, costs: Costs | None) -> _Known:
    if isinstance(costs, str) and costs not in ("flops", "params"):
        raise ValueError(f"costs is {costs!r}; write 'flops', 'params', a profile, or one number per layer")
    if isinstance(costs, str) and sample is None:
        raise ValueError(f"costs={costs!r} needs shapes: write sample=, an input of the network")
    if isinstance(costs, Profile):
        costs.check(layers, sample)
        return _Known(costs.costs, costs.forward, costs.sent)
    if not isinstance(costs, str | None) and len(costs) != len(layers):
        raise ValueError(f"got {len(costs)} costs, but the network has {len(layers)} layers; write one cost per layer")
    if sample is not None:
        if costs is None or isinstance(costs, str):
            costs = parameters(layers, sample) if costs == "params" else flops(layers, sample)
        else:
            parameters(layers, sample)  # finds layers that do not fit
    costs = [1.0] * len(layers) if costs is None else [float(cost) for cost in costs]
    return _Known(costs, [cost / 3 for cost in costs])


def _stages(layers: tuple[Layer, ...], starts: tuple[int, ...], x: PyTree | None) -> tuple[Stage, ...]:
    stages = []
    for a, b in zip(starts, starts[1:], strict=False):
        own = layers[a:b]
        if x is not None:
            own, x = stack_layers(own, x, first=a)
        stages.append(Stage(own, first=a))
    return tuple(stages)


def flops(layers: Sequence[Layer], sample: PyTree) -> list[float]:
    """Floating-point operations of each layer's forward for inputs shaped like ``sample``, as XLA counts them.

    Raises:
      ValueError: a layer cannot take what the layer before it puts out.
    """

    def count(layer: Layer, x: PyTree, params: PyTree, model_state: PyTree) -> float:
        def forward(params: PyTree, state: PyTree, x: PyTree, key: jax.Array) -> PyTree:
            return layer.apply(params, state, x, key=key, train=True)[0]

        analysis = jax.jit(forward).lower(params, model_state, x, jax.random.key(0)).cost_analysis() or {}
        return max(0.0, float(analysis.get("flops", 0.0)))

    count = once_per_kind(count)
    return [count(each.layer, each.x, each.params, each.model_state) for each in walk(layers, sample)]


def parameters(layers: Sequence[Layer], sample: PyTree) -> list[float]:
    """The number of parameters of each layer for inputs shaped like ``sample``.

    Raises:
      ValueError: a layer cannot take what the layer before it puts out.
    """
    return [float(sum(leaf.size for leaf in jax.tree.leaves(each.params))) for each in walk(layers, sample)]


def _hint(layers: Sequence[Layer]) -> str:
    """How there could be more layers."""
    for index, layer in enumerate(layers):
        if hasattr(layer.module, "layers"):
            return f", or list the layers of layer {index} ({layer.name}) one by one: [..., *sequential.layers, ...]"
    return ""


def _check_boundaries(boundaries: tuple[int, ...], num_layers: int, num_stages: int | None) -> tuple[int, ...]:
    if num_stages is not None and len(boundaries) != num_stages - 1:
        raise ValueError(
            f"boundaries {boundaries} cut the network into {len(boundaries) + 1} stages, but num_stages is "
            f"{num_stages}; write {num_stages - 1} boundaries, or leave one of the two out"
        )
    increasing = all(a < b for a, b in zip(boundaries, boundaries[1:], strict=False))
    if not increasing or any(not isinstance(b, int) or not 0 < b < num_layers for b in boundaries):
        raise ValueError(
            f"boundaries {boundaries} must be increasing layer indices of 1..{num_layers - 1}: the network has "
            f"{num_layers} layers, and every stage needs one"
        )
    return boundaries
