"""When a training run is saved, what is saved with its state, and how a run finds where to go on."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
from typing import Any

import jaxdecouple as jd
from experiments.training.config import Saving
from experiments.training.processes import Stop
from experiments.training.progress import EpochRecord, Progress
from experiments.training.stopping import Stopped, StopRequest
from experiments.training.trainer import Start, Trainer
from jaxdecouple.data import ImageData, TextData
from jaxdecouple.engine.state import State


def description(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint says of its run, besides how far it is."""
    data = {"name": trainer.dataset.name, "fingerprint": trainer.dataset.fingerprint()}
    parts = {"config": trainer.config, "cut": trainer.layout, "inputs": trainer.task.inputs}
    return {"data": data, **{name: dataclasses.asdict(part) for name, part in parts.items()}}


def check_data(metadata: dict[str, Any], dataset: ImageData | TextData, path: pathlib.Path) -> None:
    """Refuses to go on with other data than a run began with.

    Raises:
      CheckpointError: they are others.
    """
    if metadata["data"]["fingerprint"] != dataset.fingerprint():
        raise jd.CheckpointError(
            f"checkpoint {path} was trained on other data than {dataset.name} are now: data or files have "
            "changed; put back the data it was trained on, or start a new run with --init_from"
        )


class Saver:
    """Saves a run between its ticks.

    Attributes:
      checkpoints: where.
    """

    def __init__(
        self,
        checkpoints: jd.Checkpoints,
        saving: Saving,
        trainer: Trainer,
        stop: StopRequest,
        again: str = "the same command",
    ):
        """Saves a run into a directory until a stop is requested.

        Args:
          checkpoints: where.
          saving: how often.
          trainer: of the run.
          stop: the request.
          again: what goes on with the run after a stop.
        """
        self.checkpoints, self._saving, self._stop, self._again = checkpoints, saving, Stop(stop), again
        self._trainer, self.described = trainer, description(trainer)
        # A probe follows a batch until every stage has used its gradient in an update.
        self._patience = 2 * trainer.pipeline.schedule.drain + trainer.config.steps_per_update + 1
        self._due_since: int | None = None
        self._signum: int | None = None

    def start(self) -> Start | None:
        """Where the run goes on: at its newest whole checkpoint, if there is one.

        Raises:
          CheckpointError: it is of another run or other data, or all are damaged.
        """
        found = self.checkpoints.restore(self._trainer.restore)
        if found is None:
            return None
        state, metadata = found
        check_data(metadata, self._trainer.dataset, self.checkpoints.path)
        return Start(state, metadata["progress"])

    def between_ticks(self, state: State, progress: Progress) -> None:
        """Saves, if it is time.

        A probe that is under way could not be gone on with. So a save waits until none is, but not for ever: where
        there is always one, it is lost at a stop.

        Raises:
          Stopped: the run is to end; it has been saved, if that was possible.
        """
        record = None if state.tick % self._trainer.batches_per_epoch else progress.records[-1]
        every, signum = self._saving.save_every, self._stop.signum(state.tick)
        self._signum = self._signum or signum
        stopping = self._signum is not None
        if stopping or (every and (state.tick % every == 0 or _is_best(record, progress))):
            self._due_since = state.tick if self._due_since is None else self._due_since
        if self._due_since is None:
            return
        if progress.at_rest(state) or state.tick - self._due_since >= self._patience:
            self.save(state, progress, record)
            self._due_since = None
            if self._signum is not None:
                raise Stopped(self._farewell(state, self._signum), self._signum)

    def save(self, state: State, progress: Progress, record: EpochRecord | None = None) -> None:
        """Begins to save a state; ``record`` is that of the epoch that it ends, if it does."""
        found, described = progress.frozen(), self.described
        self.checkpoints.save(state, lambda: {**described, "progress": found()}, score=record and record.score)

    def _farewell(self, state: State, signum: int) -> str:
        self.checkpoints.wait()
        newest, name = self.checkpoints.newest, signal.Signals(signum).name
        if newest is None:
            return f"stopped by {name} after {state.tick} batches, which could not be saved"
        kept = "all of them are saved" if newest.tick == state.tick else f"of which {newest.tick} are saved"
        return f"stopped by {name} after {state.tick} batches; {kept}: {self._again} goes on with {newest.path}"


def _is_best(record: EpochRecord | None, progress: Progress) -> bool:
    return record is not None and all(record.score < other.score for other in progress.records[:-1])
