"""Rows that are memory: the most bytes that the devices of a pipeline hold, against back-propagation on as many.

The peaks of the K devices are added up: the mean of them, which ADL reports, has the same ratio to back-propagation's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.measure.memory import peak_bytes
from experiments.papers import small
from experiments.papers.kinds.predictions import changed
from experiments.papers.kinds.speed import OPTIONS, backprop_of, pipelined, shape_of
from experiments.papers.table import Column, Emit, Measure, Scale


def settings_of(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The row's settings; at the small scale, of a small network."""
    return changed({**settings, **(small.SPEED if scale.name == "small" else {})}, scale, OPTIONS)


def run(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    """Counts once for each seed, which is only a number here.

    Raises:
      ValueError: there are fewer devices than stages.
    """
    for seed in seeds:
        baseline, own = peaks(backprop_of(settings)), peaks(settings)
        emit(seed, {"peak_bytes": own, "baseline_bytes": baseline, "ratio": sum(own) / sum(baseline)})
    jax.clear_caches()


def peaks(settings: Mapping[str, Any]) -> list[int]:
    """The peak of each device, in bytes."""
    entrant, shape = pipelined(settings), shape_of(settings)
    ticks = 2 * entrant.pipeline.schedule.drain + 2 * entrant.accumulate + 2
    batches = itertools.islice(itertools.cycle(shape.distinct(entrant.batch_size)), ticks)
    state = entrant.pipeline.init(jax.random.key(0), shape.sample(entrant.batch_size))
    return peak_bytes(entrant.pipeline, state, batches)


MEMORY = Measure(
    kind="memory",
    settings=settings_of,
    run=run,
    unit="memory relative to BP",
    columns=(
        Column("memory relative to BP", lambda result: result["ratio"]),
        Column("MB, all devices", lambda result: sum(result["peak_bytes"]) / 1e6, 0),
    ),
    seeded=False,
)
