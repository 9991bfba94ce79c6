"""The directory of a training run, which the same command goes on with; one program at a time writes in it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import pathlib
import shutil
from types import TracebackType
from typing import Any

from experiments.report.workdir import LOCK, Files, Workdir, is_unused
from experiments.training.config import Config

CONFIG, METRICS, SUMMARY, CHECKPOINTS, DIAGNOSTICS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "checkpoints",
    "diagnostics.jsonl",
)
_SAME_RESULTS = ("data_dir", "data_threads")  # settings that no result depends on


class Standing(enum.Enum):
    """How far the run is that a directory holds."""

    NEW = "nothing is there"
    BEGUN = "it can be gone on with"
    FINISHED = "its summary is written"


def standing(path: pathlib.Path, config: Config) -> Standing:
    """How far the run with this config is in ``path``.

    Raises:
      ValueError: the directory holds something else.
    """
    Workdir.check(path, overwrite=True)  # refuses files, and directories that hold no run
    if is_unused(path):
        return Standing.NEW
    differences = _differences(path, config)
    if differences:
        raise ValueError(
            f"workdir {path} holds another run: {'; '.join(differences)}; write a new --workdir, the same settings to "
            "go on with that run, or --overwrite to replace it"
        )
    return Standing.FINISHED if (path / SUMMARY).is_file() else Standing.BEGUN


def _differences(path: pathlib.Path, config: Config) -> list[str]:
    try:
        saved = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        return [f"its {CONFIG} cannot be read ({error})"]
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    if not isinstance(saved, dict) or not set(saved) & set(ours):
        return ["that of another program"]
    defaults = json.loads(json.dumps(dataclasses.asdict(Config())))
    return [
        f"{name} is {saved.get(name, defaults[name])!r} there and {value!r} here"
        for name, value in ours.items()
        if name not in _SAME_RESULTS and saved.get(name, defaults[name]) != value
    ]


def check_free(path: pathlib.Path) -> None:
    """Refuses a directory that another program writes in.

    Raises:
      ValueError: one does.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), (path / LOCK).open() as lock:
        _lock(lock.fileno(), fcntl.LOCK_SH, path)


def _lock(file: int, kind: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(file, 32, 0).decode() or "unknown"
        raise ValueError(
            f"workdir {path} is being written by another program (process {owner}); wait for it, or write another "
            "--workdir"
        ) from None


class RunDirectory(Files):
    """A training run's directory, locked as long as it is open: the lock ends with the program, however that ends.

    Attributes:
      path: the directory.
      standing: of the run in it: new, or to be gone on with.
    """

    def __init__(self, path: str | pathlib.Path, config: Config, *, overwrite: bool = False):
        """Claims ``path`` for the run with this config.

        Raises:
          ValueError: it holds another run, a finished one, or one that is being written; or it cannot be written.
        """
        super().__init__(pathlib.Path(path).expanduser())
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error
        try:
            self._claim(config, overwrite)
        except OSError as error:
            self.close()
            raise ValueError(f"workdir {self.path} cannot be written ({error}); write another --workdir") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets others in."""
        os.close(self._lock)

    def _claim(self, config: Config, overwrite: bool) -> None:
        _lock(self._lock, fcntl.LOCK_EX, self.path)
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        if overwrite:
            Workdir.check(self.path, overwrite=True)
            # The config last: without it, what is left would be taken for no run.
            for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == CONFIG):
                if entry.name != LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.standing = standing(self.path, config)
        if self.standing is Standing.NEW:
            self.write_json(CONFIG, dataclasses.asdict(config))


def default_path(name: str, config: Config) -> pathlib.Path:
    """``runs/name`` or, where runs of that name are, the last of them if it can be gone on with, else a new one."""
    unused = Workdir.unused(f"runs/{name}")
    number = unused.name.removeprefix(name).removeprefix("-")
    last = unused.with_name(name if number == "2" else f"{name}-{int(number or 1) - 1}")
    with contextlib.suppress(ValueError):
        check_free(last)
        if last.is_dir() and standing(last, config) is Standing.BEGUN:
            return last
    return unused


def config_of(saved: dict[str, Any]) -> Config:
    """The config that a checkpoint or a config.json holds; settings that are newer than it have their defaults.

    Raises:
      ValueError: it has a setting that there is no longer.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    if unknown := set(saved) - known:
        raise ValueError(
            f"the run was saved with settings that this version does not have: {', '.join(sorted(unknown))}"
        )
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
