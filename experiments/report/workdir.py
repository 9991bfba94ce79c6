"""A workdir holds the files of one run, and never those of two."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import filelock

CONFIG = "config.json"
LOCK = "lock"  # held by the program that writes in a directory; beside it, which process that is
OWNER = "lock.owner"
LIST = "files.txt"  # what programs wrote in a directory, a name a line: --overwrite deletes that, and nothing else

# What programs write in directories that they list.
_WRITTEN = {"checkpoints": ("tick-*", "damaged-*", "final", ".*"), "tensorboard": ("events.*",)}


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


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all, whenever the program is killed."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


class Files:
    """Writes files into a directory that is there.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).expanduser()

    def file(self, name: str) -> pathlib.Path:
        """Where to write the file or directory of this name."""
        return self.path / name

    def write(self, name: str, text: str) -> None:
        """Writes a file as a whole or not at all."""
        write_whole(self.file(name), text)

    def write_json(self, name: str, value: Any, depth: int = 2) -> None:
        """Writes a file as a whole or not at all; ``depth`` as of `in_lines`."""
        self.write(name, in_lines(value, depth) + "\n")

    def write_lines(self, name: str, records: Iterable[Any]) -> None:
        """Writes a file of JSON lines, as a whole or not at all."""
        self.write(name, "".join(json.dumps(record) + "\n" for record in records))

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds a line to a file of JSON lines, such as ``metrics.jsonl``."""
        with self.file(name).open("a") as lines:
            lines.write(json.dumps(record) + "\n")


class Workdir(Files):
    """The directory of a program: ``config.json``, results, pictures, and a list of them.

    It is claimed when the first file is written, so that settings which a program refuses until then leave nothing.

    Attributes:
      path: the directory.
    """

    def __init__(self, path: str | pathlib.Path, config: Mapping[str, Any], *, overwrite: bool = False):
        """Will claim ``path`` for the run with this config.

        Raises:
          ValueError: it holds something already, or cannot be written.
        """
        super().__init__(path)
        self.check(self.path, overwrite=overwrite)
        self._config, self._overwrite = dict(config), overwrite
        self._claimed = False
        self._listed: set[str] = set()

    def file(self, name: str) -> pathlib.Path:
        """Where to write the file or directory of this name, which is listed as the program's from now on."""
        self.claim()
        if name not in self._listed:
            with (self.path / LIST).open("a") as names:
                names.write(f"{name}\n")
            self._listed.add(name)
        return self.path / name

    def claim(self) -> None:
        """Makes the directory, or empties it of what it lists, and writes the config; once.

        Raises:
          ValueError: it cannot be written, or holds another run by now.
        """
        if self._claimed:
            return
        if not self._overwrite and (self.path / CONFIG).exists():  # another program was faster
            self.check(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._overwrite:
                delete_listed(self.path)
            self._claimed = True
            self.write_json(CONFIG, self._config)
        except OSError as error:
            raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error

    @staticmethod
    def check(
        path: str | pathlib.Path, *, overwrite: bool = False, inputs: Mapping[str, str | pathlib.Path] | None = None
    ) -> None:
        """Refuses a path that is in use, without touching it.

        Args:
          path: of the directory.
          overwrite: whether the run that it holds may be deleted.
          inputs: by the names of their flags, files that the program is to read: none may be deleted before.

        Raises:
          ValueError: it is not a directory, or holds files, and is not a run that may be overwritten.
        """
        path = pathlib.Path(path).expanduser()
        check_writable(path)
        if is_unused(path):
            return
        if not (path / CONFIG).is_file():
            raise ValueError(f"workdir {path} holds files that are no run; write a directory that is new or empty")
        if not overwrite:
            raise ValueError(
                f"workdir {path} holds another run; write a new --workdir, or --overwrite to replace that run"
            )
        if not (path / LIST).is_file():
            raise ValueError(
                f"workdir {path} has no {LIST}, which says what --overwrite may delete: it is of another program, or "
                "of an older version; write a new --workdir, or delete that directory yourself"
            )
        if foreign := _foreign(path):
            raise ValueError(
                f"workdir {path} holds {foreign}, which no program wrote and --overwrite would delete; move it "
                "away, or write another --workdir"
            )
        check_free(path)
        for name, given in (inputs or {}).items():
            if given and pathlib.Path(given).expanduser().resolve().is_relative_to(path.resolve()):
                raise ValueError(
                    f"{name} is {given}, in the workdir that --overwrite would empty; write another --workdir"
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


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within it pictures are drawn: nothing measured or trained is lost for one that cannot be."""
    try:
        yield
    except Exception as error:  # whatever the library for pictures says
        print(f"warning: a picture could not be drawn ({type(error).__name__}: {error})", file=sys.stderr)


def is_unused(path: pathlib.Path) -> bool:
    """Whether there is nothing, or nothing but what a program leaves that was killed when it began."""
    left = (LOCK, OWNER, LIST)
    return not path.exists() or (
        path.is_dir() and all(entry.name in left or entry.name.endswith(".partial") for entry in path.iterdir())
    )


def check_writable(path: pathlib.Path) -> None:
    """Refuses, early, a directory in which nothing can be written.

    Raises:
      ValueError: one cannot.
    """
    try:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if _is_there(place))
    except OSError as error:
        raise ValueError(f"workdir {path} cannot be written ({error}); write another --workdir") from error
    if not there.is_dir():
        raise ValueError(f"workdir {path}: {there} is a file; write a directory that is new or empty")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"workdir {path} cannot be written (no permission in {there}); write another --workdir")


def check_file(name: str, path: pathlib.Path, *, is_made: bool = False) -> None:
    """Refuses, before anything is computed, a file that cannot be written.

    Args:
      name: of its flag.
      path: of the file; what it holds would be replaced.
      is_made: whether its directory is made where there is none.

    Raises:
      ValueError: it is a directory, or its directory is not there or does not let anything be written.
    """
    places = (path.absolute().parent, *path.absolute().parent.parents) if is_made else (path.absolute().parent,)
    place, reason = next((place for place in places if place.exists()), places[0]), ""
    if path.is_dir():
        reason = "it is a directory"
    elif not place.is_dir():
        reason = f"{place} is {'a file' if place.exists() else 'not there'}"
    elif not os.access(path if path.exists() else place, os.W_OK):
        reason = f"no permission in {place}"
    if reason:
        raise ValueError(f"{name} is {path}, which cannot be written ({reason}); write another file")


def _is_there(path: pathlib.Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def listed(path: pathlib.Path) -> set[str]:
    """What programs wrote in a directory."""
    return set((path / LIST).read_text().splitlines()) if (path / LIST).is_file() else set()


def _foreign(path: pathlib.Path) -> str:
    """Something within a directory that programs list, which is not theirs; empty if there is nothing."""
    for name in _WRITTEN.keys() & listed(path):
        if (path / name).is_dir() and not (path / name).is_symlink():
            for entry in sorted((path / name).iterdir()):
                if not any(entry.match(pattern) for pattern in _WRITTEN[name]):
                    return f"{name}/{entry.name}"
    return ""


def delete_listed(path: pathlib.Path) -> None:
    """Deletes what programs wrote in a directory; the list last, so that this can be repeated if it is cut short."""
    for name in sorted(listed(path), key=lambda name: name == CONFIG):  # without its config, the rest would be no run
        if pathlib.PurePath(name).name != name:
            continue  # nothing outside the directory, whatever the list says
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
    (path / LIST).unlink(missing_ok=True)


def lock(path: pathlib.Path) -> filelock.BaseFileLock:
    """Keeps other programs out of a directory until it is released, or the program ends, however it ends.

    Raises:
      ValueError: another is in.
    """
    held = _acquired(path)
    write_whole(path / OWNER, str(os.getpid()))
    return held


def check_free(path: pathlib.Path) -> None:
    """Refuses a directory that another program writes in.

    Raises:
      ValueError: one does.
    """
    if (path / LOCK).is_file():
        _acquired(path).release()


def _acquired(path: pathlib.Path) -> filelock.BaseFileLock:
    held = filelock.FileLock(path / LOCK)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        owner = (path / OWNER).read_text() if (path / OWNER).is_file() else "unknown"
        raise ValueError(
            f"workdir {path} is being written by another program (process {owner}); wait for it, or write another "
            "--workdir"
        ) from None
    return held
