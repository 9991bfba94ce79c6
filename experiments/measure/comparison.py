"""A comparison: every method trained from several seeds, and their speeds measured in turn (`experiments.compare`)."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from experiments import cli as command_line
from experiments import devices
from experiments.measure import throughput
from experiments.report import plots, tables
from experiments.report.tables import Comparison
from experiments.report.workdir import Workdir, drawing
from experiments.training.config import Config
from experiments.training.trainer import Finished, Trainer
from jaxdecouple import schedules
from jaxdecouple.engine.state import State

MICRO_BATCHES = 4
SECONDS = 0.25  # of one measurement of speed
METHODS: dict[str, dict] = {
    "backprop": {"method": "backprop"},
    "gpipe M=4": {"method": "gpipe", "accumulate": MICRO_BATCHES},
    "ddg": {"method": "ddg"},
    "features_replay": {"method": "features_replay"},
    "fdg beta=1": {"method": "fdg"},
    "fdg beta=0.5": {"method": "fdg", "beta": 0.5},
    "adl M=4": {"method": "adl", "accumulate": MICRO_BATCHES},
    "dsp": {"method": "dsp"},
    "pipedream": {"method": "pipedream"},
    "dgl": {"method": "dgl"},
    "dni": {"method": "dni"},
}
BASELINE = "backprop"
ONE_WORKER = "one worker (whole network, one core)"


def configs(base: Config, labels: Sequence[str] = ()) -> dict[str, Config]:
    """The config of each row; back-propagation, which speeds are compared with, is always among them.

    Raises:
      ValueError: an unknown label, or a batch that cannot be split.
    """
    for label in labels:
        if label not in METHODS:
            raise ValueError(f"methods names {label!r}; write some of: {', '.join(METHODS)}")
    if base.batch_size % MICRO_BATCHES:
        raise ValueError(f"batch_size is {base.batch_size}; write a multiple of {MICRO_BATCHES}, the micro-batches")
    chosen = {label: settings for label, settings in METHODS.items() if not labels or label in {BASELINE, *labels}}
    return {
        label: dataclasses.replace(base, **settings, batch_size=base.batch_size // settings.get("accumulate", 1))
        for label, settings in chosen.items()
    }


def compare(
    base: Config, output: Workdir, trainers: Mapping[str, Trainer], *, seeds: int = 3, repeats: int = 5
) -> list[Comparison]:
    """Trains every trainer from every seed, measures their speed, and writes the results.

    Raises:
      NonFiniteLoss: a run diverged.
    """
    runs: dict[str, list[Finished]] = {label: [] for label in trainers}
    total = sum(base.epochs * trainer.batches_per_epoch for trainer in trainers.values()) * seeds
    with command_line.bar(total, "batch") as bar:
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
        baseline = trainers[BASELINE]
        config = dataclasses.replace(baseline.config, num_stages=1, boundaries=())
        one_worker = Trainer(config, baseline.dataset, baseline.pipeline.placement.devices[:1])
        loops[ONE_WORKER] = _loop(one_worker, one_worker.init(0), one_core=True)
    return throughput.measure(loops, repeats=repeats, seconds=SECONDS)


def _loop(trainer: Trainer, state: State, one_core: bool = False) -> throughput.Loop:
    """The input pipeline is part of what is measured: batches are gathered and augmented as in training."""
    epochs = (trainer.epoch(epoch, seed=0) for epoch in itertools.count())
    group = trainer.config.steps_per_update
    return throughput.Loop(
        trainer.pipeline.step,
        state,
        itertools.chain.from_iterable(epochs),
        fill=2 * trainer.pipeline.schedule.drain + 2 * group + 2,
        unit=group,
        one_core=one_core,
    )


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
    output.write_json("results.json", {"machine": devices.describe(), "one_worker": one_worker, "methods": results})
    output.write("table.md", tables.markdown(tables.as_table(rows)) + "\n")
    title = f"{base.model} on {base.dataset}, K = {base.num_stages}; mean of {len(rows[0].test_errors)} seeds"
    records = {label: [run.records for run in runs[label]] for label in trainers}
    with drawing():
        plots.curves(records, output.file("curves.png"), title)
        plots.schedules({row.schedule.name: row.schedule for row in rows}, output.file("schedules.png"))
