"""The program of a figure: its setting becomes flags, and what it measures a table, numbers and a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments import cli as command_line
from experiments.asynchronous import scales
from experiments.report.workdir import Workdir


def start(
    name: str, setting: type, run: Callable[..., str], *, interrupted: str = "nothing but config.json was written"
) -> None:
    """Runs a figure with the flags of the command line.

    Args:
      name: of the figure, and of the directory below runs/.
      setting: a dataclass of `scales.option`.
      run: ``(setting, workdir, overwrite=...) -> table.md``.
      interrupted: what to say of the results after Ctrl-C.
    """
    scales.define(setting)
    command_line.define_workdir()
    command_line.start(lambda argv: _main(argv, name, setting, run, interrupted))


def _main(argv: Sequence[str], name: str, setting: type, run: Callable[..., Any], interrupted: str) -> None:
    with command_line.frame(argv, interrupted=interrupted):
        workdir = pathlib.Path(flags.FLAGS.workdir or Workdir.unused(f"runs/{name}"))
        text = run(scales.read(setting), workdir, overwrite=flags.FLAGS.overwrite)
    print(f"\n{text}\n\nnumbers and picture are in {workdir}")
