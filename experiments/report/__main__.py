"""Writes a page about a run, finished or under way: report.html in its directory, which any browser shows.

    ./run.sh report runs/digits-resnet20-fdg-K2               # once
    ./run.sh report runs/digits-resnet20-fdg-K2 --every=15    # again and again, until the run has finished

The page of a run that is under way loads itself anew. It has a measured timeline if the run was given --mark_ticks=12,
and what probes found if it was given --diagnose_every=10.
"""

from __future__ import annotations

import pathlib
import time

from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.report.workdir import check_file
from jaxdecouple.reports import RunFiles

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    flags.DEFINE_integer("every", 0, "seconds until the page is written again, as long as the run goes on; 0: once")
    flags.DEFINE_string("out", "", "file to write; empty: report.html in the run's directory")


def main(argv: list[str]) -> None:
    with command_line.frame(argv[:1] + argv[2:], interrupted="the page shows what was there last"):
        if len(argv) < 2:
            raise ValueError("which run? write ./run.sh report runs/..., the directory of a run")
        if FLAGS.every < 0:
            raise ValueError(f"every is {FLAGS.every}; write seconds, such as 15, or 0")
        if FLAGS.out:
            check_file("out", pathlib.Path(FLAGS.out).expanduser())
        print(jd.report(argv[1], FLAGS.out or None))
        while FLAGS.every > 0 and not RunFiles.read(argv[1]).finished:
            time.sleep(FLAGS.every)
            jd.report(argv[1], FLAGS.out or None)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
