"""Rows that are training runs: an error after the last epoch, or the best of all epochs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments import devices
from experiments.papers import small
from experiments.papers.table import DIVERGES, Column, Emit, Measure, Result, Scale
from experiments.training import progress
from experiments.training.config import Config
from experiments.training.progress import EpochRecord, NonFiniteLoss
from experiments.training.trainer import Trainer
from jaxdecouple import schedules

loaded = functools.cache(Config.load_data)  # most rows of a paper train on one of two data sets


def config_of(settings: Mapping[str, Any], scale: Scale) -> Config:
    """The config of a run, its seed apart."""
    if scale.name == "small":
        settings = small.of_training(settings, scale.dataset, scale.epochs)
    elif scale.dataset:
        settings = {**settings, "dataset": scale.dataset}
    return Config(**{**settings, "data_dir": scale.data_dir})


def run(config: Config, seeds: Sequence[int], emit: Emit) -> None:
    """Trains once for each seed; compiled functions serve all of them. A loss that is not finite is a result.

    Raises:
      ValueError: the settings, the data or the devices cannot be used.
    """
    dataset = loaded(Config(dataset=config.dataset, data_dir=config.data_dir, image_size=config.image_size))
    trainer = Trainer(config, dataset, devices.of_stages(config.num_stages, share=True))
    for seed in seeds:
        emit(seed, _train(trainer, seed))
    jax.clear_caches()


def _train(trainer: Trainer, seed: int) -> dict[str, Any]:
    records: list[EpochRecord] = []
    start, message, final = time.perf_counter(), "", None
    try:
        final = trainer.run(seed, on_epoch=lambda record, state: records.append(record))
    except NonFiniteLoss as error:
        message = str(error)
    pipeline = trainer.pipeline
    return {
        "diverged": final is None,
        "message": message,
        "test_error": final.test_error if final else None,
        "test_loss": final.final.loss if final else None,
        "records": [_rounded(record) for record in records],
        "diagnostics": [progress.as_json(probe) for probe in final.diagnostics] if final else [],
        "seconds": round(time.perf_counter() - start, 2),
        "boundaries": [stage.first for stage in pipeline.stages[1:]],
        "staleness": schedules.staleness(pipeline.schedule, trainer.config.steps_per_update),
        "device": jax.devices()[0].device_kind,
    }


def _rounded(record: EpochRecord) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in dataclasses.asdict(record).items()}


def _final_error(result: Result) -> float | str:
    return DIVERGES if result["diverged"] else 100 * result["test_error"]


def _best_error(result: Result) -> float | str:
    return DIVERGES if result["diverged"] else 100 * min(record["test_error"] for record in result["records"])


def _best_accuracy(result: Result) -> float | str:
    error = _best_error(result)
    return error if isinstance(error, str) else 100 - error


def _measure(unit: str, column: Column) -> Measure:
    return Measure(kind="training", settings=config_of, run=run, unit=unit, columns=(column,))


FINAL_ERROR = _measure("test error, %", Column("test error, %", _final_error))  # final weights, nothing in flight
BEST_ERROR = _measure("best test error, %", Column("best test error, %", _best_error))
BEST_ACCURACY = _measure("best test accuracy, %", Column("best test accuracy, %", _best_accuracy))
