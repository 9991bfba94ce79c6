"""Rows that are training runs: an error after the last epoch, or the best of all epochs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments import devices
from experiments.reproduction import small
from experiments.reproduction.config import row_config
from experiments.reproduction.kind import Column, Emit, Kind, Result, Scale, diverged_or
from experiments.training.config import Config
from experiments.training.progress import Diagnosis, EpochRecord, NonFiniteLoss
from experiments.training.trainer import Trainer
from jaxdecouple import schedules

loaded = functools.cache(Config.load_data)  # most rows of a paper train on one of two data sets


def scaled(settings: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """All fields of the row's config, but the seed."""
    if scale.name == "small":
        chosen = small.of_training(settings, scale.dataset or small.DATASET, scale.epochs)
    else:
        chosen = {**settings, **({"dataset": scale.dataset} if scale.dataset else {})}
    config = dataclasses.asdict(row_config({**chosen, "data_dir": scale.data_dir}))
    del config["seed"]
    return config


def run(settings: Mapping[str, Any], seeds: Sequence[int], emit: Emit) -> None:
    """Trains once for each seed; compiled functions serve all of them. A loss that is not finite is a result.

    Raises:
      ValueError: the settings, the data or the devices cannot be used.
    """
    # JSON has lists only; a config holds tuples.
    config = row_config({name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})
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
        "diagnostics": [_probed(record) for record in final.diagnostics] if final else [],
        "seconds": round(time.perf_counter() - start, 2),
        "boundaries": [stage.first for stage in pipeline.stages[1:]],
        "staleness": schedules.staleness(pipeline.schedule, trainer.config.steps_per_update),
        "device": jax.devices()[0].device_kind,
    }


def _probed(record: Diagnosis) -> dict[str, Any]:
    return {"probe": type(record).__name__, **dataclasses.asdict(record)}


def _rounded(record: EpochRecord) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in dataclasses.asdict(record).items()}


def _final_error(result: Result) -> float:
    return 100 * result["test_error"]


def _best_error(result: Result) -> float:
    return 100 * min(record["test_error"] for record in result["records"])


MEASURES = {
    # With the final weights, nothing in flight.
    "final_error": ("test error, %", (Column("test error, %", diverged_or(_final_error)),)),
    "best_error": ("best test error, %", (Column("best test error, %", diverged_or(_best_error)),)),
    "best_accuracy": (
        "best test accuracy, %",
        (Column("best test accuracy, %", diverged_or(lambda result: 100 - _best_error(result))),),
    ),
}
KIND = Kind(scaled, run, MEASURES)
