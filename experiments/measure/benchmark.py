"""The benchmark: builds all trainers, measures them in turn, and writes what came out (`experiments.benchmark`)."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments import devices
from experiments.measure import entrants, throughput
from experiments.measure.compilations import Compilations
from experiments.measure.entrants import ONE_JIT, ONE_WORKER, Entrant
from experiments.measure.memory import peak_bytes
from experiments.measure.operation_times import Round, as_times, dispatches_per_tick, host_times, joined_stages, predict
from experiments.measure.workload import Workload
from experiments.report import plots, tables
from experiments.report.tables import Measured
from experiments.report.workdir import Workdir, drawing
from experiments.training.methods import AUTO
from jaxdecouple import schedules
from jaxdecouple.planning import Timeline, save_gantt

OPERATIONS_SHARE = 0.15  # of the length of a rate's measurement: the length of one operation's


def benchmark(
    workload: Workload, output: Workdir, places: Sequence[jax.Device], *, command: str = "", say: Callable = print
) -> list[Measured]:
    """Builds all trainers, measures them in turn, and writes the results.

    Args:
      workload: checked.
      output: where to.
      places: the device of each stage.
      command: for the record.
      say: called with each line on the progress.
    """
    trainers = _build(workload, places, say)
    say(f"measuring: {workload.repeats} rounds over all {len(trainers)} trainers, in turn")
    with Compilations() as recompilations:
        measured = _measure(trainers, workload)
        hosts = {entrant.label: _host(entrant, workload) for entrant in trainers if entrant.pipeline}
    timelines = {
        entrant.label: _predict(entrant, [r for _, r in measured[entrant.label]], hosts[entrant.label])
        for entrant in trainers
        if entrant.pipeline
    }
    if workload.memory:
        say("counting memory")
    peaks = {entrant.label: _peaks(entrant, workload) if workload.memory else [] for entrant in trainers}
    if recompilations.count:
        say(f"warning: {recompilations.count} functions were compiled while rates were measured")
    results = [_result(entrant, measured, hosts, timelines, peaks, workload) for entrant in trainers]
    _write(workload, output, places, results, timelines, command, recompilations.count)
    return results


def _build(workload: Workload, places: Sequence[jax.Device], say: Callable) -> list[Entrant]:
    confined = throughput.can_confine()
    say("measuring layers and stages")
    choice = entrants.choose_automatically(workload, places)
    say(choice.explain())
    builders: list[Callable[[], Entrant]] = [
        lambda: entrants.whole_network(ONE_WORKER, workload, places[0], one_core=confined),
        *([lambda: entrants.whole_network(ONE_JIT, workload, places[0])] if confined else []),
        lambda: entrants.one_stage(workload, places),
        *(lambda name=name: entrants.method(name, workload, places, choice.fitted) for name in workload.chosen),
    ]
    if not workload.methods or AUTO in workload.methods:
        builders.append(lambda: entrants.pipelined(AUTO, workload, choice.stages, choice.schedule, places))
    built = []
    for build in builders:
        start = time.perf_counter()
        entrant = build()
        built.append(entrant)
        compiled = entrant.compilations
        say(
            f"{entrant.label:18s} ready after {time.perf_counter() - start:5.1f} s, of which compilation "
            f"{compiled.seconds:5.1f} s ({compiled.count} functions)"
        )
    return built


def _measure(trainers: Sequence[Entrant], workload: Workload) -> dict[str, list[tuple[float, Round | None]]]:
    """In every repeat the rate of each trainer, and the times of its operations."""

    def measurement(entrant: Entrant) -> Callable[[], tuple[float, Round | None]]:
        ticks = entrant.loop.ticks_in(workload.seconds)
        seconds = OPERATIONS_SHARE * workload.seconds
        return lambda: (
            entrant.loop.images_per_second(ticks),
            entrant.meter.round(seconds) if entrant.meter else None,
        )

    return throughput.in_turn({entrant.label: measurement(entrant) for entrant in trainers}, workload.repeats)


def _host(entrant: Entrant, workload: Workload) -> list[tuple[float, float]]:
    ticks = -(-max(4, 2 * workload.repeats) // entrant.accumulate) * entrant.accumulate
    seconds, entrant.loop.state = host_times(
        entrant.pipeline.step, entrant.loop.state, itertools.islice(entrant.loop.batches, ticks)
    )
    return seconds


def _predict(entrant: Entrant, rounds: Sequence[Round], host: list[tuple[float, float]]) -> Timeline:
    schedule = entrant.pipeline.schedule
    per_dispatch = statistics.median(wall for wall, _ in host) / dispatches_per_tick(schedule)
    times = as_times(rounds, entrant.pipeline.weights, joined_stages(schedule), per_dispatch, schedule.learning)
    return predict(entrant.pipeline, times)


def _peaks(entrant: Entrant, workload: Workload) -> list[int]:
    if entrant.pipeline is None:
        batch = workload.distinct(entrant.batch_size)[0]
        memory = entrant.step.lower(entrant.loop.state, batch).compile().memory_analysis()
        own = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        return [memory.argument_size_in_bytes + own]
    ticks = 2 * entrant.pipeline.schedule.drain + 2 * entrant.accumulate + 2
    batches = itertools.islice(itertools.cycle(workload.distinct(entrant.batch_size)), ticks)
    state = entrant.pipeline.init(jax.random.key(0), workload.sample(entrant.batch_size))
    return peak_bytes(entrant.pipeline, state, batches)


def _result(
    entrant: Entrant,
    measured: dict[str, list[tuple[float, Round | None]]],
    hosts: dict[str, list[tuple[float, float]]],
    timelines: dict[str, Timeline],
    peaks: dict[str, list[int]],
    workload: Workload,
) -> Measured:
    one_worker = [rate for rate, _ in measured[ONE_WORKER]]
    rates = [rate for rate, _ in measured[entrant.label]]
    result = Measured(
        label=entrant.label,
        batch_size=entrant.batch_size,
        accumulate=entrant.accumulate,
        images_per_second=rates,
        ratios=throughput.ratios(rates, one_worker),
        compile_seconds=entrant.compilations.seconds,
        compilations=entrant.compilations.count,
        peak_bytes=peaks[entrant.label],
        layers_per_stage=[len(workload.layers())],
    )
    if entrant.pipeline is None:
        return result
    schedule = entrant.pipeline.schedule
    predicted = entrant.batch_size / timelines[entrant.label].seconds_per_batch
    return dataclasses.replace(
        result,
        predicted_images_per_second=predicted,
        predicted_ratio=predicted / statistics.median(one_worker),
        rounds=[found for _, found in measured[entrant.label]],
        host_seconds=[wall for wall, _ in hosts[entrant.label]],
        host_processor_seconds=[processor for _, processor in hosts[entrant.label]],
        staleness=[list(levels) for levels in schedules.staleness(schedule, entrant.accumulate)],
        weights=entrant.pipeline.weights,
        schedule=schedule.name,
        layers_per_stage=[stage.num_layers for stage in entrant.pipeline.stages],
    )


def _write(
    workload: Workload,
    output: Workdir,
    places: Sequence[jax.Device],
    results: Sequence[Measured],
    timelines: dict[str, Timeline],
    command: str,
    recompilations: int,
) -> None:
    record: dict[str, Any] = {
        "command": command,
        "machine": {**devices.describe(), "cores": os.cpu_count(), "stages_on": [str(place) for place in places]},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "compilation_cache": jax.config.jax_compilation_cache_dir,
        "compilations_while_measuring": recompilations,
        "settings": dataclasses.asdict(workload),
        "results": {result.label: dataclasses.asdict(result) for result in results},
    }
    output.write_json("results.json", record)
    output.write("table.md", tables.markdown(tables.as_table(results)) + "\n")
    title = (
        f"{workload.model}, K = {workload.num_stages}, batch {workload.batch_size}, {workload.image_size} x "
        f"{workload.image_size} images, {workload.dtype}; {places[0].device_kind}, {len(set(places))} device(s)"
    )
    with drawing():
        plots.bars(results, output.file("benchmark.png"), title)
        for label, timeline in timelines.items():
            save_gantt(timeline, output.file(f"gantt-{re.sub(r'[^a-z0-9_]+', '-', label.lower())}.png"))
