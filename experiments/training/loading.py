"""Loading what a training run has saved, with the pipeline and the data that it belongs to."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

import jaxdecouple as jd
from experiments import devices
from experiments.report.workdir import in_lines, write_whole
from experiments.training.config import Config
from experiments.training.processes import is_speaker
from experiments.training.run_directory import CHECKPOINTS, FINAL, config_of
from experiments.training.saving import check_data
from experiments.training.tasks import ImageTask, inputs_of
from experiments.training.trainer import Layout, Trainer
from jaxdecouple.engine.state import State
from jaxdecouple.errors import DataWarning


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint of a training run.

    Attributes:
      path: where it is.
      config: of the run.
      trainer: its pipeline and data.
      state: as saved.
    """

    path: pathlib.Path
    config: Config
    trainer: Trainer
    state: State


def find(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that ``path`` means: itself or, of a run's workdir, the final one, else the newest.

    Raises:
      CheckpointError: there is none.
    """
    directory = path / CHECKPOINTS
    if not directory.is_dir():
        return path
    if (directory / FINAL).is_dir():
        return directory / FINAL
    saved = jd.checkpoints.saved_in(directory)
    if not saved:
        raise jd.CheckpointError(f"{path} holds no checkpoint yet; wait for one, or write another run's workdir")
    return saved[-1].path


def saved_config(path: pathlib.Path, **changes: Any) -> tuple[Config, dict[str, Any]]:
    """The config of the checkpoint at ``path`` with some settings changed, and all that was saved with its state.

    Raises:
      CheckpointError: it is damaged, or was not written by a training run.
    """
    metadata = jd.checkpoints.metadata(path)
    if not isinstance(metadata, dict) or not {"config", "cut", "data"} <= set(metadata):
        raise jd.CheckpointError(
            f"checkpoint {path} says nothing of its model; write one of experiments.train, or use jaxdecouple.restore"
        )
    return dataclasses.replace(config_of(metadata["config"]), **changes), metadata


def load(path: pathlib.Path, config: Config, metadata: dict[str, Any], *, other_data: bool = False) -> Loaded:
    """The state at ``path``, on as many devices as there are, with the pipeline it was saved from.

    Args:
      path: of the checkpoint.
      config, metadata: as from `saved_config`.
      other_data: whether the data may be others than those the run was trained on.

    Raises:
      ValueError: data or model cannot be had, or are not those of the checkpoint.
    """
    dataset = config.load_data()
    if not other_data:
        check_data(metadata, dataset, path)
    places, saved = devices.of_stages(config.num_stages, share=True), metadata.get("inputs")
    inputs = None if saved is None else inputs_of(saved)
    if inputs is None and other_data:
        warnings.warn(
            f"{path} is of an older version and does not say how images were normalised: {dataset.name} is normalised "
            "by its own training part",
            DataWarning,
            stacklevel=2,
        )
    trainer = Trainer(
        dataclasses.replace(config, init_from=""), dataset, places, Layout.from_json(metadata["cut"]), inputs
    )
    return Loaded(path, config, trainer, trainer.restore(path))


def check_is_no_data(name: str, path: pathlib.Path, config: Config) -> None:
    """Refuses to write into the file that the data are read from.

    Raises:
      ValueError: ``path``, of the flag ``name``, is that file.
    """
    data = pathlib.Path(config.data_dir).expanduser() / pathlib.Path(config.dataset.partition(":")[2]).expanduser()
    if path.is_file() and data.is_file() and path.samefile(data):
        raise ValueError(f"{name} is {path}, which holds the data; write another file")


def write_predictions(loaded: Loaded, path: pathlib.Path) -> None:
    """Writes, of every test image in order, the label, the predicted class and its probability; .npz: the logits too.

    Raises:
      ValueError: the file cannot be written, or the model is none of images.
    """
    trainer, logits, labels = loaded.trainer, [], []
    if not isinstance(trainer.task, ImageTask):
        raise ValueError("predictions are written of images alone; leave --predictions out for a model of texts")
    for images, targets in trainer.test_batches():
        logits.append(np.asarray(trainer.pipeline.predict(loaded.state, images), np.float32))
        labels.append(targets)
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    predicted = logits.argmax(axis=-1)
    probability = np.asarray(jax.nn.softmax(logits))[np.arange(len(logits)), predicted]
    try:
        partial = path.with_name(f"{path.name}.partial")
        if path.suffix == ".npz":
            columns = {"label": labels, "predicted": predicted, "probability": probability, "logits": logits}
            with partial.open("wb") as file:
                np.savez(file, **columns, class_names=np.array(trainer.task.inputs.class_names))
        else:
            with partial.open("w", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(("image", "label", "predicted", "probability"))
                for row in enumerate(zip(labels, predicted, probability, strict=True)):
                    image, (label, guess, sure) = row
                    table.writerow((image, label, guess, f"{sure:.6f}"))
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"predictions cannot be written to {path} ({error}); write another file") from error


def write_model(path: pathlib.Path, trainer: Trainer, state: State) -> None:
    """Writes the weights of a state with nothing in flight, and beside them, as JSON, what the network expects.

    Raises:
      CheckpointError: they cannot be written.
    """
    variables = jd.export_variables(trainer.pipeline, state)  # of several processes, one gets them all
    if not is_speaker():
        return
    jd.write_variables(path, variables)
    about = {"model": trainer.config.model, "dtype": trainer.config.dtype, **dataclasses.asdict(trainer.task.inputs)}
    try:
        write_whole(path.with_suffix(".json"), in_lines(about, 1) + "\n")
    except OSError as error:
        raise jd.CheckpointError(f"{path.with_suffix('.json')} cannot be written ({error})") from error
