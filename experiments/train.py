"""Trains one model by one method and writes what happened into a directory.

    python -m experiments.train --method=adl --num_stages=4 --model=resnet56 --dataset=cifar10 --accumulate=4

The directory gets config.json, metrics.jsonl (a line per epoch), speed.json, summary.json, curves.png, schedule.png,
the weights as model.msgpack, and checkpoints; with --method=auto, what it measured and the timeline it expects as well;
with --diagnose_every, diagnostics.jsonl (a line per probe) and diagnostics.png. Nothing is written before the data are
loaded and the settings have been found trainable.

The same command again goes on with a run that was stopped or killed, at its newest checkpoint, and ends with the same
weights, metrics.jsonl and summary.json as if it had never been. SIGTERM and Ctrl-C save before they stop it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags
from tqdm import tqdm

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments import settings as config_flags
from experiments.report import diagnostic_plots, plots
from experiments.training.config import Config
from experiments.training.progress import Diagnosis, EpochRecord, NonFiniteLoss, as_json
from experiments.training.run_directory import (
    CHECKPOINTS,
    DIAGNOSTICS,
    METRICS,
    SUMMARY,
    RunDirectory,
    Standing,
    check_free,
    default_path,
    standing,
)
from experiments.training.saving import Saver, Saving, description
from experiments.training.stopping import StopRequest
from experiments.training.trainer import VARIABLES, BrokenData, Cut, Run, Start, Trainer
from jaxdecouple import schedules
from jaxdecouple.engine.state import State

FLAGS = flags.FLAGS
CUT = "cut.json"


def train(
    config: Config,
    workdir: pathlib.Path,
    *,
    overwrite: bool = False,
    share_devices: bool = False,
    saving: Saving | None = None,
) -> Run:
    """Trains, or goes on with the run that ``workdir`` holds, and writes the files that the module's docstring names.

    Raises:
      ValueError: the settings, the data or the workdir cannot be used, or it holds another run or a finished one.
      NonFiniteLoss: the loss became NaN or infinite.
      Stopped: by a signal, after saving.
    """
    config.check()
    check_free(workdir)
    if not overwrite and standing(workdir, config) is Standing.FINISHED:
        raise ValueError(f"workdir {workdir} holds this run, finished; write a new --workdir, or --overwrite")
    dataset = config.load_data()
    places = devices.of_stages(config.num_stages, share_devices)
    cut = None if overwrite else _saved_cut(workdir)
    trainer = Trainer(config, dataset, places, cut)
    with RunDirectory(workdir, config, overwrite=overwrite) as output:
        output.write_json(CUT, trainer.cut.as_json())
        if trainer.choice is not None:
            print(trainer.choice.explain())
            trainer.choice.save(output.path)
        described = description(config, dataset, trainer)
        with (
            StopRequest() as stop,
            jd.Checkpoints(output.path / CHECKPOINTS, keep=(saving or Saving()).keep, report=_warn) as checkpoints,
        ):
            saver = Saver(checkpoints, saving or Saving(), described, stop, trainer.batches_per_epoch)
            start = saver.start(trainer, dataset)
            run = _run(config, trainer, saver, start, output)
        _write_results(config, trainer, run, output, described)
    return run


def _run(config: Config, trainer: Trainer, saver: Saver, start: Start | None, output: RunDirectory) -> Run:
    records = _write_findings(start, output)
    begun = start.state.tick if start else 0
    if start:
        print(f"going on after {begun} of {config.epochs * trainer.batches_per_epoch} batches")
    with tqdm(total=config.epochs * trainer.batches_per_epoch, initial=begun, unit="batch", disable=None) as bar:

        def on_tick(loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        def on_epoch(record: EpochRecord, state: State) -> None:
            records.append(record)
            output.append(METRICS, record.results())
            output.write_json("speed.json", [record.times() for record in records], depth=1)
            tqdm.write(_line(record, config.epochs), file=sys.stdout)

        def on_diagnosis(record: Diagnosis) -> None:
            output.append(DIAGNOSTICS, as_json(record))

        try:
            return trainer.run(
                config.seed,
                start=start,
                on_tick=on_tick,
                on_epoch=on_epoch,
                on_diagnosis=on_diagnosis,
                between_ticks=saver.between_ticks,
            )
        except NonFiniteLoss as error:
            saver.checkpoints.wait()
            newest = saver.checkpoints.newest
            kept = (
                f"the last good checkpoint, of tick {newest.tick}, is {newest.path}" if newest else "nothing was saved"
            )
            raise NonFiniteLoss(f"{error}; {kept}") from error
        except BrokenData as error:
            saver.save(error.state, error.progress)
            raise


def _saved_cut(workdir: pathlib.Path) -> Cut | None:
    """Of the run to go on with: what was measured once is not measured again."""

    with contextlib.suppress(OSError, ValueError, KeyError):
        return Cut.from_json(json.loads((workdir / CUT).read_text()))
    return None


def _write_findings(start: Start | None, output: RunDirectory) -> list[EpochRecord]:
    """Puts the files of lines back to where the run goes on; the records of the epochs finished by then."""
    saved = start.progress if start else {"records": [], "diagnoses": []}
    records = [EpochRecord(**record) for record in saved["records"]]
    output.write_lines(METRICS, [record.results() for record in records])
    if saved["diagnoses"] or (output.path / DIAGNOSTICS).exists():
        output.write_lines(DIAGNOSTICS, saved["diagnoses"])
    return records


def _write_results(config: Config, trainer: Trainer, run: Run, output: RunDirectory, described: dict[str, Any]) -> None:
    """The summary last: where it is, a run is finished."""
    name = trainer.pipeline.schedule.name
    title = f"{name}, K = {config.num_stages}, {config.model} on {trainer.dataset.name}"
    plots.curves({config.method: [run.records]}, output.path / "curves.png", title)
    plots.schedules({name: trainer.pipeline.schedule}, output.path / "schedule.png")
    if config.diagnose_every:
        diagnostic_plots.picture(run.diagnostics, output.path / "diagnostics.png", title)
    jd.write_variables(output.path / VARIABLES, jd.export_variables(trainer.pipeline, run.state))
    jd.save(output.path / CHECKPOINTS / "final", run.state, described, overwrite=True)
    output.write_json(SUMMARY, _summary(config, trainer, run))


def _summary(config: Config, trainer: Trainer, run: Run) -> dict[str, Any]:
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
        **devices.describe(),
    }


def _line(record: EpochRecord, epochs: int) -> str:
    return (
        f"epoch {record.epoch:3d}/{epochs}  train loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}  "
        f"test error {100 * record.test_error:.2f} %  {record.images_per_second:.0f} images/s"
    )


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    default = Saving()
    config_flags.define(Config())
    command_line.define_workdir()
    flags.DEFINE_integer("save_every", default.every, "ticks between two checkpoints; 0: only when the run is stopped")
    flags.DEFINE_integer(
        "keep", default.keep, "checkpoints to keep: the newest, and besides them that of the best epoch"
    )
    flags.DEFINE_bool("share_devices", False, "put several stages on one device where devices are fewer than stages")


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="the same command goes on where the run was saved last"):
        config, saving = config_flags.read(), Saving(FLAGS.save_every, FLAGS.keep)
        config.check()
        name = f"{config.dataset.replace('/', '_').replace(':', '_')}-{config.model}-{config.method}"
        name += f"-K{config.num_stages}"
        workdir = pathlib.Path(FLAGS.workdir).expanduser() if FLAGS.workdir else default_path(name, config)
        if not FLAGS.overwrite and standing(workdir, config) is Standing.FINISHED:
            print(f"this run is finished, in {workdir}; write a new --workdir, or --overwrite to repeat it")
            return
        devices.request(config.num_stages)
        run = train(config, workdir, overwrite=FLAGS.overwrite, share_devices=FLAGS.share_devices, saving=saving)
    print(f"test error {100 * run.test_error:.2f} % after the flush; everything is in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
