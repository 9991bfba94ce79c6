"""A checkpoint is what there is after an outer iteration, in a NumPy archive: arrays, and never a pickle."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from jaxdecouple.asynchronous.outer import Outer

SIMULATED = "; simulated with "  # in a fingerprint, before what other engines do not have: these may go on with it
_FIELDS = {field.name: field for field in dataclasses.fields(Outer)}
_KINDS = {"outer": int, "messages": int, "epochs": float, "seconds": float, "lost": int, "computing": float}


def save(path: str | pathlib.Path, done: Outer, steps: np.ndarray, began: Sequence[float], fingerprint: str) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      path: the file; what it held is replaced.
      done: what to save.
      steps: the state of the rule for step sizes.
      began: objective and squared gradient where the run began, by which it is judged.
      fingerprint: of the run.
    """
    path = pathlib.Path(path).expanduser()
    partial = path.with_name(path.name + ".partial")
    fields = {name: value for name in _FIELDS if (value := getattr(done, name)) is not None}
    with partial.open("wb") as file:
        np.savez(file, fingerprint=np.array(fingerprint), steps=steps, began=np.array(began), **fields)
    partial.replace(path)


def load(path: str | pathlib.Path, fingerprint: str) -> tuple[Outer, np.ndarray, tuple[float, float]]:
    """What `save` wrote: what there was, the state of the rule for step sizes, and how the run began.

    Raises:
      ValueError: there is no such file, it is damaged, or of another run than one with this fingerprint.
    """
    path = pathlib.Path(path).expanduser()
    found, saved = _read(path)
    ours, theirs = (text.partition(SIMULATED) for text in (fingerprint, found))
    if ours[0] != theirs[0] or (ours[2] and theirs[2] and ours[2] != theirs[2]):
        raise ValueError(
            f"checkpoint {path} is of another run: {found}; this one is {fingerprint}; write the same settings, or "
            "leave resume out"
        )
    try:
        steps, (objective, squared_gradient) = saved.pop("steps"), saved.pop("began").tolist()
        there = Outer(**{name: _KINDS.get(name, np.asarray)(value) for name, value in saved.items()})
        return there, steps, (objective, squared_gradient)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def fingerprint_of(path: str | pathlib.Path) -> str:
    """That of the run which wrote a checkpoint.

    Raises:
      ValueError: there is no such file, or it is damaged.
    """
    return _read(pathlib.Path(path).expanduser())[0]


def _read(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    if not path.is_file():
        raise ValueError(
            f"there is no checkpoint {path}; write the file that checkpoint=... named, or leave resume out"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            saved = {name: archive[name] for name in archive.files}
        return str(saved.pop("fingerprint")), saved
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no checkpoint, or damaged ({error}); write another file, or leave resume out")


def check_writable(path: str | pathlib.Path) -> None:
    """Refuses a file that could not be written, before anything is computed.

    Raises:
      ValueError: it is a directory, or its directory is not there or cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    partial = path.with_name(path.name + ".partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ValueError(
            f"checkpoint {path} cannot be written ({error}); write a file in a directory of yours"
        ) from error
