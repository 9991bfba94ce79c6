"""Rows that are training runs: an error after the last epoch, or the best of all epochs."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxdecouple as jd
from experiments import devices
from experiments.papers import scales
from experiments.papers.scales import Scale
from experiments.papers.store import Places
from experiments.papers.table import DIVERGES, Column, Emit, Measure, Result
from experiments.report.workdir import lock
from experiments.training import progress
from experiments.training.config import Config, Saving
from experiments.training.loading import write_model
from experiments.training.progress import EpochRecord
from experiments.training.saving import Saver
from experiments.training.stopping import NonFiniteLoss, StopRequest
from experiments.training.trainer import VARIABLES, Trainer
from jaxdecouple import schedules
from jaxdecouple.engine.state import State

CHANCE = 0.99  # of the loss of guessing, ln(classes): with as much in training and test, nothing has been learnt
loaded = functools.cache(Config.load_data)  # most rows of a paper train on one of two data sets


def config_of(settings: Mapping[str, Any], scale: Scale) -> Config:
    """The config of a run, its seed apart."""
    changed = scales.changed_values(scale.changes, Config)
    dataset, num_train = scale.dataset, scales.NUM_TRAIN
    if scale.name == "medium" and not dataset:
        raise ValueError("the medium scale has no data of its own; write --dataset=npz:PATH, folder:PATH or a name")
    if scale.name != "paper" and dataset:
        num_train = loaded(Config(dataset=dataset, data_dir=scale.data_dir)).num_train
    if scale.name == "small":
        settings = scales.small(settings, dataset, num_train, scale.epochs)
    elif scale.name == "medium":
        settings = scales.medium(settings, dataset, num_train, scale.epochs)
    elif scale.dataset:
        settings = {**settings, "dataset": scale.dataset}
    if "epochs" in changed:
        settings = scales.of_length(settings, changed["epochs"])
    return Config(**{**settings, **changed, "data_dir": scale.data_dir})


def trainer_of(config: Config) -> Trainer:
    """What trains a config.

    Raises:
      ValueError: the settings, the data or the devices cannot be used.
    """
    dataset = loaded(Config(dataset=config.dataset, data_dir=config.data_dir, image_size=config.image_size))
    return Trainer(config, dataset, devices.of_stages(config.num_stages, share=True))


def run(config: Config, seeds: Sequence[int], emit: Emit, places: Callable[[int], Places] | None = None) -> None:
    """Trains once for each seed; compiled functions serve all of them. A loss that is not finite is a result.

    Args:
      config: the settings.
      seeds: of the runs.
      emit: called with each result.
      places: for each seed, the directories of a run that was stopped and goes on, as that of `experiments.train` does;
        ``None``: nothing is kept.

    Raises:
      ValueError: the settings, the data or the devices cannot be used; or another program runs the same.
      Stopped: by a signal, after saving.
    """
    trainer = trainer_of(config)
    for seed in seeds:
        if places is None:
            emit(seed, _train(trainer, seed))
            continue
        running, weights = places(seed)
        running.mkdir(parents=True, exist_ok=True)
        held = lock(running)
        try:
            with StopRequest() as stop, jd.Checkpoints(running / "checkpoints", keep=1) as checkpoints:
                saver = Saver(checkpoints, Saving(keep=1), trainer, stop)
                result = _train(trainer, seed, saver, weights)
        finally:
            held.release()
        emit(seed, result)
        shutil.rmtree(running)
    jax.clear_caches()


def _train(
    trainer: Trainer, seed: int, saver: Saver | None = None, weights: pathlib.Path | None = None
) -> dict[str, Any]:
    start = saver and saver.start()
    records = [EpochRecord(**record) for record in start.progress["records"]] if start else []
    message, final = "", None
    try:
        final = trainer.run(
            seed,
            start=start,
            on_epoch=lambda record, state: records.append(record),
            **({"between_ticks": saver.between_ticks} if saver else {}),
        )
    except NonFiniteLoss as error:
        message = str(error)
    if final and weights:
        weights.mkdir(parents=True, exist_ok=True)
        write_model(weights / VARIABLES, trainer, final.state)
    pipeline = trainer.pipeline
    return {
        "diverged": final is None,
        "message": message,
        "test_error": final.test_error if final else None,
        "test_loss": final.final.loss if final else None,
        "top5_error": _top5_error(trainer, final.state) if final else None,
        "chance_loss": math.log(trainer.dataset.num_classes),
        "records": [_rounded(record) for record in records],
        "diagnostics": [progress.as_json(probe) for probe in final.diagnostics] if final else [],
        "seconds": round(sum(record.seconds for record in records), 2),
        "boundaries": [stage.first for stage in pipeline.stages[1:]],
        "staleness": schedules.staleness(pipeline.schedule, trainer.config.steps_per_update),
        "device": jax.devices()[0].device_kind,
    }


def _rounded(record: EpochRecord) -> dict[str, Any]:
    rounded: dict[str, Any] = {}
    for name, value in dataclasses.asdict(record).items():
        several = isinstance(value, dict)
        rounded[name] = {each: _six_digits(one) for each, one in value.items()} if several else _six_digits(value)
    return rounded


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def _top5_error(trainer: Trainer, state: State) -> float | None:
    """The part of test images whose label is not among the five largest logits; ``None`` with five classes or less."""
    if trainer.dataset.num_classes <= 5:
        return None
    wrong = [
        np.all(np.argsort(np.asarray(trainer.pipeline.predict(state, images)))[:, -5:] != labels[:, None], axis=1)
        for images, labels in trainer.test_batches()
    ]
    return float(np.concatenate(wrong).mean())


def diverged(result: Result) -> bool:
    """Whether the papers would print a crossed circle: a loss was not finite, or at the end is that of guessing."""
    if result["diverged"] or not result["records"]:
        return result["diverged"]
    last = result["records"][-1]
    return min(last["train_loss"], last["test_loss"]) >= CHANCE * result.get("chance_loss", math.inf)


def _final_error(result: Result) -> float | str:
    return DIVERGES if diverged(result) else 100 * result["test_error"]


def _final_top5(result: Result) -> float | str | None:
    if diverged(result):
        return DIVERGES
    error = result.get("top5_error")
    return None if error is None else 100 * error


def _best_error(result: Result) -> float | str:
    return DIVERGES if diverged(result) else 100 * min(record["test_error"] for record in result["records"])


def _accuracy(error: Callable[[Result], float | str]) -> Callable[[Result], float | str]:
    """The accuracy that goes with a function of a result's error."""

    def accuracy(result: Result) -> float | str:
        found = error(result)
        return found if isinstance(found, str) else 100 - found

    return accuracy


def _measure(unit: str, *columns: Column) -> Measure:
    return Measure(kind="training", settings=config_of, run=run, unit=unit, columns=columns, resumes=True)


FINAL_ERROR = _measure("test error, %", Column("test error, %", _final_error))  # final weights, nothing in flight
TOP_1_AND_5 = _measure("test error, %", Column("test error, %", _final_error), Column("Top 5 error, %", _final_top5))
FINAL_ACCURACY = _measure("test accuracy, %", Column("test accuracy, %", _accuracy(_final_error)))
BEST_ERROR = _measure("best test error, %", Column("best test error, %", _best_error))
BEST_ACCURACY = _measure("best test accuracy, %", Column("best test accuracy, %", _accuracy(_best_error)))
