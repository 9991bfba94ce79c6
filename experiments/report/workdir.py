"""A workdir holds the files of one run, and never those of two."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any


def in_lines(value: Any, depth: int = 2) -> str:
    """JSON with a line for each entry down to a depth, so that a table has a line for each row."""
    if depth and isinstance(value, dict) and value:
        entries = []
        for name, entry in value.items():
            key = name if isinstance(name, str) else json.dumps(name)
            entries.append(f"{json.dumps(key)}: {in_lines(entry, depth - 1)}")
        return "{\n" + ",\n".join(entries) + "\n}"
    if depth and isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(in_lines(entry, depth - 1) for entry in value) + "\n]"
    return json.dumps(value)


LOCK = "lock"  # the file by which a program that writes in a directory keeps others out


def is_unused(path: pathlib.Path) -> bool:
    """Whether there is nothing, or nothing but what a program leaves that was killed when it began."""
    return not path.exists() or (
        path.is_dir() and all(entry.name == LOCK or entry.name.endswith(".partial") for entry in path.iterdir())
    )


class Files:
    """Writes files into a directory that is there.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    def write_json(self, name: str, value: Any, depth: int = 2) -> None:
        """Writes a file as a whole or not at all; ``depth`` as of `in_lines`."""
        self._write(name, in_lines(value, depth) + "\n")

    def write_lines(self, name: str, records: Iterable[Any]) -> None:
        """Writes a file of JSON lines, as a whole or not at all."""
        self._write(name, "".join(json.dumps(record) + "\n" for record in records))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Adds a line to a file of JSON lines, such as ``metrics.jsonl``."""
        with (self.path / name).open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_text(text)
        partial.replace(self.path / name)


class Workdir(Files):
    """The directory of a program that is run from its beginning to its end: ``config.json``, results and pictures.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | pathlib.Path, config: dict[str, Any], *, overwrite: bool = False):
        """Claims ``path`` for the run with this config.

        Raises:
          ValueError: it holds something already, or cannot be written.
        """
        super().__init__(pathlib.Path(path).expanduser())
        self.check(self.path, overwrite=overwrite)
        try:
            if overwrite:
                shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("config.json", config)
        except OSError as error:
            raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error

    @staticmethod
    def check(path: str | pathlib.Path, *, overwrite: bool = False) -> None:
        """Refuses a path that is in use, without touching it.

        Raises:
          ValueError: it is not a directory, or holds files, and is not a run that may be overwritten.
        """
        path = pathlib.Path(path).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError(f"workdir {path} is a file; write a directory that is new or empty")
        if is_unused(path):
            return
        if not (path / "config.json").is_file():
            raise ValueError(f"workdir {path} holds files that are no run; write a directory that is new or empty")
        if not overwrite:
            raise ValueError(
                f"workdir {path} holds another run; write a new --workdir, or --overwrite to replace that run"
            )

    @staticmethod
    def unused(path: str | pathlib.Path) -> pathlib.Path:
        """``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
        path = pathlib.Path(path).expanduser()
        candidate, number = path, 1
        while candidate.exists():
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        return candidate
