"""Saving and restoring a state by hand."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable
from typing import Any

import jax

from jaxdecouple.checkpoints import files, joint
from jaxdecouple.checkpoints.restoring import restore_state
from jaxdecouple.checkpoints.snapshot import Snapshot, take
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.processes import agreed
from jaxdecouple.engine.state import State
from jaxdecouple.errors import CheckpointError
from jaxdecouple.network.trees import PyTree

Metadata = Any | Callable[[], Any]  # JSON, or what gives it


def save(path: str | pathlib.Path, state: State, metadata: Any = None, *, overwrite: bool = False) -> None:
    """Saves a state, whatever is in flight, and waits until it is on the disk, whole or not at all.

    Several processes all call it, and write into a file system that they share.

    Args:
      path: a directory to be, in which Orbax writes arrays and JSON.
      state: between two ticks; it is not changed.
      metadata: JSON of your own, for `metadata`.
      overwrite: replace what is at ``path``, if it is a checkpoint.

    Raises:
      CheckpointError: there is something at ``path``, or it cannot be written.
    """
    path = _as_path(path)
    mark = agreed(lambda: _cleared(path, overwrite), CheckpointError)
    new, old = (path.with_name(f".{path.name}.{part}-{mark}.saving") for part in ("new", "old"))
    try:
        write(new, take(state), metadata)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(new), str(path))) from error
    agreed(lambda: _replace(path, new, old), CheckpointError)


def _as_path(path: Any) -> pathlib.Path:
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(
            f"the path is a {type(path).__name__}; write save(path, state), or restore(path, pipeline, x)"
        )
    return pathlib.Path(path).expanduser()


def _cleared(path: pathlib.Path, overwrite: bool) -> str:
    """Makes sure that ``path`` may be written; a mark for the names of what is written on the way."""
    if path.exists():
        if not overwrite:
            raise CheckpointError(f"{path} exists; write another path, or overwrite=True to replace a checkpoint")
        files.read_document(path)  # nothing else is ever removed
    for left in path.parent.glob(f".{path.name}.*.saving*"):  # by a program that was killed
        shutil.rmtree(left, ignore_errors=True)
    return uuid.uuid4().hex


def _replace(path: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def restore(path: str | pathlib.Path, pipeline: Pipeline, x: PyTree, targets: PyTree | None = None) -> State:
    """The state saved at ``path``, on the pipeline's devices; training goes on with it as if nothing had happened.

    The pipeline must have the stages, the optimizer and, unless nothing was in flight, the schedule that it was saved
    from; devices may differ. No code is loaded, only arrays and JSON.

    Args:
      path: as given to `save`, or a checkpoint of a `Checkpoints` directory.
      pipeline: built as it was when the state was saved.
      x: inputs, [B, ...], of which only shapes and dtypes matter.
      targets: likewise. Labels need not be given, and others only where the checkpoint does not show them: trees of
        several arrays, those of auxiliary networks, and those used already (`schedules.zero_bubble`).

    Raises:
      CheckpointError: there is no checkpoint, or it is not of this pipeline.
      DamagedCheckpoint: its files are incomplete or changed.
    """
    path = _as_path(path)
    return restore_state(path, files.read_document(path), pipeline, x, targets)


def metadata(path: str | pathlib.Path) -> Any:
    """The JSON that a checkpoint was saved with.

    Raises:
      CheckpointError: there is no checkpoint at ``path``, or it is damaged.
    """
    return document(path)["metadata"]


def document(path: str | pathlib.Path) -> dict[str, Any]:
    """All that a checkpoint says of itself: name, shape and dtype of each leaf, checksums of the arrays, versions.

    Raises:
      CheckpointError: there is no checkpoint at ``path``, or it is damaged.
    """
    return files.read_document(_as_path(path))


def write(
    path: pathlib.Path, snapshot: Snapshot, metadata: Metadata, score: float | None = None, *, finite: bool = False
) -> None:
    """Writes a snapshot, with the other processes if there are any.

    Args:
      path: a directory that does not exist.
      snapshot: of this process's stages.
      metadata: JSON, or what gives it.
      score: the lower, the better.
      finite: refuse weights that are not finite.

    Raises:
      CheckpointError: it cannot be written.
    """

    def contents() -> tuple[files.Arrays, dict[str, Any]]:
        problem = snapshot.problem() if finite else None
        if problem:
            raise CheckpointError(f"tick {snapshot.tick} is not saved: {problem}")
        found = metadata() if callable(metadata) else metadata
        arrays, document = snapshot.pack()
        versions = {"jax": jax.__version__, "flax": importlib.metadata.version("flax")}
        return arrays, {**document, "versions": versions, "metadata": found, "score": score}

    if jax.process_count() > 1:
        joint.write(path, contents)
    else:
        files.write(path, *contents())
