"""A checkpoint on disk: a directory that Orbax writes, with arrays and one JSON document. No other file knows Orbax.

Orbax writes into a directory of another name and renames it when all is there, so that under its own name a checkpoint
is whole or not there at all.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from jaxdecouple.errors import CheckpointError, DamagedCheckpoint

FORMAT = 1
_OVERHEAD = 200_000  # bytes, about, of a checkpoint besides its arrays
_ATTEMPTS, _PAUSE = 20, 0.1  # seconds
Arrays = dict[str, dict[str, np.ndarray]]
_HEAD = "_CHECKPOINT_METADATA"  # Orbax's name for it
_UNFINISHED = re.compile(r"(.+)\.orbax-checkpoint-tmp")


def write(path: pathlib.Path, arrays: Arrays, document: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      path: a directory that does not exist.
      arrays: groups of arrays, by name.
      document: JSON.

    Raises:
      CheckpointError: it cannot be written. What was begun is removed, and frees its space.
    """
    sealed = _sealed(path, {**document, "checksums": _checksums(arrays)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, arrays)
        _outside_event_loops(lambda: _save(path, arrays, sealed))
    except Exception as error:  # Orbax and TensorStore raise many kinds for a full disk alone
        _remove_abandoned(path)
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({summary(error)}); free some space, or write another directory"
        ) from error


def write_part(path: pathlib.Path, arrays: Arrays, document: dict[str, Any]) -> None:
    """Writes one process's part of a checkpoint.

    Orbax would have all processes meet on their devices, which are training meanwhile. So parts are files of NumPy.

    Args:
      path: a directory that does not exist, within the one that is to be the checkpoint.
      arrays, document: as of `write`.

    Raises:
      CheckpointError: it cannot be written.
    """
    sealed = _sealed(path, {**document, "checksums": _checksums(arrays)})
    try:
        path.mkdir(parents=True)
        _check_space(path, arrays)
        for group, name in ((group, name) for group, of in arrays.items() for name in of):
            np.save(path / _file(group, name), arrays[group][name], allow_pickle=False)
        (path / _HEAD).write_text(json.dumps({"custom_metadata": sealed}))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({summary(error)}); free some space, or write another directory"
        ) from error


def write_head(path: pathlib.Path, document: dict[str, Any]) -> None:
    """Makes one checkpoint of parts that lie in its directory already: from now on it is whole.

    Raises:
      CheckpointError: it cannot be written.
    """
    begun, sealed = unfinished(path), _sealed(path, document)
    try:
        (begun / _HEAD).write_text(json.dumps({"custom_metadata": sealed}))
        begun.rename(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be written ({summary(error)})") from error


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """The name of a checkpoint's directory while it is being written."""
    return path.with_name(f"{path.name}.orbax-checkpoint-tmp")


def read_document(path: pathlib.Path) -> dict[str, Any]:
    """The JSON document of a checkpoint.

    Raises:
      CheckpointError: there is no checkpoint at ``path``, or it may not be read, or it has another format.
      DamagedCheckpoint: its files are incomplete.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}; write the directory that a checkpoint was saved as")
    _check_readable(path)
    if not is_complete(path):
        raise CheckpointError(f"{path} is no checkpoint; write the directory that one was saved as")
    try:
        sealed = json.loads((path / _HEAD).read_text())["custom_metadata"]
        version, checksum, document = sealed["format"], sealed["checksum"], sealed["document"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({summary(error)}); write an older one") from error
    if checksum != _checksum(document):
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: its description was changed; write an older one")
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {version}; this version of jaxdecouple reads {FORMAT}")
    return document


def read_arrays(path: pathlib.Path, document: dict[str, Any], groups: Collection[str]) -> Arrays:
    """Arrays of a checkpoint with this document, compared with their checksums.

    Args:
      path: of the checkpoint.
      document: as `read_document` gives it.
      groups: which groups of them to read. Of a checkpoint that one process wrote, all are.

    Raises:
      DamagedCheckpoint: files are incomplete or changed.
    """
    parts: dict[str, str] = document.get("parts", {})  # by group, where several processes wrote it
    arrays: Arrays = {}
    wanted = {group: checksums for group, checksums in document["checksums"].items() if group in groups}
    try:
        if parts:
            for group, names in wanted.items():
                arrays[group] = {name: _read_array(path / parts[group] / _file(group, name)) for name in names}
        elif wanted:
            arrays = _outside_event_loops(lambda: ocp.load(str(path.absolute())))
    except Exception as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({summary(error)}); write an older one") from error
    for group, checksums in wanted.items():
        for name, checksum in checksums.items():
            array = arrays.get(group, {}).get(name)
            if array is None or zlib.crc32(np.ascontiguousarray(array)) != checksum:
                raise DamagedCheckpoint(
                    f"checkpoint {path} is damaged: array {group}/{name} is not what was written; write an older one"
                )
    return arrays


def _check_readable(path: pathlib.Path) -> None:
    """Refuses what this user may not read: it may be whole, and must not be taken for damaged."""
    for place in (path, *path.rglob("*")):
        if not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
            raise CheckpointError(f"checkpoint {path} may not be read (no permission for {place}); allow this user to")


def is_complete(path: pathlib.Path) -> bool:
    """Whether a checkpoint was ever written as ``path``: what its files hold is another question."""
    return (path / _HEAD).is_file()


def remove_unfinished(directory: pathlib.Path, name: str = "") -> None:
    """Removes what killed or failed writers left in a directory: of checkpoint ``name``, or of all."""
    for entry in directory.iterdir() if directory.is_dir() else ():
        found = _UNFINISHED.match(entry.name)
        if found and name in ("", found[1]):
            shutil.rmtree(entry, ignore_errors=True)


def _remove_abandoned(path: pathlib.Path) -> None:
    """Removes a checkpoint whose writing failed. Other threads of TensorStore may still be at it for a moment."""
    for _ in range(_ATTEMPTS):
        remove_unfinished(path.parent, path.name)
        time.sleep(_PAUSE)
        if not unfinished(path).exists():
            return


def summary(error: BaseException) -> str:
    """The first line of an error's message, without what fills pages."""
    if "os_error_code='28'" in str(error):  # TensorStore's way to say it
        return "no space left on the disk"
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def _check_space(directory: pathlib.Path, arrays: Arrays) -> None:
    """Sees a full disk coming: it would cost Orbax pages of output."""
    needed = sum(array.nbytes for of in arrays.values() for array in of.values()) + _OVERHEAD
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB free")


def _file(group: str, name: str) -> str:
    return f"{group}.{name}.npy"


def _read_array(path: pathlib.Path) -> np.ndarray:
    # NumPy's files know no bfloat16 and the like: the array's name begins with its type.
    return np.load(path, allow_pickle=False).view(jnp.dtype(path.suffixes[-2].lstrip(".").rsplit("_", 1)[0]))


def _checksums(arrays: Arrays) -> dict[str, dict[str, int]]:
    return {group: {name: zlib.crc32(array) for name, array in of.items()} for group, of in arrays.items()}


def _checksum(document: Any) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def _sealed(path: pathlib.Path, document: dict[str, Any]) -> dict[str, Any]:
    try:
        document = json.loads(json.dumps(document))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"metadata of {path} are not JSON ({error}); write numbers, strings, lists, dicts"
        ) from error
    return {"format": FORMAT, "checksum": _checksum(document), "document": document}


def _save(path: pathlib.Path, arrays: Arrays, document: dict[str, Any]) -> None:
    context = ocp.Context()
    context.array.saving.use_compression = False  # activations and weights are noise to a compressor
    with context:
        ocp.save(str(path.absolute()), arrays, custom_metadata=document)


def _outside_event_loops(function: Callable[[], Any]) -> Any:
    """In a thread of its own: a notebook's cells run within an event loop, and Orbax starts another.

    Of what goes wrong, Orbax logs pages before it raises: those are left out.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(_is_ours)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return executor.submit(function).result()
    finally:
        for logger in loggers:
            logger.removeFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "Task exception was never retrieved" not in str(record.msg)
