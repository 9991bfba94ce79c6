"""A partition cuts a network, a sequence of layers, into consecutive stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxdecouple.adapters import as_layer
from jaxdecouple.schedules.schedule import as_integer
from jaxdecouple.stage import Layer, PyTree, Stage, shape_of, shapes_after


def partition(
    layers: Sequence[Any],
    num_stages: int | None = None,
    *,
    sample: PyTree | None = None,
    boundaries: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
) -> tuple[Stage, ...]:
    """Cuts ``layers`` into stages.

    The cut is at ``boundaries`` if given; else it minimises the cost of the most expensive stage, where a layer's cost
    is the one given, or the floating-point operations of its forward for inputs shaped like ``sample``, or else 1.

    Args:
      layers: Flax modules, functions or `Layer` objects, in order.
      num_stages: K; may be left out when ``boundaries`` are given.
      sample: an input of the network, [B, ...]; only shapes and dtypes matter. With it, layers that do not fit
        together are found here.
      boundaries: K - 1 increasing layer indices at which a new stage starts; (5,) cuts in front of layer 5.
      costs: one number per layer, at least 0.

    Raises:
      ValueError: more stages than layers, boundaries out of range or order, wrong costs, layers that do not fit.
    """
    layers = tuple(as_layer(layer) for layer in layers)
    if boundaries is not None:
        boundaries = _check_boundaries(tuple(map(as_integer, boundaries)), len(layers), num_stages)
    elif num_stages is None:
        raise ValueError("partition needs num_stages, or boundaries")
    elif not 1 <= num_stages <= len(layers):
        raise ValueError(f"num_stages is {num_stages}; the network has {len(layers)} layers: write 1..{len(layers)}")
    if costs is not None and len(costs) != len(layers):
        raise ValueError(f"got {len(costs)} costs, but the network has {len(layers)} layers; write one cost per layer")
    if sample is not None:
        counts = flops(layers, sample)
        costs = counts if costs is None else costs
    if boundaries is None:
        boundaries = balance([1.0] * len(layers) if costs is None else costs, num_stages)
    starts = (0, *boundaries, len(layers))
    return tuple(Stage(layers[a:b], first=a) for a, b in zip(starts, starts[1:], strict=False))


def balance(costs: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """The boundaries that minimise the largest stage cost; the earliest of several equally good ones.

    Args:
      costs: of each layer, at least 0.
      num_stages: K, at most ``len(costs)``; no stage is left empty.
    """
    costs = [float(cost) for cost in costs]
    if len(costs) < num_stages or any(not 0 <= cost < float("inf") for cost in costs):
        raise ValueError(f"got {len(costs)} costs for {num_stages} stages; write one number of at least 0 per layer")
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    count = len(costs)
    # worst[i]: the largest stage cost of the best cut of layers i.. into the stages so far, from the back.
    worst = [total[count] - total[i] for i in range(count + 1)]
    choices = []
    for stages in range(2, num_stages + 1):
        best, choice = [float("inf")] * (count + 1), [count] * (count + 1)
        for i in range(count - stages + 1):
            for cut in range(i + 1, count - stages + 2):
                slowest = max(total[cut] - total[i], worst[cut])
                if slowest < best[i]:
                    best[i], choice[i] = slowest, cut
        worst = best
        choices.append(choice)
    boundaries, position = [], 0
    for choice in reversed(choices):
        position = choice[position]
        boundaries.append(position)
    return tuple(boundaries)


def flops(layers: Sequence[Layer], sample: PyTree) -> list[float]:
    """Floating-point operations of each layer's forward for inputs shaped like ``sample``, as XLA counts them.

    Raises:
      ValueError: a layer cannot take what the layer before it puts out.
    """
    x, counts = shape_of(sample), []
    for index, layer in enumerate(layers):
        stage = Stage((layer,), first=index)
        params, model_state = jax.eval_shape(lambda key, stage=stage, x=x: stage.init(key, x), jax.random.key(0))
        name = stage.keys[0]

        def forward(params: PyTree, state: PyTree, x: PyTree, key: jax.Array, stage: Stage = stage) -> PyTree:
            return stage.apply(params, state, x, key=key, batch=0, train=True)[0]

        analysis = jax.jit(forward).lower(params, model_state, x, jax.random.key(0)).cost_analysis() or {}
        counts.append(max(0.0, float(analysis.get("flops", 0.0))))
        x = shapes_after(layer, params.get(name, {}), model_state.get(name, {}), x)[0]
    return counts


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
