"""A logger takes the numbers of a run's epochs to where a team looks for them, beside ``metrics.jsonl``."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from experiments.report.workdir import Files
from experiments.training.config import LOGS, Config
from experiments.training.progress import EpochRecord

Numbers = Mapping[str, float]


class Logger(Protocol):
    """Where numbers go. Give one of your own to `session.train`, as ``loggers=[...]``."""

    def log(self, numbers: Numbers) -> None:
        """Takes the numbers of an epoch, by name: the fields of `EpochRecord`; NaN and infinities are left out.

        A run that goes on begins with those of the epochs before.
        """
        ...

    def close(self) -> None:
        """The run has ended, however it ended."""
        ...


class CsvLogger:
    """``metrics.csv``: a line for each epoch, below a line of names."""

    def __init__(self, output: Files, config: Config):
        self._file = output.file("metrics.csv").open("w", newline="")
        self._writer: csv.DictWriter[str] | None = None

    def log(self, numbers: Numbers) -> None:
        """Writes a line at once."""
        if self._writer is None:
            own = [field.name for field in dataclasses.fields(EpochRecord) if field.name != "metrics"]
            names = dict.fromkeys([*own, *numbers])  # a loss that is not finite in the first epoch has a column, too
            self._writer = csv.DictWriter(self._file, list(names), extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow(numbers)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLogger:
    """A file of events in ``tensorboard/``, which TensorBoard shows over the batches fed.

    It is written at once, not by tensorboardX's own thread, whose errors nobody would learn of.
    """

    def __init__(self, output: Files, config: Config):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        folder = output.file("tensorboard")
        shutil.rmtree(folder, ignore_errors=True)  # the epochs before a stop are written again
        folder.mkdir()
        self._summary, self._event = summary.scalar, Event
        self._writer = EventsWriter(str(folder / "events"))

    def log(self, numbers: Numbers) -> None:
        """Writes each number at the tick of the epoch's end."""
        for name, value in numbers.items():
            self._writer.write_event(
                self._event(step=int(numbers["ticks"]), wall_time=time.time(), summary=self._summary(name, value))
            )
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, which goes on when the run does. ``WANDB_MODE=offline`` needs no network."""

    def __init__(self, output: Files, config: Config):
        import wandb  # pyright: ignore[reportMissingImports]  # not installed with the programs

        known = output.file("wandb_id")
        if not known.is_file():
            known.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project="jaxdecouple",
            id=known.read_text(),
            name=output.path.name,
            dir=str(output.path),
            config=dataclasses.asdict(config),
            resume="allow",
            settings=wandb.Settings(init_timeout=30),  # seconds, without a network
        )
        output.file("wandb")
        self._begun = int(self._run.step)  # of a run that goes on, the last tick that was logged

    def log(self, numbers: Numbers) -> None:
        """Hands the numbers to the process of Weights & Biases."""
        if numbers["ticks"] > self._begun:
            self._run.log(dict(numbers), step=int(numbers["ticks"]))

    def close(self) -> None:
        """Waits until they are sent."""
        self._run.finish()


_BY_NAME: dict[str, Callable[[Files, Config], Logger]] = dict(
    zip(LOGS, (CsvLogger, TensorBoardLogger, WandbLogger), strict=True)
)


class Loggers:
    """Several loggers. One that cannot be had, or fails, gives a warning and is left out from then on."""

    def __init__(
        self, chosen: Sequence[str | Logger], output: Files, config: Config, report: Callable[[str], None]
    ) -> None:
        """Begins.

        Args:
          chosen: names of `LOGS`, or loggers.
          output: the run's directory.
          config: its settings.
          report: is told of what goes wrong.
        """
        self._report, self._open = report, dict[str, Logger]()
        for logger in chosen:
            name = logger if isinstance(logger, str) else type(logger).__name__
            try:
                self._open[name] = _BY_NAME[logger](output, config) if isinstance(logger, str) else logger
            except Exception as error:  # whatever a library and its server say
                self._leave_out(name, error)

    def log(self, record: EpochRecord) -> None:
        """Hands the numbers of an epoch to all."""
        found = {name: value for name, value in (record.results() | record.times()).items() if _is_finite(value)}
        self._each(lambda logger: logger.log(found))

    def close(self) -> None:
        """Closes all."""
        self._each(lambda logger: logger.close())
        self._open.clear()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, action: Callable[[Logger], Any]) -> None:
        for name, logger in list(self._open.items()):
            try:
                action(logger)
            except Exception as error:
                del self._open[name]
                self._leave_out(name, error)
                with contextlib.suppress(Exception):  # else what it could not write would be said once more
                    logger.close()

    def _leave_out(self, name: str, error: Exception) -> None:
        said = str(error).partition("\n")[0]
        hint = f"; write pip install {error.name}" if isinstance(error, ModuleNotFoundError) and error.name else ""
        self._report(f"nothing more is logged to {name} ({type(error).__name__}: {said}{hint}); training goes on")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
