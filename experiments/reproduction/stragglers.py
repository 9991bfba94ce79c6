"""Rows that are robustness: how much longer a batch takes when every device is slow at random (DSP, Table 2).

Simulated: K equal stages on devices of their own, a backward twice as long as a forward, free transfers, and in every
tick each device slow with the row's probability, for all that it does in this tick. Measured: the pipeline itself at
work, its devices slowed as `slow_devices` says. On accelerators it trains the row's network; CPU devices share cores,
so there the network is a tiny one, and each device sleeps for as long as its work would take.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.measure.entrants import Entrant
from experiments.reproduction.kind import Column, Emit, Kind, Result, Scale
from experiments.reproduction.predictions import BACKWARD, schedule_of
from experiments.reproduction.slow_devices import SlowDispatcher, Slowness
from experiments.reproduction.speed import pipelined
from jaxdecouple.schedules import BACKWARD as BACKWARD_KIND
from jaxdecouple.schedules import FORWARD, Schedule, redoes_forward

SIMULATED_BATCHES = 2000
UNIT = 0.004  # seconds of a forward on an emulated device: much longer than a dispatch takes the host
TINY = {"model": "mlp", "image_size": 8, "batch_size": 8, "num_classes": 10}


def scaled(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The row's settings; at the small scale, of emulated devices."""
    if scale.name == "small":
        return {**settings, **TINY, "ticks": 50, "emulated": True}
    return {**settings, "ticks": 200, "emulated": False}


def run(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    """Simulates and measures once for each seed, of what is drawn at random.

    Raises:
      ValueError: there are fewer devices than stages.
    """
    schedule, entrant = schedule_of(settings), pipelined(settings)
    seconds = (
        [_UNITS_OF_INNER] * (schedule.num_stages - 1) + [_UNITS_OF_LAST]
        if settings["emulated"]
        else _measured_seconds(entrant)
    )
    slow = Slowness(seconds, settings["percent"], settings["probability"], settings["emulated"])
    for seed in seeds:
        random = np.random.default_rng(seed)
        simulated = simulated_slowdown(schedule, slow.percent, slow.probability, random)
        emit(seed, {"simulated": simulated, "measured": _measured(entrant, slow, settings["ticks"], random)})
    jax.clear_caches()


def simulated_slowdown(schedule: Schedule, percent: float, probability: float, random: np.random.Generator) -> float:
    """How much longer a batch takes, in percent."""

    def makespan(slowness: np.ndarray) -> float:
        half = SIMULATED_BATCHES // 2  # the first half fills the queues
        ends = ends_of(schedule, slowness)
        return ends[-1] - ends[half]

    shape = (SIMULATED_BATCHES + schedule.drain + 1, schedule.num_stages)
    slow = 1 + percent / 100 * (random.random(shape) < probability)
    return float(100 * (makespan(slow) / makespan(np.ones(shape)) - 1))


def ends_of(schedule: Schedule, slowness: np.ndarray) -> np.ndarray:
    """When the last backward of each batch ends: equal stages, free transfers, a device for each stage.

    Every operation starts when its device is free and its input is there.

    Args:
      schedule: what is dispatched.
      slowness: [ticks, K], how many times longer the operations of a stage take in a tick.
    """
    last = schedule.num_stages - 1
    redone = 1.0 if redoes_forward(schedule.weights) else 0.0
    seconds = {FORWARD: 1.0, BACKWARD_KIND: BACKWARD + redone}
    batches = len(slowness) - schedule.drain - 1
    free = [0.0] * (last + 1)
    done: dict[tuple[Any, int, int], float] = {}
    for tick, ops in schedule.run(batches):
        for op in ops:
            above = (FORWARD if op.stage + 1 == last else BACKWARD_KIND, op.stage + 1)
            source = (FORWARD, op.stage - 1) if op.kind is FORWARD else above
            length = 1 + BACKWARD if op.stage == last else seconds[op.kind]
            start = max(free[op.stage], done.get((*source, op.batch), 0.0))
            free[op.stage] = start + length * slowness[tick, op.stage]
            done[op.kind, op.stage, op.batch] = free[op.stage]
    first = BACKWARD_KIND if last else FORWARD
    return np.array([done[first, 0, n] for n in range(batches)])


_UNITS_OF_INNER = {  # both methods of the table redo the forward
    "forward": UNIT,
    "backward": (BACKWARD + 1) * UNIT,
    "backward_forward": (BACKWARD + 2) * UNIT,
}
_UNITS_OF_LAST = {"train": (BACKWARD + 1) * UNIT}


def _measured_seconds(entrant: Entrant) -> list[dict[str, float]]:
    """Of each function of each stage's program, alone on its device."""
    found = entrant.meter.round(0.3)
    inner = [
        {"forward": forward, "backward": max(0.0, batch - forward), "backward_forward": batch}
        for forward, batch in zip(found.forward, found.batch, strict=False)
    ]
    return [*inner, {"train": found.batch[-1]}]


def _measured(entrant: Entrant, slow: Slowness, ticks: int, random: np.random.Generator) -> float:
    """In percent: how much longer the same ticks take with slow devices than with even ones, one after the other."""

    def rate(slowness: Slowness) -> float:
        slow = SlowDispatcher(entrant.pipeline, slowness, random)
        entrant.loop.step = functools.partial(entrant.pipeline.step, dispatcher=slow)
        entrant.loop.run(ticks // 4)
        return entrant.loop.images_per_second(ticks)

    even = rate(dataclasses.replace(slow, percent=0.0))
    return 100 * (even / rate(slow) - 1)


def _simulated(result: Result) -> float:
    return result["simulated"]


KIND = Kind(
    scaled,
    run,
    {
        "slowdown": (
            "slow-down, %",
            (
                Column("simulated, K devices, %", _simulated, 1),
                Column("measured, devices at hand, %", lambda result: result["measured"], 1),
            ),
        )
    },
)
