"""Measures how fast each method trains, against the whole network on one worker, and what that should follow from.

    python -m experiments.benchmark --model=resnet20 --batch_size=128

The one worker is the training step that one would write without this library: the whole network in one compiled
function, on one device; where devices are the cores of this machine, the whole process is confined to one core for it.
"one jit, all cores" is the same step unconfined, and "one stage" this library's pipeline with K = 1. Images are random
and on their device beforehand: no input pipeline is measured. GPipe and ADL split the batch of the others into 4
micro-batches, so that every update uses as many images; images per second count images.

Rates are measured in turn, in every repeat once, without compilation and with the pipeline filled. In every repeat the
operations of each pipeline are also timed alone, and the timeline of its schedule with these times is the predicted
rate. Ratios are medians of the ratios within a repeat.

Host times are those of `Pipeline.step` while all devices are idle. On CPU devices the computation that it starts runs
on the same cores and may take them from it, so that they are an upper bound there. Compilation is what the row's own
functions needed until the pipeline was filled; it is honest only without a persistent compilation cache, which is
therefore not used unless JAX_COMPILATION_CACHE_DIR asks for it. Peak memory is counted
(see experiments/measure/memory.py).

The directory gets results.json, table.md, benchmark.png, and for each pipeline gantt-*.png, its predicted timeline.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.measure import entrants, throughput
from experiments.measure.compilations import Compilations
from experiments.measure.entrants import ONE_JIT, ONE_WORKER, Entrant, Settings
from experiments.measure.memory import peak_bytes
from experiments.measure.operation_times import Round, as_times, dispatches_per_tick, host_times, joined_stages, predict
from experiments.report import benchmark as benchmark_report
from experiments.report.benchmark import Result
from experiments.report.workdir import Workdir
from experiments.training.methods import AUTO, METHODS
from jaxdecouple import schedules
from jaxdecouple.planning import Timeline, save_gantt

FLAGS = flags.FLAGS
OPERATIONS_SHARE = 0.15  # of the length of a rate's measurement: the length of one operation's


def benchmark(
    settings: Settings, output: Workdir, places: Sequence[jax.Device], *, command: str = "", say: Callable = print
) -> list[Result]:
    """Builds all trainers, measures them in turn, and writes the results.

    Args:
      settings: checked.
      output: where to.
      places: the device of each stage.
      command: for the record.
      say: called with each line on the progress.
    """
    trainers = _build(settings, places, say)
    say(f"measuring: {settings.repeats} rounds over all {len(trainers)} trainers, in turn")
    with Compilations() as recompilations:
        measured = _measure(trainers, settings)
        hosts = {entrant.label: _host(entrant, settings) for entrant in trainers if entrant.pipeline}
    timelines = {
        entrant.label: _predict(entrant, [r for _, r in measured[entrant.label]], hosts[entrant.label])
        for entrant in trainers
        if entrant.pipeline
    }
    if settings.memory:
        say("counting memory")
    peaks = {entrant.label: _peaks(entrant, settings) if settings.memory else [] for entrant in trainers}
    if recompilations.count:
        say(f"warning: {recompilations.count} functions were compiled while rates were measured")
    results = [_result(entrant, measured, hosts, timelines, peaks, settings) for entrant in trainers]
    _write(settings, output, places, results, timelines, command, recompilations.count)
    return results


def _build(settings: Settings, places: Sequence[jax.Device], say: Callable) -> list[Entrant]:
    confined = throughput.can_confine()
    say("measuring layers and stages")
    choice = entrants.choose_automatically(settings, places)
    say(choice.explain())
    builders: list[Callable[[], Entrant]] = [
        lambda: entrants.whole_network(ONE_WORKER, settings, places[0], one_core=confined),
        *([lambda: entrants.whole_network(ONE_JIT, settings, places[0])] if confined else []),
        lambda: entrants.one_stage(settings, places),
        *(lambda name=name: entrants.method(name, settings, places, choice.fitted) for name in settings.chosen),
    ]
    if not settings.methods or AUTO in settings.methods:
        builders.append(lambda: entrants.pipelined(AUTO, settings, choice.stages, choice.schedule, places))
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


def _measure(trainers: Sequence[Entrant], settings: Settings) -> dict[str, list[tuple[float, Round | None]]]:
    """In every repeat the rate of each trainer, and the times of its operations."""

    def measurement(entrant: Entrant) -> Callable[[], tuple[float, Round | None]]:
        ticks = entrant.loop.ticks_in(settings.seconds)
        seconds = OPERATIONS_SHARE * settings.seconds
        return lambda: (
            entrant.loop.images_per_second(ticks),
            entrant.meter.round(seconds) if entrant.meter else None,
        )

    return throughput.in_turn({entrant.label: measurement(entrant) for entrant in trainers}, settings.repeats)


def _host(entrant: Entrant, settings: Settings) -> list[tuple[float, float]]:
    ticks = -(-max(4, 2 * settings.repeats) // entrant.accumulate) * entrant.accumulate
    seconds, entrant.loop.state = host_times(
        entrant.pipeline.step, entrant.loop.state, itertools.islice(entrant.loop.batches, ticks)
    )
    return seconds


def _predict(entrant: Entrant, rounds: Sequence[Round], host: list[tuple[float, float]]) -> Timeline:
    schedule = entrant.pipeline.schedule
    per_dispatch = statistics.median(wall for wall, _ in host) / dispatches_per_tick(schedule)
    times = as_times(rounds, entrant.pipeline.weights, joined_stages(schedule), per_dispatch, schedule.learning)
    return predict(entrant.pipeline, times)


def _peaks(entrant: Entrant, settings: Settings) -> list[int]:
    if entrant.pipeline is None:
        batch = settings.distinct(entrant.batch_size)[0]
        memory = entrant.step.lower(entrant.loop.state, batch).compile().memory_analysis()
        own = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        return [memory.argument_size_in_bytes + own]
    ticks = 2 * entrant.pipeline.schedule.drain + 2 * entrant.accumulate + 2
    batches = itertools.islice(itertools.cycle(settings.distinct(entrant.batch_size)), ticks)
    state = entrant.pipeline.init(jax.random.key(0), settings.sample(entrant.batch_size))
    return peak_bytes(entrant.pipeline, state, batches)


def _result(
    entrant: Entrant,
    measured: dict[str, list[tuple[float, Round | None]]],
    hosts: dict[str, list[tuple[float, float]]],
    timelines: dict[str, Timeline],
    peaks: dict[str, list[int]],
    settings: Settings,
) -> Result:
    one_worker = [rate for rate, _ in measured[ONE_WORKER]]
    rates = [rate for rate, _ in measured[entrant.label]]
    result = Result(
        label=entrant.label,
        batch_size=entrant.batch_size,
        accumulate=entrant.accumulate,
        images_per_second=rates,
        ratios=throughput.ratios(rates, one_worker),
        compile_seconds=entrant.compilations.seconds,
        compilations=entrant.compilations.count,
        peak_bytes=peaks[entrant.label],
        layers_per_stage=[len(settings.layers())],
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
    settings: Settings,
    output: Workdir,
    places: Sequence[jax.Device],
    results: Sequence[Result],
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
        "settings": dataclasses.asdict(settings),
        "results": {result.label: dataclasses.asdict(result) for result in results},
    }
    output.write_json("results.json", record)
    (output.path / "table.md").write_text(benchmark_report.as_markdown(results) + "\n")
    title = (
        f"{settings.model}, K = {settings.num_stages}, batch {settings.batch_size}, {settings.image_size} x "
        f"{settings.image_size} images, {settings.dtype}; {places[0].device_kind}, {len(set(places))} device(s)"
    )
    benchmark_report.bars(results, output.path / "benchmark.png", title)
    for label, timeline in timelines.items():
        save_gantt(timeline, output.path / f"gantt-{re.sub(r'[^a-z0-9_]+', '-', label.lower())}.png")


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    default = Settings()
    flags.DEFINE_string("model", default.model, "mlp, resnet<6n+2>, or resnet18, 34, 50, 101, 152 (ImageNet form)")
    flags.DEFINE_integer("num_stages", default.num_stages, "K, stages; they share devices where there are fewer")
    flags.DEFINE_integer("batch_size", default.batch_size, "images of an update; a multiple of 4 for gpipe and adl")
    flags.DEFINE_integer("image_size", default.image_size, "pixels along each side; below 64, ResNets get a small stem")
    flags.DEFINE_integer("num_classes", default.num_classes, "outputs")
    flags.DEFINE_string("dtype", default.dtype, "of the computation: float32 or bfloat16; parameters are float32")
    flags.DEFINE_list("methods", [], f"methods to measure: {', '.join(METHODS)}, {AUTO}; empty: all")
    flags.DEFINE_list("boundaries", [], "layer indices at which a new stage starts; empty: stages of equal cost")
    flags.DEFINE_bool("one_device", default.one_device, "put all stages on one device, where decoupling cannot help")
    flags.DEFINE_integer("repeats", default.repeats, "rounds of measurements")
    flags.DEFINE_float("seconds", default.seconds, "about how long the measurement of one rate takes")
    flags.DEFINE_bool("memory", default.memory, "count peak memory, which compiles everything once more")
    flags.DEFINE_string("profile", default.profile, "file of measured layers, read if there, else written")
    command_line.define_workdir()


def _settings() -> Settings:
    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    try:
        boundaries = tuple(int(item) for item in values["boundaries"])
    except ValueError:
        raise ValueError(f"boundaries is {','.join(values['boundaries'])!r}; write integers, such as 3,6") from None
    return Settings(**{**values, "boundaries": boundaries, "methods": tuple(values["methods"])})


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="no results were written"):
        settings, workdir = _settings(), pathlib.Path(FLAGS.workdir or Workdir.unused("runs/benchmark"))
        devices.request(1 if settings.one_device else settings.num_stages)
        settings.check()
        Workdir.check(workdir, overwrite=FLAGS.overwrite)
        places = devices.of_stages(settings.num_stages, share=True)
        places = places[:1] * settings.num_stages if settings.one_device else places
        print(
            f"{settings.model}, batches of {settings.batch_size}, K = {settings.num_stages} stages on "
            f"{', '.join(map(str, places))}; {settings.repeats} repeats"
        )
        output = Workdir(workdir, dataclasses.asdict(settings), overwrite=FLAGS.overwrite)
        command = " ".join(["python -m experiments.benchmark", *sys.argv[1:]])
        results = benchmark(settings, output, places, command=command)
    print(f"\n{benchmark_report.as_text(results)}\n")
    if any(result.label == ONE_JIT for result in results):
        print(f"{benchmark_report.against(results, ONE_JIT)}\n")
    print(f"{time.perf_counter() - start:.0f} s; pictures, table and numbers are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
