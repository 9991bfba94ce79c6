"""Runs rows of a paper's tables, and sets our numbers beside the paper's.

    python -m experiments.papers adl --list                             # all rows, with the paper's settings
    python -m experiments.papers adl --row=table2b --scale=small        # a table, or a part of it, or one row
    python -m experiments.papers adl --scale=small --seeds=0,1,2        # everything
    python -m experiments.papers fdg --row=table6 --set epochs=30 --set beta=0.2

The papers are fdg, adl, dsp and thesis. ``--scale=paper``, the default, is the setting that the paper prints.
``--scale=small`` is the same method on images that are here; ``--scale=medium`` takes smaller networks of the same
kinds, and the data given (`experiments.papers.scales`). Results are kept in the
workdir, for all papers and scales: what is there is not run again, and a training run that was stopped or killed goes
on at its newest checkpoint. ``--set`` gives settings of the chosen rows other values; such results are kept apart.
The tables are written as one page, PAPER.md, or PAPER-ROW.md where rows are chosen, with its pictures.
"""

from __future__ import annotations

from absl import flags

from experiments import cli as command_line


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("row", "", "a row, a table or a part of one, as --list shows them; empty: all")
    flags.DEFINE_bool("list", False, "show the rows and their settings, and run nothing")
    flags.DEFINE_string(
        "scale",
        "paper",
        "paper: exactly as printed; medium: smaller networks on --dataset; small: on digits, in minutes",
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "one run of each row per seed")
    flags.DEFINE_string("dataset", "", "as for experiments.train, in place of the paper's; small scale: of digits")
    flags.DEFINE_string("data_dir", "", "as for experiments.train")
    flags.DEFINE_integer("epochs", 0, "small and medium scale: passes over the training set; 0: 2000 or 4000 updates")
    flags.DEFINE_multi_string(
        "set", [], "name=value: another value of a setting, of all rows chosen; can be given several times"
    )
    flags.DEFINE_bool("keep_weights", False, "keep the weights of training runs, in weights/ in the workdir")
    flags.DEFINE_bool("only_known", False, "run nothing: write the tables of what the workdir holds")
    flags.DEFINE_string("out", "", "directory for the page and its pictures; empty: tables/ in the workdir")
    flags.DEFINE_string("workdir", "", "directory of results, which is used again; empty: runs/reproduction")
    flags.DEFINE_bool("overwrite", False, "forget the results that the workdir holds")


def main(argv: list[str]) -> None:
    """What the program does with its arguments."""
    with command_line.frame(
        argv[:1] + argv[2:], interrupted="what was finished is kept; the same command goes on from there"
    ):
        from experiments.papers import program  # --help needs neither JAX nor the rows

        program.main(argv)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
