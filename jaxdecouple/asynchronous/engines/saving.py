"""A checkpoint is the server's state after an outer iteration, in a NumPy archive: arrays, and never a pickle."""

from __future__ import annotations

import pathlib
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxdecouple.asynchronous.engines.serving import Outer


def save(path: str | pathlib.Path, done: Outer, fingerprint: str) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      path: the file; what it held is replaced.
      done: what to save.
      fingerprint: of the run.
    """
    path = pathlib.Path(path).expanduser()
    partial = path.with_name(path.name + ".partial")
    numbers = {"outer": done.outer, "seconds": done.seconds, "lost": done.lost}
    arrays = {"w": done.w, "delays": done.delays} | ({} if done.alpha is None else {"alpha": done.alpha})
    with partial.open("wb") as file:
        np.savez(file, fingerprint=np.array(fingerprint), **numbers, **arrays)
    partial.replace(path)


def load(path: str | pathlib.Path, fingerprint: str) -> dict[str, Any]:
    """The fields of a saved `jaxdecouple.asynchronous.engines.serving.Outer`.

    Raises:
      ValueError: there is no such file, it is damaged, or of another run than one with this fingerprint.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no checkpoint {path}; write the file that checkpoint=... named, or leave resume out"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            saved = {name: archive[name] for name in archive.files}
        found = str(saved.pop("fingerprint"))
        numbers = {"outer": int(saved["outer"]), "seconds": float(saved["seconds"]), "lost": int(saved["lost"])}
        arrays = {"w": saved["w"], "alpha": saved.get("alpha"), "delays": saved["delays"]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no checkpoint, or damaged ({error}); write another file, or leave resume out"
        ) from error
    if found != fingerprint:
        raise ValueError(
            f"checkpoint {path} is of another run: {found}; this one is {fingerprint}; write the same settings, or "
            "leave "
            "resume out"
        )
    return arrays | numbers


def check_writable(path: str | pathlib.Path) -> None:
    """Refuses a file that could not be written, before anything is computed.

    Raises:
      ValueError: its directory is not there or cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    try:
        path.with_name(path.name + ".partial").touch()
    except OSError as error:
        raise ValueError(
            f"checkpoint {path} cannot be written ({error}); write a file in a directory of yours"
        ) from error
