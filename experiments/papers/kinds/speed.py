"""Rows that are speeds: images per second of a method against back-propagation, the whole network on one device.

Both are measured in turn, in the same run, as `experiments.benchmark` does; methods are cut by measured layers.
Where there are fewer devices than stages, stages share them, and the measured ratio says little of a machine with K
devices: for that the timeline is asked, with the measured times of the operations, none of them slowed by another, and
without the host's time. It is asked for lock-step too, in which the papers' codes run.

Other rows are memory: the most bytes that the devices of a pipeline hold, against back-propagation on as many. The
peaks of the K devices are added up: the mean of them, which ADL reports, has the same ratio to back-propagation's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxdecouple as jd
from experiments import devices
from experiments.measure import entrants, throughput
from experiments.measure.entrants import Entrant
from experiments.measure.memory import peak_bytes
from experiments.measure.operation_times import Round, as_times, joined_stages
from experiments.measure.workload import Workload
from experiments.papers import scales
from experiments.papers.kinds.predictions import METHOD, changed, schedule_of
from experiments.papers.scales import Scale
from experiments.papers.table import Column, Emit, Measure, Result
from experiments.training.methods import METHODS
from jaxdecouple import schedules

REPEATS = {"small": 3, "medium": 5, "paper": 5}
SECONDS = {"small": 0.4, "medium": 10.0, "paper": 10.0}  # FDG, section V-B: "averaged in 10 seconds"
SHAPE = ("model", "image_size", "batch_size", "num_classes")
OPTIONS: dict[str, type] = {
    **{"method": str, "num_stages": int, "accumulate": int, "order": str, "weights": str, "p": tuple, "m": tuple},
    **{"model": str, "image_size": int, "batch_size": int, "num_classes": int, "repeats": int, "seconds": float},
    **{"group_size": int},
}


def settings_of(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The row's settings, with those of the measurement; at the small scale, of a small network."""
    chosen = {**settings, **(scales.SPEED if scale.name == "small" else {})}
    measured = {"repeats": REPEATS[scale.name], "seconds": SECONDS[scale.name]}
    return changed({**chosen, **measured}, scale, OPTIONS)


def run(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    """Measures once for each seed, which is only a number here."""
    if settings.get("baseline_stages", 1) == 1:
        baseline = _one_stage(shape_of({**settings, "num_stages": 1}))
    else:  # the paper's BP-K: the network does not fit on one device
        baseline = pipelined(backprop_of(settings), measured=True, share=True)
    group_size = settings.get("group_size", 1)
    if group_size > 1:
        own = pipelined(settings, measured=True)
        # What each device of a group does, as if it had one of its own; what they tell one another is not counted.
        alone = _one_stage(shape_of({**settings, "batch_size": settings["batch_size"] // group_size}))
    else:
        own = alone = baseline if settings["method"] == "backprop" else pipelined(settings, measured=True, share=True)
    for seed in seeds:
        emit(seed, _measure(baseline, own, alone, settings))


def backprop_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same network and stages, trained by back-propagation."""
    own = (*METHOD, "whole_batches")
    return {**{name: value for name, value in settings.items() if name not in own}, "method": "backprop"}


def shape_of(settings: Mapping[str, Any]) -> Workload:
    """Network and images, as the benchmark's settings."""
    return Workload(
        **{name: settings[name] for name in SHAPE if name in settings},
        num_stages=settings["num_stages"],
        repeats=settings.get("repeats", 1),
        seconds=settings.get("seconds", 1.0),
    )


def pipelined(settings: Mapping[str, Any], *, measured: bool = False, share: bool = False) -> Entrant:
    """The method's pipeline, compiled and filled. Networks are cut between blocks, as in the papers.

    Args:
      settings: of a row. With ``whole_batches``, a tick takes a whole batch, not an M-th of it; with ``group_size``,
        so many devices share the batch of each stage.
      measured: cut the network by measured layers, not by operation counts.
      share: put several stages on one device where devices are fewer.
    """
    shape, schedule = shape_of(settings), schedule_of(settings)
    name, every = settings["method"], settings.get("accumulate", 1)
    costs = _profile(shape_of({**settings, "num_stages": 1})) if measured else None
    places = devices.of_stages(shape.num_stages, share=share, group_size=settings.get("group_size", 1))
    stages = jd.partition(
        _layers(shape), shape.num_stages, sample=shape.sample(), costs=costs, weights=schedule.weights
    )
    network = METHODS[name].auxiliary
    auxiliary = network and network(shape.num_classes, dtype=jnp.dtype(shape.dtype))
    whole = settings.get("whole_batches", False)
    return entrants.pipelined(name, shape, stages, schedule, places, every, auxiliary, whole)


def _layers(shape: Workload) -> list[Any]:
    return jd.models.by_name(shape.model, shape.num_classes, small_images=shape.image_size < 64)


@functools.cache
def _profile(shape: Workload) -> jd.Profile:
    """The network's layers as measured, once in a process: they know nothing of methods and stages."""
    return jd.profile(_layers(shape), shape.sample(), device=jax.devices()[0])


@functools.lru_cache(maxsize=2)
def _one_stage(shape: Workload) -> Entrant:
    return entrants.one_stage(shape, devices.of_stages(1))


def _measure(baseline: Entrant, entrant: Entrant, alone: Entrant, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says; the timeline is made of the operations of ``alone``, which does what the row's devices do."""
    repeats, seconds = settings["repeats"], settings["seconds"]
    loops = {"baseline": baseline.loop, "own": entrant.loop}
    rates = throughput.measure(loops, repeats=repeats, seconds=seconds)
    one, own = rates["baseline"], rates["own"]
    meters = {"baseline": baseline.meter, "alone": alone.meter}
    rounds = throughput.in_turn({who: functools.partial(m.round, seconds / 8) for who, m in meters.items()}, repeats)
    measured = rounds["baseline" if alone is baseline else "alone"]
    ours = _timeline(alone, measured)
    seconds = _timeline(baseline, rounds["baseline"]).seconds_per_batch / baseline.batch_size
    joined = None
    if settings["method"] != "gpipe":  # whose ticks are parts of an iteration
        joined = _timeline(alone, measured, lock_step=True)
    staleness = schedules.staleness(entrant.pipeline.schedule, entrant.accumulate)
    return {
        "images_per_second": statistics.median(own),
        "baseline_images_per_second": statistics.median(one),
        "speedup": throughput.ratio(own, one),
        "predicted_speedup": _speedup(seconds, entrant, ours),
        "lock_step_speedup": _speedup(seconds, entrant, joined) if joined else None,
        "lock_step_busy": joined.busy if joined else None,
        "staleness": staleness,
        "layers_per_stage": [stage.num_layers for stage in entrant.pipeline.stages],
        "devices": len({device for group in entrant.pipeline.placement.groups for device in group}),
        "device": jax.devices()[0].device_kind,
    }


def _timeline(entrant: Entrant, rounds: Sequence[Round], *, lock_step: bool = False) -> jd.Timeline:
    """With a device for each stage, from measured times."""
    assert entrant.pipeline is not None  # so that it has operations
    schedule, weights = entrant.pipeline.schedule, entrant.pipeline.weights
    times = as_times(rounds, weights, joined_stages(schedule), host=0.0, learning=schedule.learning)
    if lock_step and schedule.num_stages > 1 and not schedule.is_local:
        # The last stage is measured as a whole; others wait for its forward: as large a part as of the other stages.
        inner = range(schedule.num_stages - 1)
        whole = sum(times.forward[k] + times.backward[k] for k in inner)
        forward = sum(times.forward[k] for k in inner) / whole * times.forward[-1]
        backward = times.forward[-1] - forward
        times = dataclasses.replace(
            times, forward=[*times.forward[:-1], forward], backward=[*times.backward[:-1], backward]
        )
    return jd.timeline(schedule, dataclasses.replace(times, slowdown=()), lock_step=lock_step)


def _speedup(seconds: float, entrant: Entrant, run: jd.Timeline) -> float:
    """Over ``seconds`` per image."""
    return seconds * entrant.batch_size / run.seconds_per_batch


def _busy(result: Result) -> str | None:
    busy = result["lock_step_busy"]
    return busy and ", ".join(f"{100 * part:.0f}" for part in busy)


SPEED = Measure(
    kind="speed",
    settings=settings_of,
    run=run,
    unit="times the speed of BP",
    columns=(
        Column("predicted, K devices", lambda result: result["predicted_speedup"]),
        Column("predicted in lock-step", lambda result: result["lock_step_speedup"]),
        Column("devices busy in lock-step, %", _busy),
        Column("measured, devices at hand", lambda result: result["speedup"]),
        Column("devices", lambda result: result["devices"], 0),
        Column("images/s", lambda result: result["images_per_second"], 0),
    ),
    seeded=False,
)


def memory_settings_of(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The row's settings; at the small scale, of a small network."""
    return changed({**settings, **(scales.SPEED if scale.name == "small" else {})}, scale, OPTIONS)


def run_memory(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
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
    settings=memory_settings_of,
    run=run_memory,
    unit="memory relative to BP",
    columns=(
        Column("memory relative to BP", lambda result: result["ratio"]),
        Column("MB, all devices", lambda result: sum(result["peak_bytes"]) / 1e6, 0),
    ),
    seeded=False,
)
