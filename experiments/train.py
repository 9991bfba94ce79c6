"""Trains one model by one method and writes what happened into a directory.

    python -m experiments.train --method=adl --num_stages=4 --model=resnet56 --dataset=cifar10 --accumulate=4

The directory gets config.json, metrics.jsonl (a line per epoch), summary.json, curves.png, schedule.png and the final
checkpoint; with --method=auto, what it measured and the timeline it expects as well; with --diagnose_every,
diagnostics.jsonl (a line per probe) and diagnostics.png. Nothing is written before the data
are loaded and the settings have been found trainable.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
import time
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments import checkpoints, command_line, devices, diagnostic_plots, plots
from experiments import flags as config_flags
from experiments.config import Config
from experiments.training import Diagnosis, EpochRecord, Run, Trainer
from experiments.workdir import Workdir
from jaxdecouple import schedules
from jaxdecouple.state import State

FLAGS = flags.FLAGS


def train(config: Config, workdir: pathlib.Path, *, overwrite: bool = False, share_devices: bool = False) -> Run:
    """Trains and writes the files that the module's docstring names.

    Raises:
      ValueError: the settings, the data or the workdir cannot be used; nothing was written.
      NonFiniteLoss: the loss became NaN or infinite.
    """
    config.check()
    Workdir.check(workdir, overwrite=overwrite)
    dataset = config.load_data()
    trainer = Trainer(config, dataset, devices.of_stages(config.num_stages, share_devices))
    output = Workdir(workdir, dataclasses.asdict(config), overwrite=overwrite)
    if trainer.choice is not None:
        print(trainer.choice.explain())
        trainer.choice.save(output.path)
    start = time.perf_counter()
    with tqdm(total=config.epochs * trainer.batches_per_epoch, unit="batch", disable=None) as bar:

        def on_tick(loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        def on_epoch(record: EpochRecord, state: State) -> None:
            output.append("metrics.jsonl", dataclasses.asdict(record))
            tqdm.write(_line(record, config.epochs), file=sys.stdout)

        def on_diagnosis(record: Diagnosis) -> None:
            output.append("diagnostics.jsonl", {"probe": type(record).__name__, **_numbers(dataclasses.asdict(record))})

        run = trainer.run(config.seed, on_tick=on_tick, on_epoch=on_epoch, on_diagnosis=on_diagnosis)
    output.write_json("summary.json", _summary(config, trainer, run, time.perf_counter() - start))
    title = f"{trainer.pipeline.schedule.name}, K = {config.num_stages}, {config.model} on {dataset.name}"
    plots.curves({config.method: [run.records]}, output.path / "curves.png", title)
    plots.schedules({trainer.pipeline.schedule.name: trainer.pipeline.schedule}, output.path / "schedule.png")
    if config.diagnose_every:
        diagnostic_plots.picture(run.diagnostics, output.path / "diagnostics.png", title)
    checkpoints.save(output.path / "checkpoints" / "final", run.state)
    return run


def _summary(config: Config, trainer: Trainer, run: Run, seconds: float) -> dict:
    pipeline = trainer.pipeline
    return {
        "method": pipeline.schedule.name,
        "weights": pipeline.weights,
        "staleness": schedules.staleness(pipeline.schedule, config.steps_per_update),
        "layers_per_stage": [stage.num_layers for stage in pipeline.stages],
        "boundaries": [stage.first for stage in pipeline.stages[1:]],
        "schedule": dataclasses.asdict(pipeline.schedule),
        "test_error": run.test_error,
        "test_loss": run.final.loss,
        "images_per_second": run.images_per_second,
        "seconds": seconds,
        **devices.describe(),
    }


def _numbers(value: Any) -> Any:
    """``value`` with ``None`` in place of what JSON has no number for, such as the cosine with a gradient of 0."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: EpochRecord, epochs: int) -> str:
    return (
        f"epoch {record.epoch:3d}/{epochs}  train loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}  "
        f"test error {100 * record.test_error:.2f} %  {record.images_per_second:.0f} images/s"
    )


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    config_flags.define(Config())
    command_line.define_workdir()
    flags.DEFINE_bool("share_devices", False, "put several stages on one device where devices are fewer than stages")


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="metrics.jsonl holds the epochs that were finished"):
        config = config_flags.read()
        config.check()
        name = f"{config.dataset.replace('/', '_').replace(':', '_')}-{config.model}-{config.method}"
        workdir = pathlib.Path(FLAGS.workdir) if FLAGS.workdir else Workdir.unused(f"runs/{name}-K{config.num_stages}")
        devices.request(config.num_stages)
        run = train(config, workdir, overwrite=FLAGS.overwrite, share_devices=FLAGS.share_devices)
    print(f"test error {100 * run.test_error:.2f} % after the flush; everything is in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
