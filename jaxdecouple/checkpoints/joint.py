"""A checkpoint that several processes write together: each its own stages, as a part; one process makes them a whole.

All write into one directory, on a file system that all of them see. It gets its name when every part is there, so a
checkpoint is whole or not there at all, whoever is killed, and any number of processes can read it.
"""

from __future__ import annotations

import collections
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax

from jaxdecouple.checkpoints import files
from jaxdecouple.engine import processes
from jaxdecouple.errors import CheckpointError

_attempts: collections.Counter[str] = collections.Counter()  # as many in every process


def write(path: pathlib.Path, contents: Callable[[], tuple[files.Arrays, dict[str, Any]]]) -> None:
    """Writes a checkpoint, each process its part; returns when it is whole.

    Args:
      path: a directory that does not exist, the same in every process.
      contents: gives arrays and document of this process's part; if it raises `CheckpointError`, nobody writes.

    Raises:
      CheckpointError: some process could not write; nothing is left.
      ProcessError: some process is gone.
    """
    own, first = jax.process_index(), jax.process_index() == 0
    _attempts[path.name] += 1
    said = f"jaxdecouple/saving/{path.name}/{_attempts[path.name]}"
    begun = files.unfinished(path)
    processes.write(f"{said}/{own}", _failure(lambda: files.write_part(begun / _part(own), *contents())))
    if first:
        failures = [processes.read(f"{said}/{process}") for process in range(jax.process_count())]
        failure = next(filter(None, failures), "") or _failure(lambda: _make_whole(path))
        if failure:
            shutil.rmtree(begun, ignore_errors=True)
        processes.write(f"{said}/whole", failure)
    if failure := processes.read(f"{said}/whole"):
        raise CheckpointError(failure)


def _part(process: int) -> str:
    return f"process_{process}"


def _failure(act: Callable[[], Any]) -> str:
    """What goes wrong, for all to know; nothing if all is well."""
    try:
        act()
    except CheckpointError as error:
        return str(error)
    return ""


def _make_whole(path: pathlib.Path) -> None:
    parts = [_part(process) for process in range(jax.process_count())]
    documents = [files.read_document(files.unfinished(path) / part) for part in parts]
    last = f".stages[{documents[0]['num_stages'] - 1}]"
    # The process of the last stage has the losses: what it has found is what the run has found.
    head = next(document for document in documents if any(name.startswith(last) for name in document["leaves"]))
    merged = {name: {} for name in ("leaves", "checksums", "batch_sizes", "parts")}
    for part, document in zip(parts, documents, strict=True):
        document["parts"] = dict.fromkeys(document["checksums"], part)
        for name, of_all in merged.items():
            of_all.update(document[name])
    files.write_head(path, {**head, **merged})
