"""One run, from its settings to the files that it leaves: trained from the beginning, or gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.measure.marks import Mark, Marks
from experiments.report import plots
from experiments.report.workdir import check_free, drawing
from experiments.training import processes
from experiments.training.config import Config, Saving
from experiments.training.loading import write_model
from experiments.training.loggers import Logger, Loggers
from experiments.training.methods import AUTO
from experiments.training.progress import EpochRecord, as_json
from experiments.training.run_directory import (
    CHECKPOINTS,
    DIAGNOSTICS,
    LAYOUT,
    MARKS,
    METRICS,
    SETUP,
    SPEED,
    SUMMARY,
    RunDirectory,
    Standing,
    Unwritten,
    standing,
)
from experiments.training.saving import Saver
from experiments.training.stopping import NonFiniteLoss, StopRequest
from experiments.training.tasks import in_words
from experiments.training.trainer import ABOUT, VARIABLES, BrokenData, Finished, Layout, Start, Trainer
from jaxdecouple import schedules
from jaxdecouple.engine.state import State


def train(
    config: Config,
    workdir: pathlib.Path,
    *,
    overwrite: bool = False,
    share_devices: bool = False,
    group_size: int = 1,
    saving: Saving | None = None,
    loggers: Sequence[str | Logger] = (),
    mark_ticks: int = 0,
) -> Finished:
    """Trains, or goes on with the run that ``workdir`` holds, and writes the files that `experiments.train` names.

    Args:
      config: the settings.
      workdir: new, or that of the run to go on with.
      overwrite: whether to replace the run that is there.
      share_devices: whether several stages may be on one device.
      group_size: how many devices each stage has.
      saving: how often to save.
      loggers: where the numbers go besides ``metrics.jsonl``: names of `LOGS`, or loggers of your own.
      mark_ticks: ticks in which it is noted when each operation really runs.

    Raises:
      ValueError: the settings, the data or the workdir cannot be used, or it holds another run or a finished one.
      NonFiniteLoss: the loss became NaN or infinite.
      Stopped: by a signal, after saving.
    """
    processes.agreed(lambda: _check(config, workdir, overwrite, mark_ticks))
    _check_places(config, group_size)
    saving = saving or Saving()
    dataset, places = config.load_data(), devices.of_stages(config.num_stages, share_devices, group_size)
    trainer = Trainer(config, dataset, places, None if overwrite else _saved_layout(workdir))
    if config.init_from:
        trainer.init(config.seed)  # refuses weights of another model before a run is replaced
    with _claimed(config, workdir, overwrite) as output:
        if trainer.choice is not None:
            print(trainer.choice.explain())
            trainer.choice.save(output)
        output.write_json(LAYOUT, dataclasses.asdict(trainer.layout))  # once it is there, nothing is measured again
        output.write_json(SETUP, _setup(trainer))
        with (
            StopRequest() as stop,
            jd.Checkpoints(output.file(CHECKPOINTS), keep=saving.keep, report=_warn) as checkpoints,
            Loggers(loggers if processes.is_speaker() else (), output, config, _warn) as logs,
        ):
            saver = Saver(checkpoints, saving, trainer, stop, again(overwrite))
            try:
                run = _run(config, trainer, saver, output, logs, mark_ticks)
            except ValueError:
                checkpoints.wait()
                # Refused before its first tick. What is on the disk counts: where a process was killed while it saved,
                # the others do not know of the checkpoint.
                if output.standing is Standing.NEW and not jd.checkpoints.saved_in(checkpoints.path):
                    output.abandon()
                raise
        _write_results(trainer, run, output, saver.described)
    return run


def _check_places(config: Config, group_size: int) -> None:
    alone = {"method": config.method == AUTO, "diagnose_every": config.diagnose_every > 0}
    for name in (name for name, asked in alone.items() if asked and (group_size > 1 or processes.count() > 1)):
        raise ValueError(
            f"{name} is {getattr(config, name)}, which needs one process and one device per stage, but processes is "
            f"{processes.count()} and group_size {group_size}; leave one or the other out"
        )


def _check(config: Config, workdir: pathlib.Path, overwrite: bool, mark_ticks: int) -> None:
    if mark_ticks and config.diagnose_every:
        raise ValueError(
            f"mark_ticks is {mark_ticks} and diagnose_every {config.diagnose_every}; write one of them, since a probe "
            "dispatches operations that it would be wrong to time"
        )
    if mark_ticks and processes.count() > 1:
        raise ValueError(f"mark_ticks is {mark_ticks}, but operations are timed in one process alone; leave it out")
    check_free(workdir)
    if overwrite:
        RunDirectory.check(workdir, overwrite=True, inputs={"init_from": config.init_from})
    elif standing(workdir, config) is Standing.FINISHED:
        raise ValueError(f"workdir {workdir} holds this run, finished; write a new --workdir, or --overwrite")


@contextlib.contextmanager
def _claimed(config: Config, workdir: pathlib.Path, overwrite: bool) -> Iterator[RunDirectory | Unwritten]:
    """The directory of the run, as one process holds it. The others leave its files alone."""
    with contextlib.ExitStack() as held:
        output: RunDirectory | Unwritten = Unwritten(workdir)

        def claim() -> None:
            nonlocal output
            output = held.enter_context(RunDirectory(workdir, config, overwrite=overwrite))

        processes.agreed(claim)
        yield output


def _run(
    config: Config,
    trainer: Trainer,
    saver: Saver,
    output: RunDirectory | Unwritten,
    logs: Loggers,
    mark_ticks: int,
) -> Finished:
    start = saver.start()
    records = _write_findings(start, output)
    for record in records:
        logs.log(record)
    begun, total = start.state.tick if start else 0, config.epochs * trainer.batches_per_epoch
    if start:
        print(f"going on after {begun} of {total} batches")
    with command_line.bar(total, "batch", begun, shown=processes.is_speaker()) as bar:

        def on_tick(loss: float) -> None:
            rate = bar.format_dict["rate"]  # ticks per second; None at first
            each = min(config.batch_size, trainer.dataset.num_train) * trainer.task.per_example
            shown = {f"{trainer.task.unit}/s": f"{rate * each:.0f}"} if rate else {}
            if math.isfinite(loss):  # one is known
                shown["loss"] = f"{loss:.4f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()

        def on_epoch(record: EpochRecord, state: State) -> None:
            records.append(record)
            output.append(METRICS, record.results())
            output.write_json(SPEED, [record.times() for record in records], depth=1)
            logs.log(record)
            tqdm.write(_line(record, trainer), file=sys.stdout)

        def on_marks(marks: list[Mark]) -> None:
            output.write_json(MARKS, [mark._asdict() for mark in marks], depth=1)

        try:
            return trainer.run(
                config.seed,
                start=start,
                marks=Marks(trainer.pipeline, mark_ticks, trainer.batches_per_epoch, on_marks) if mark_ticks else None,
                on_tick=on_tick,
                on_epoch=on_epoch,
                on_diagnosis=lambda record: output.append(DIAGNOSTICS, as_json(record)),
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


def _saved_layout(workdir: pathlib.Path) -> Layout | None:
    """Of the run to go on with: what was measured once is not measured again."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return Layout.from_json(json.loads((workdir / LAYOUT).read_text()))
    return None


def _write_findings(start: Start | None, output: RunDirectory | Unwritten) -> list[EpochRecord]:
    """Puts the files of lines back to where the run goes on; the records of the epochs finished by then."""
    saved = start.progress if start else {"records": [], "diagnoses": []}
    records = [EpochRecord(**record) for record in saved["records"]]
    output.write_lines(METRICS, [record.results() for record in records])
    if saved["diagnoses"] or (output.path / DIAGNOSTICS).exists():
        output.write_lines(DIAGNOSTICS, saved["diagnoses"])
    return records


def _write_results(
    trainer: Trainer, run: Finished, output: RunDirectory | Unwritten, described: Mapping[str, Any]
) -> None:
    """The weights first, and the summary last: where it is, a run is finished."""
    output.file(ABOUT)
    write_model(output.file(VARIABLES), trainer, run.state)
    jd.save(output.file(CHECKPOINTS) / "final", run.state, described, overwrite=True)
    config, name = trainer.config, trainer.pipeline.schedule.name
    title = f"{name}, K = {config.num_stages}, {config.model} on {trainer.dataset.name}"
    if not processes.is_speaker():
        return
    with drawing():
        plots.curves({config.method: [run.records]}, output.file("curves.png"), title)
        plots.schedules({name: trainer.pipeline.schedule}, output.file("schedule.png"))
        if config.diagnose_every:
            plots.diagnostics(run.diagnostics, output.file("diagnostics.png"), title)
    output.write_json(SUMMARY, _summary(trainer, run))


def _setup(trainer: Trainer) -> dict[str, Any]:
    """What is known of a run when it begins."""
    pipeline = trainer.pipeline
    return {
        "method": pipeline.schedule.name,
        "weights": pipeline.weights,
        "staleness": schedules.staleness(pipeline.schedule, trainer.config.steps_per_update),
        "layers_per_stage": [stage.num_layers for stage in pipeline.stages],
        "boundaries": [stage.first for stage in pipeline.stages[1:]],
        "schedule": dataclasses.asdict(pipeline.schedule),
        **devices.describe(),
    }


def _summary(trainer: Trainer, run: Finished) -> dict[str, Any]:
    measured = {name: value for name, value in run.final.metrics.items() if name != "accuracy"}
    return {**_setup(trainer), "test_error": run.test_error, "test_loss": run.final.loss, **measured}


def _line(record: EpochRecord, trainer: Trainer) -> str:
    task, epochs = trainer.task, trainer.config.epochs
    found = in_words(record.test_loss, record.test_error, record.metrics)
    speed = task.per_example * record.images_per_second
    return f"epoch {record.epoch:3d}/{epochs}  train loss {record.train_loss:.4f}  {found}  {speed:.0f} {task.unit}/s"


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def again(overwrite: bool) -> str:
    """What goes on with a run that was stopped."""
    return "the same command without --overwrite" if overwrite else "the same command"
