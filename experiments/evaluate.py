"""Tests what a training run has saved.

    python -m experiments.evaluate --checkpoint=runs/digits-resnet20-fdg-K2
    python -m experiments.evaluate --checkpoint=runs/digits-resnet20-fdg-K2 --predictions=predictions.csv

A checkpoint of a run that is not finished is tested with the weights of its moment, without the gradients that are in
flight, as the run itself tests after each epoch.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments import cli as command_line
from experiments.report.workdir import check_file

FLAGS = flags.FLAGS
SUFFIXES = (".csv", ".npz")


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    flags.DEFINE_string("checkpoint", "", "workdir of a run (its final checkpoint, else the newest), or a checkpoint")
    flags.DEFINE_string("predictions", "", "file for each test image's prediction: .csv, or .npz with logits as well")
    flags.DEFINE_string("dataset", "", "test on these data, as for experiments.train; empty: those of the run")
    flags.DEFINE_string("data_dir", "", "as for experiments.train; empty: that of the run")


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        if not FLAGS.checkpoint:
            raise ValueError("checkpoint is not given; write --checkpoint=runs/... , the workdir of a run")
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.training import loading
        from experiments.training.tasks import in_words

        predictions = pathlib.Path(FLAGS.predictions).expanduser() if FLAGS.predictions else None
        if predictions and predictions.suffix not in SUFFIXES:
            raise ValueError(f"predictions is {predictions}; write a file that ends in {' or '.join(SUFFIXES)}")
        if predictions:
            check_file("predictions", predictions)
        changes = {name: FLAGS[name].value for name in ("dataset", "data_dir") if FLAGS[name].value}
        path = loading.find(pathlib.Path(FLAGS.checkpoint).expanduser())
        config, metadata = loading.saved_config(path, **changes)
        if predictions:
            loading.check_is_no_data("predictions", predictions, config)
        devices.request(config.num_stages)
        loaded = loading.load(path, config, metadata, other_data="dataset" in changes)
        found = loaded.trainer.evaluate(loaded.state)
        if predictions:
            loading.write_predictions(loaded, predictions)
        state, unit = loaded.state, "images" if loaded.trainer.task.unit == "images" else "sequences"
        where = "nothing in flight" if state.tick == state.first else "batches in flight left out"
        print(
            f"{in_words(found.loss, 1 - (found.accuracy or 0.0), found.metrics)}: {config.model} after "
            f"{state.tick} batches by {config.method}, {where}; {found.examples} {unit} of "
            f"{loaded.trainer.dataset.name}, {loaded.trainer.task.inputs}"
        )


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
