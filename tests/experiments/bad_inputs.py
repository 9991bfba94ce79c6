"""Gives the programs what a user may give them by mistake, and sees whether each says in one line what is wrong.

    python -m tests.experiments.bad_inputs
    python -m tests.experiments.bad_inputs --only=evaluate

`bad_inputs.txt` is the table: a program, its flags, and what is to be found in what it says. A program that refuses has
to end with status 1 and one line, which begins with ``error:``, and to leave no file. Rows that begin with ``works:``
are odd but right: the program has to end with status 0, and to say so.

Each row runs in a process of its own, in which everything has been imported before. The superuser, whom no permission
keeps from anything, gives that up there.

The directory gets results.json, with a line for each row, and table.md with those that fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import os
import pathlib
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from experiments import cli as command_line
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read

FLAGS = flags.FLAGS
TABLE = pathlib.Path(__file__).with_suffix(".txt")
WORKS = "works:"
_CAPABILITIES = 0x20080522  # version 3 of Linux's
_WITHOUT_WORKDIR = ("evaluate", "export", "report", "gallery")
_IMPORTED = (
    "jaxdecouple.asynchronous",
    "experiments.measure.comparison",
    "experiments.measure.language",
    "experiments.papers.kinds.training",
    "experiments.training.loading",
    "experiments.training.planning",
    "experiments.training.session",
    "sklearn.datasets",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      program: of experiments/, by its module's name.
      flags: as on a command line; {data} is a directory of odd data, with a run in {data}/run.
      says: what is to be found in what it says.
    """

    program: str
    flags: str
    says: str

    def arguments(self, data: pathlib.Path) -> list[str]:
        """What the program is given."""
        given = [part.replace("{data}", str(data)) for part in shlex.split(self.flags)]
        named = any(part.startswith("--workdir") for part in given)
        return given if named or self.program in _WITHOUT_WORKDIR else [*given, "--workdir=run"]

    def fault(self, status: int, written: str, left: list[str]) -> str:
        """What is wrong with how a program ended; empty if nothing is.

        Args:
          status: of its exit.
          written: all that it said.
          left: names of the files that it left.
        """
        lines = written.splitlines() or [""]
        if "Traceback" in written:
            return f"a traceback: {lines[-1]}"
        if self.says.removeprefix(WORKS).strip() not in written:
            return f"says something else: {lines[-1]}"
        if self.says.startswith(WORKS):
            return f"ends with status {status}" if status else ""
        if status != 1:
            return f"ends with status {status}"
        if not lines[-1].startswith("error: ") or sum(line.startswith("error: ") for line in lines) > 1:
            return f"the last line is no error: {lines[-1]}"
        return f"leaves {', '.join(left)}" if left else ""


def rows(part: str = "") -> list[Row]:
    """The table, or one part of it: settings, which no data are needed to refuse, or inputs."""
    found, at = [], ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            at = line.removeprefix("## ").partition(":")[0]
        elif line and not line.startswith("#") and part in ("", at):
            found.append(Row(*(cell.strip() for cell in line.split("|", 2))))
    return found


def run(row: Row, data: pathlib.Path, seconds: float) -> str:
    """Runs a program; what is wrong with how it ended, or an empty text."""
    with tempfile.TemporaryDirectory() as place:
        log = pathlib.Path(place) / "log"
        status = _forked(row.program, row.arguments(data), pathlib.Path(place), seconds)
        left = sorted(entry.name for entry in pathlib.Path(place).iterdir() if entry != log)
        return row.fault(status, log.read_text(errors="replace").replace(str(data), "{data}"), left)


def _forked(program: str, arguments: list[str], place: pathlib.Path, seconds: float) -> int:
    """The exit status of a program that runs in ``place``, and writes what it says into the file ``log``."""
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            _become(program, arguments, place)
        finally:
            os._exit(70)  # never back into what the parent does
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)  # and what it has started
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(program: str, arguments: list[str], place: pathlib.Path) -> None:
    """Runs a program as ``python -m`` does, and ends the process."""
    os.chdir(place)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    if os.getuid() == 0:
        _give_up_privileges()
    for name in [flag.name for found in _own_flags() for flag in found]:
        delattr(flags.FLAGS, name)
    sys.argv = [program, *arguments]
    status = 0
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _give_up_privileges() -> None:
    """Leaves a process of the superuser no capability, so that permissions of files count."""
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "the privileges of the superuser cannot be given up")


def _own_flags() -> list[list[flags.Flag]]:
    """Those of this program, which the next one does not have."""
    defined = flags.FLAGS.flags_by_module_dict().items()
    return [found for module, found in defined if module.startswith("experiments.") or module == sys.argv[0]]


@contextlib.contextmanager
def odd_data() -> Iterator[pathlib.Path]:
    """A directory of odd data, as long as it is needed."""
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        _images(root)
        _texts(root)
        _paths(root)
        try:
            yield root
        finally:
            (root / "locked").chmod(0o700)


def _images(root: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 8, 8), np.uint8), np.arange(12) % 3
    whole = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    odd = {
        "good": {},
        "first": {name: random.integers(0, 256, (12, 3, 8, 8), np.uint8) for name in ("x_train", "x_test")},
        "two_scales": {"x_train": images / 255, "x_test": images / 1.0},
        "int": {"x_train": images.astype(np.int64)},
        "nan": {name: np.full(images.shape, np.nan) for name in ("x_train", "x_test")},
        "words": {"y_train": np.array(list("abcdefghijkl"))},
        "many": {"y_train": labels * 450_000},
        "negative": {"y_test": labels - 1},
        "one": {"y_train": labels * 0, "y_test": labels * 0},
        "short": {"y_train": labels[:5]},
        "sizes": {"x_test": images[:, :7]},
        "objects": {"x_train": np.array([{}] * 12)},
        "flat": {name: images.reshape(12, 64) for name in ("x_train", "x_test")},
        "none": {"x_train": images[:0], "y_train": labels[:0]},
        "untested": {"x_test": images[:0], "y_test": labels[:0]},
        "fractions": {"y_train": labels + 0.5},
        "one_hot": {"y_train": np.eye(3)[labels], "y_test": np.eye(3)[labels]},
        "bool": {name: images > 128 for name in ("x_train", "x_test")},
        "complex": {name: images * 1j for name in ("x_train", "x_test")},
        "signed": {name: images.astype(np.int8) for name in ("x_train", "x_test")},
        "channels": {name: random.integers(0, 256, (12, 8, 8, 5), np.uint8) for name in ("x_train", "x_test")},
        "untold": {"y_test": labels + 2},
        "endian": {name: (images / 255).astype(">f4") for name in ("x_train", "x_test")},
    }
    for name, changes in odd.items():
        np.savez(root / f"{name}.npz", **{**whole, **changes})
    np.savez(root / "half.npz", x_train=images)
    np.savez(root / "x.npz", x=random.standard_normal((12, 3)), y=labels * 1.0)
    np.savez(root / "x_nan.npz", x=np.full((12, 3), np.nan), y=labels * 1.0)
    np.savez(root / "x_short.npz", x=np.zeros((12, 3)), y=labels[:5] * 1.0)
    np.save(root / "tokens.npy", np.arange(4000) % 100)
    np.save(root / "negative.npy", np.arange(4000) % 100 - 1)
    np.save(root / "fractions.npy", np.linspace(0, 1, 4000))
    np.save(root / "table.npy", np.zeros((40, 100), int))
    np.save(root / "few.npy", np.arange(7))
    with (root / "lone.npz").open("wb") as file:
        np.save(file, images)


def _texts(root: pathlib.Path) -> None:
    (root / "text.npz").write_text("no archive")
    (root / "long.txt").write_text("A text that is long enough to be cut into sequences. " * 200)
    (root / "short.txt").write_text("too short")
    (root / "empty.txt").write_text("")
    (root / "latin.txt").write_bytes("Zürich ".encode("latin-1") * 900)
    (root / "empty.json").write_text("")
    (root / "list.json").write_text("[1, 2]")
    (root / "other.json").write_text('{"a": 1}')
    (root / "word.svm").write_text("1 1:1\n-1 2:two\n")
    (root / "zero.svm").write_text("1 0:1\n-1 2:2\n")
    (root / "empty.svm").write_text("")
    (root / "one.svm").write_text("1 1:1\n1 2:2\n")
    (root / "three.svm").write_text("1 1:1\n2 2:2\n3 1:3\n")
    (root / "nan.svm").write_text("1 1:nan\n-1 2:2\n")
    (root / "good.svm").write_text("1 1:1\n-1 2:2\n" * 10)


def _paths(root: pathlib.Path) -> None:
    for name in ("empty/train", "empty/test", "bare/train/a", "bare/test/a", "locked", "foreign", "config", "broken"):
        (root / name).mkdir(parents=True)
    for name in ("foreign/thesis.tex", "config/config.json", "locked/file.npz"):
        (root / name).write_text("{}")
    (root / "broken/config.json").write_text("{")
    shutil.copy(root / "good.npz", root / "Bücher und mehr.npz")
    os.symlink("nowhere", root / "dangling.npz")
    (root / "locked").chmod(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """Which rows are run."""

    only: str = option("", "rows whose program and flags hold this text; empty: all")
    seconds: float = option(120.0, "after which a program is stopped, and counted as one that hangs", above=0)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="no results were written"):
        asked, every = read(Asked), rows()
        chosen = [row for row in every if asked.only in f"{row.program} {row.flags}"]
        if not chosen:
            raise ValueError(f"only is {asked.only!r}, and no row of the table has that; write a part of one")
        workdir = command_line.workdir("bad_inputs")
        output = Workdir(workdir, dataclasses.asdict(asked), overwrite=FLAGS.overwrite)
        for name in _IMPORTED:
            importlib.import_module(name)
        faults = {}
        with odd_data() as data:
            if any("{data}/run" in row.flags for row in chosen):
                fault = run(Row("train", f"--model=mlp --epochs=1 --workdir={data}/run", WORKS), data, asked.seconds)
                if fault:
                    raise ValueError(f"the run to be spoilt could not be made: {fault}")
            for number, row in enumerate(chosen, 1):
                faults[row] = run(row, data, asked.seconds)
                if faults[row]:
                    print(f"{row.program} {row.flags}: {faults[row]}", flush=True)
                elif number % 50 == 0:
                    print(f"{number} of {len(chosen)}", flush=True)
    failed = {row: fault for row, fault in faults.items() if fault}
    output.write_json("results.json", [{**dataclasses.asdict(row), "fault": fault} for row, fault in faults.items()])
    cells = [[row.program, row.flags, row.says, fault] for row, fault in failed.items()]
    output.write("table.md", markdown([["program", "flags", "should say", "but"], *cells]) + "\n")
    print(f"{len(chosen) - len(failed)} of {len(chosen)} rows are as they should be; all are in {workdir}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
