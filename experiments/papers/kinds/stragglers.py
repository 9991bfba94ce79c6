"""Rows that are robustness: how much longer a batch takes when every device is slow at random (DSP, Table 2).

Simulated: K equal stages on devices of their own, a backward twice as long as a forward, free transfers, and in every
tick each device slow with the row's probability, for all that it does in this tick; devices that wait for their data
alone, and in lock-step, as in the published code of Features Replay. Measured: the pipeline itself at
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

import jaxdecouple as jd
from experiments.measure.entrants import Entrant
from experiments.papers.kinds.predictions import BACKWARD, changed, equal_stages, schedule_of
from experiments.papers.kinds.slow_devices import SlowDevices, Slowness
from experiments.papers.kinds.speed import OPTIONS, pipelined
from experiments.papers.scales import Scale
from experiments.papers.table import Column, Emit, Measure
from jaxdecouple.schedules import Schedule

SIMULATED_BATCHES = 2000
UNIT = 0.004  # seconds of a forward on an emulated device: much longer than a dispatch takes the host
TINY = {"model": "mlp", "image_size": 8, "batch_size": 8, "num_classes": 10}


def settings_of(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The row's settings; at the small scale, of emulated devices."""
    small = {**TINY, "ticks": 50, "emulated": True}
    own = small if scale.name == "small" else {"ticks": 200, "emulated": False}
    return changed({**settings, **own}, scale, {**OPTIONS, "percent": float, "probability": float, "ticks": int})


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
        drawn = _drawn(schedule, slow.percent, slow.probability, random)
        simulated, joined = (simulated_slowdown(schedule, drawn, lock_step=lock) for lock in (False, True))
        measured = _measured(entrant, slow, settings["ticks"], random)
        emit(seed, {"simulated": simulated, "lock_step": joined, "measured": measured})
    jax.clear_caches()


def simulated_slowdown(schedule: Schedule, slowness: np.ndarray, *, lock_step: bool = False) -> float:
    """How much longer a batch takes, in percent, with a slowness of each stage in each tick; at most the largest."""
    return 100 * (_seconds(schedule, slowness, lock_step) / _seconds(schedule, None, lock_step) - 1)


def _drawn(schedule: Schedule, percent: float, probability: float, random: np.random.Generator) -> np.ndarray:
    """How many times longer each stage takes in each tick: [ticks, K]."""
    shape = (SIMULATED_BATCHES + schedule.drain + 1, schedule.num_stages)
    return 1 + percent / 100 * (random.random(shape) < probability)


def _seconds(schedule: Schedule, slowness: np.ndarray | None, lock_step: bool) -> float:
    """From the update of the middle batch at the lowest stage to that of the last: the queues are long full."""
    run = jd.timeline(
        schedule, equal_stages(schedule), num_batches=SIMULATED_BATCHES, slowness=slowness, lock_step=lock_step
    )
    updates = run.end[(run.stage == 0) & (run.kind == ("F" if schedule.learns_in_forward(0) else "B"))]
    return float(updates[-1] - updates[SIMULATED_BATCHES // 2])


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
        slow = SlowDevices(entrant.pipeline, slowness, random)
        entrant.loop.step = functools.partial(entrant.pipeline.step, observer=slow)
        entrant.loop.run(ticks // 4)
        return entrant.loop.images_per_second(ticks)

    even = rate(dataclasses.replace(slow, percent=0.0))
    return 100 * (even / rate(slow) - 1)


SLOWDOWN = Measure(
    kind="stragglers",
    settings=settings_of,
    run=run,
    unit="slow-down, %",
    columns=(
        Column("simulated, K devices, %", lambda result: result["simulated"], 1),
        Column("simulated in lock-step, %", lambda result: result["lock_step"], 1),
        Column("measured, devices at hand, %", lambda result: result["measured"], 1),
    ),
)
