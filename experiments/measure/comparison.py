"""A comparison: every method trained from several seeds, and their speeds measured in turn (`experiments.compare`)."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.measure.entrants import training_step
from experiments.report import plots, tables
from experiments.report.tables import Comparison
from experiments.report.workdir import Workdir, drawing
from experiments.training import processes
from experiments.training.config import Config
from experiments.training.trainer import Finished, Trainer
from jaxdecouple import schedules
from jaxdecouple.engine.state import State

SECONDS = 0.2  # of one measurement of speed
BASELINE = "backprop"
ONE_WORKER = "one worker (whole network, one core)"


def compare(
    base: Config, output: Workdir, trainers: Mapping[str, Trainer], *, seeds: int = 3, repeats: int = 5
) -> list[Comparison]:
    """Trains every trainer from every seed, measures their speed, and writes the results.

    Returns:
      A row for each; of several processes, in the one that speaks for all.

    Raises:
      NonFiniteLoss: a run diverged.
    """
    runs: dict[str, list[Finished]] = {label: [] for label in trainers}
    total = sum(base.epochs * trainer.batches_per_epoch for trainer in trainers.values()) * seeds
    with command_line.bar(total, "batch", shown=processes.is_speaker()) as bar:
        for label, trainer in trainers.items():
            bar.set_description(label)
            start = time.perf_counter()
            for seed in range(seeds):
                runs[label].append(trainer.run(seed, on_tick=lambda loss: bar.update()))
            errors = [run.test_error for run in runs[label]]
            mean, spread = tables.mean_and_spread(errors)
            tqdm.write(
                f"{label:16s} test error {100 * mean:5.2f} ± {100 * spread:.2f} % over {seeds} seeds, "
                f"{time.perf_counter() - start:5.1f} s, compilation included",
                file=sys.stdout,
            )
    print(f"measuring speed: {repeats} rounds over all methods, in turn")
    rates = _measure(trainers, runs, repeats)
    if not processes.is_speaker():
        return []
    rows = [_row(label, trainer, runs[label], rates) for label, trainer in trainers.items()]
    _write(base, output, trainers, runs, rates, rows)
    if ONE_WORKER in rates:
        print(_against_one_worker(rows, rates))
    return rows


def _measure(
    trainers: Mapping[str, Trainer], runs: Mapping[str, list[Finished]], repeats: int
) -> dict[str, list[float]]:
    loops = {label: _loop(trainer, runs[label][-1].state) for label, trainer in trainers.items()}
    if throughput.can_confine():
        loops[ONE_WORKER] = _one_worker(trainers[BASELINE]) if processes.is_speaker() else throughput.idle()
    return throughput.measure(loops, repeats=repeats, seconds=SECONDS)


def _loop(trainer: Trainer, state: State) -> throughput.Loop:
    """The input pipeline is part of what is measured: batches are gathered and augmented as in training."""
    group = trainer.config.steps_per_update
    fill = 2 * trainer.pipeline.schedule.drain + 2 * group + 2
    return throughput.Loop(trainer.pipeline.step, state, _batches(trainer), fill=fill, unit=group)


def _one_worker(trainer: Trainer) -> throughput.Loop:
    """The whole network in one jit, as one would write it without the library."""
    device, config = jax.local_devices()[0], trainer.config
    transform = config.stage_optimizer(trainer.batches_per_epoch)(0, 1)
    step, state = training_step(trainer.task.layers(config), transform, trainer.sample, device)
    return throughput.Loop(step, state, _batches(trainer, device), fill=2, one_core=True)


def _batches(trainer: Trainer, device: jax.Device | None = None) -> Iterator[tuple[Any, Any]]:
    return itertools.chain.from_iterable(trainer.epoch(epoch, 0, device=device) for epoch in itertools.count())


def _against_one_worker(rows: list[Comparison], rates: dict[str, list[float]]) -> str:
    one = rates[ONE_WORKER]
    ratios = ", ".join(f"{row.label} {throughput.ratio(rates[row.label], one):.2f}" for row in rows)
    return f"{ONE_WORKER}: {statistics.median(one):.0f} images/s; speeds against that: {ratios}"


def _row(label: str, trainer: Trainer, runs: list[Finished], rates: dict[str, list[float]]) -> Comparison:
    return Comparison(
        label=label,
        schedule=trainer.pipeline.schedule,
        accumulate=trainer.config.steps_per_update,
        test_errors=[run.test_error for run in runs],
        images_per_second=statistics.median(rates[label]),
        speedup=throughput.ratio(rates[label], rates[BASELINE]),
    )


def _write(
    base: Config,
    output: Workdir,
    trainers: Mapping[str, Trainer],
    runs: Mapping[str, list[Finished]],
    rates: dict[str, list[float]],
    rows: list[Comparison],
) -> None:
    results = {
        row.label: {
            "config": dataclasses.asdict(trainers[row.label].config),
            "schedule": row.schedule.name,
            "weights": row.schedule.weights,
            "staleness": schedules.staleness(row.schedule, row.accumulate),
            "layers_per_stage": [stage.num_layers for stage in trainers[row.label].pipeline.stages],
            "test_errors": list(row.test_errors),
            "images_per_second": rates[row.label],
            "speed_against_backprop": row.speedup,
            "runs": [[dataclasses.asdict(record) for record in run.records] for run in runs[row.label]],
        }
        for row in rows
    }
    one_worker = {"images_per_second": rates[ONE_WORKER]} if ONE_WORKER in rates else None
    output.write_json(
        "results.json",
        {"machine": devices.describe(), "processes": processes.count(), "one_worker": one_worker, "methods": results},
    )
    output.write("table.md", tables.markdown(tables.as_table(rows)) + "\n")
    title = f"{base.model} on {base.dataset}, K = {base.num_stages}; mean of {len(rows[0].test_errors)} seeds"
    records = {label: [run.records for run in runs[label]] for label in trainers}
    with drawing():
        plots.curves(records, output.file("curves.png"), title)
        plots.schedules({row.schedule.name: row.schedule for row in rows}, output.file("schedules.png"))
