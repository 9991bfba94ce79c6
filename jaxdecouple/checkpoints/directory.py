"""A directory of checkpoints: written while training goes on, the newest and best kept, damaged ones passed over."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax

from jaxdecouple.checkpoints import files
from jaxdecouple.checkpoints.api import Metadata, write
from jaxdecouple.checkpoints.snapshot import Snapshot, take
from jaxdecouple.engine.processes import agreed, told_by_all
from jaxdecouple.engine.state import State
from jaxdecouple.errors import CheckpointError, DamagedCheckpoint

_NAME = re.compile(r"tick-(\d{8,})")


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint of a directory.

    Attributes:
      path: where it is.
      tick: of its state.
      score: that it was saved with, if any.
    """

    path: pathlib.Path
    tick: int
    score: float | None


class Checkpoints:
    """Checkpoints of one run, ``tick-<number>`` in a directory.

    Saving returns at once: the state is copied on its devices, and a thread takes it from there. A checkpoint that
    cannot be written, or whose state is not finite, is reported, and those before it are kept.

    To be closed when all is done, or used in a ``with`` statement: that waits for what is being written.

    Attributes:
      path: the directory.
      keep: how many of the newest are kept.
    """

    def __init__(self, path: str | pathlib.Path, *, keep: int = 3, report: Callable[[str], None] = print):
        """Opens a directory, new or with the checkpoints of this run; what a killed writer left in it is removed.

        Args:
          path: the directory.
          keep: how many of the newest to keep, at least 1; the one of the lowest score is kept besides.
          report: is told what goes wrong in the background, a sentence each.

        Raises:
          CheckpointError: ``keep`` is below 1, or the directory cannot be written.
        """
        if keep < 1:
            raise CheckpointError(f"keep is {keep}; write how many of the newest checkpoints to keep, at least 1")
        self.path, self.keep, self._report = pathlib.Path(path).expanduser(), keep, report
        agreed(self._open, CheckpointError)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._writing: concurrent.futures.Future | None = None
        self._saved = {saved.tick: saved for saved in saved_in(self.path)}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def newest(self) -> Saved | None:
        """Of those whose writing has ended."""
        return self._saved[max(self._saved)] if self._saved else None

    @property
    def best(self) -> Saved | None:
        """The one with the lowest score, the newest among equals."""
        scored = [saved for saved in self._saved.values() if saved.score is not None and math.isfinite(saved.score)]
        return min(scored, key=lambda saved: (saved.score, -saved.tick), default=None)

    def save(self, state: State, metadata: Metadata = None, *, score: float | None = None) -> None:
        """Begins to save a state; waits for the one before, should it still be on its way to the disk.

        A tick that is there already is not saved again.

        Args:
          state: between two ticks, in flight or flushed. It may be given to `Pipeline.step` at once.
          metadata: JSON to keep with it, or a function that gives it, called in the background: it may wait for
            losses. If it raises `CheckpointError`, nothing is written.
          score: the lower, the better.
        """
        self.wait()
        score = None if score is None else float(score)
        if int(state.tick) not in self._saved:
            self._writing = self._executor.submit(self._write, take(state), metadata, score)

    def wait(self) -> None:
        """Waits until what was begun is written, or has failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.wait()
        self._executor.shutdown()

    def restore(self, restore: Callable[[pathlib.Path], State]) -> tuple[State, Any] | None:
        """The newest state that is whole, with its metadata; ``None`` where there is no checkpoint.

        Damaged checkpoints are reported, put aside under another name, and the one before is taken.

        Args:
          restore: from a checkpoint's path: ``lambda path: jaxdecouple.restore(path, pipeline, x)``.

        Raises:
          CheckpointError: it does not fit the pipeline, or all are damaged.
        """
        self.wait()
        damage = None
        while saved := self.newest:
            found, failure = None, None
            try:
                found = restore(saved.path), files.read_document(saved.path)["metadata"]
            except CheckpointError as error:
                if files.is_complete(saved.path) and not isinstance(error, DamagedCheckpoint):
                    raise
                failure = str(error)
            failures = list(filter(None, told_by_all(failure)))  # what one process cannot read, none takes
            if not failures:
                return found
            damage = DamagedCheckpoint(failures[0])
            self._put_aside(saved, damage)
        if damage is not None:
            raise CheckpointError(f"no checkpoint in {self.path} is whole; the oldest: {damage}") from damage
        return None

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written ({error}); write another directory") from error
        files.remove_unfinished(self.path)

    def _put_aside(self, saved: Saved, error: CheckpointError) -> None:
        aside = saved.path.with_name(f"damaged-{saved.path.name}")

        def rename() -> None:
            self._report(f"{error}; it is put aside as {aside.name}")
            shutil.rmtree(aside, ignore_errors=True)
            saved.path.rename(aside)

        agreed(rename, CheckpointError)
        del self._saved[saved.tick]

    def _write(self, snapshot: Snapshot, metadata: Metadata, score: float | None) -> None:
        path = self.path / f"tick-{snapshot.tick:08d}"
        try:
            write(path, snapshot, metadata, score, finite=True)
        except CheckpointError as error:
            if jax.process_index() == 0:
                kept = f"the newest is that of tick {self.newest.tick}" if self.newest else "there is none yet"
                self._report(f"{error}; training goes on, and {kept}")
            return
        self._saved[snapshot.tick] = Saved(path, snapshot.tick, score)
        self._retain()

    def _retain(self) -> None:
        kept = {*sorted(self._saved)[-self.keep :], *({self.best.tick} if self.best else ())}
        for tick in [tick for tick in self._saved if tick not in kept]:
            left = self._saved.pop(tick)
            if jax.process_index() == 0:
                shutil.rmtree(left.path, ignore_errors=True)


def saved_in(path: str | pathlib.Path) -> list[Saved]:
    """The checkpoints of a directory, oldest first; nothing is changed, so another program may be writing there."""
    found, path = [], pathlib.Path(path).expanduser()
    for entry in path.iterdir() if path.is_dir() else ():
        if name := _NAME.fullmatch(entry.name):
            try:
                score = files.read_document(entry)["score"]
            except CheckpointError:  # it will be said when it is restored
                score = None
            found.append(Saved(entry, int(name[1]), score))
    return sorted(found, key=lambda saved: saved.tick)
