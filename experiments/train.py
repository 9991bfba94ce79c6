"""Trains one model by one method and writes what happened into a directory.

    python -m experiments.train --method=adl --num_stages=4 --model=resnet56 --dataset=cifar10 --accumulate=4
    python -m experiments.train --method=fdg --num_stages=4 --model=gpt_nano --dataset=pydoc --optimizer=adamw

The directory gets config.json, metrics.jsonl (a line per epoch), speed.json, summary.json, curves.png, schedule.png,
the weights as model.msgpack, and checkpoints; with --method=auto, what it measured and the timeline it expects as well;
with --diagnose_every, diagnostics.jsonl (a line per probe) and diagnostics.png; with --log, metrics.csv, tensorboard/.
Nothing is written before the data are loaded and the settings have been found trainable.

The same command again goes on with a run that was stopped or killed, at its newest checkpoint, and ends with the same
weights, metrics.jsonl and summary.json as if it had never been. SIGTERM, Ctrl-C and a terminal that goes away save
before they stop it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from absl import flags

from experiments import cli as command_line
from experiments import settings
from experiments.training import launching
from experiments.training.config import Config, Logging, Saving
from experiments.training.launching import Processes
from experiments.training.run_directory import Standing, default_path, standing

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    settings.define(Config)
    settings.define(Saving)
    settings.define(Logging)
    settings.define(Processes)
    flags.DEFINE_bool("share_devices", False, "put several stages on one device where devices are fewer than stages")
    settings.show("share_devices", "the run")
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    again = "the same command without --overwrite" if FLAGS.overwrite else "the same command"
    with command_line.frame(argv, interrupted=f"{again} goes on where the run was saved last"):
        config, saving = settings.read(Config), settings.read(Saving)
        logging, asked = settings.read(Logging), settings.read(Processes)
        workdir = pathlib.Path(FLAGS.workdir).expanduser() if FLAGS.workdir else default_path(config)
        if not FLAGS.overwrite and standing(workdir, config) is Standing.FINISHED:
            print(f"this run is finished, in {workdir}; write a new --workdir, or --overwrite to repeat it")
            return
        if asked.processes > 1 and not launching.is_one_of_several():
            sys.exit(launching.watch(asked, config.num_stages, workdir))
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.training import processes, session
        from experiments.training.tasks import in_words

        devices.request(config.num_stages, asked.group_size)
        same = {**dataclasses.asdict(config), "group_size": asked.group_size, "workdir": str(workdir)}
        with processes.joined(same, asked.group_size):
            run = session.train(
                config,
                workdir,
                overwrite=FLAGS.overwrite,
                share_devices=FLAGS.share_devices,
                group_size=asked.group_size,
                saving=saving,
                loggers=logging.log,
                mark_ticks=logging.mark_ticks,
            )
        found = in_words(run.final.loss, run.test_error, run.final.metrics)
        print(f"{found} after the flush; everything is in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
