"""Writes the weights of a saved run as one plain tree of Flax variables, which needs no jaxdecouple to be loaded.

    python -m experiments.export --checkpoint=runs/digits-resnet20-fdg-K2 --output=model.msgpack

What is in flight is finished first. ``flax.serialization.msgpack_restore`` reads the file's bytes, and
``experiments.train --init_from=model.msgpack`` starts a run with it, whatever its K and method.
"""

from __future__ import annotations

import contextlib
import json
import pathlib

from absl import flags

from experiments import cli as command_line
from experiments.report.workdir import check_file

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    flags.DEFINE_string("checkpoint", "", "workdir of a run (its final checkpoint, else the newest), or a checkpoint")
    flags.DEFINE_string("output", "model.msgpack", "file to write")
    flags.DEFINE_string("data_dir", "", "as for experiments.train; empty: that of the run")


def _check_unlike(output: pathlib.Path, about: pathlib.Path) -> None:
    """Refuses to replace files that are no model and its description."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        if {"model", "dtype"} <= set(json.loads(about.read_text())):
            return
    if output.exists():
        raise ValueError(f"output is {output}, which is there and no model of this program; write another file")
    if about.exists():
        raise ValueError(
            f"output is {output}, beside which {about.name} would be replaced, and that says nothing of a model; write "
            "another file"
        )


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        if not FLAGS.checkpoint:
            raise ValueError("checkpoint is not given; write --checkpoint=runs/... , the workdir of a run")
        output = pathlib.Path(FLAGS.output).expanduser()
        if output.suffix == ".json":
            raise ValueError(f"output is {output}, where what the model expects is written; write a file.msgpack")
        check_file("output", output, is_made=True)
        check_file("output", output.with_suffix(".json"), is_made=True)
        _check_unlike(output, output.with_suffix(".json"))
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.training import loading

        path = loading.find(pathlib.Path(FLAGS.checkpoint).expanduser())
        config, metadata = loading.saved_config(path, **({"data_dir": FLAGS.data_dir} if FLAGS.data_dir else {}))
        devices.request(config.num_stages)
        loaded = loading.load(path, config, metadata)
        state = loaded.trainer.pipeline.flush(loaded.state)
        loading.write_model(output, loaded.trainer, state)
        print(
            f"the weights of {config.model} after {state.tick} batches by {config.method} are in {FLAGS.output}, and "
            "what it expects of its inputs in the .json beside it"
        )


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
