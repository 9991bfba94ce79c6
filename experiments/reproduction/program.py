"""The program of a paper: runs rows of its tables, and sets our numbers beside the paper's.

    python -m experiments.PAPER --list                                  # all rows, with the paper's settings
    python -m experiments.PAPER --row=TABLE/ROW --scale=small           # one row, or all of a table, or of a part of it
    python -m experiments.PAPER --scale=small --seeds=0,1,2             # everything

``--scale=paper``, the default, is the setting that the paper prints; ``--scale=small`` the same method on images that
are here (`experiments.reproduction.small`). Results are kept in the workdir, which programs of all papers may share:
what is there is not run again, so that a run that was stopped goes on where it stopped, and the same setting in several
tables is run once. Each table gets table.md, results.json and, for figures of learning curves, curves.png.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.reproduction import tables
from experiments.reproduction.kind import SCALES, Scale
from experiments.reproduction.kinds import KINDS
from experiments.reproduction.rows import Paper, Row
from experiments.reproduction.runner import job_of, missing, run_rows
from experiments.reproduction.store import Store
from experiments.settings import choose, numbers

FLAGS = flags.FLAGS
CPU_DEVICES = 4  # no table of speed or memory has more stages; training puts several stages on one without loss


def run(
    paper: Paper,
    chosen: Mapping[str, Sequence[Row]],
    *,
    scale: Scale,
    seeds: Sequence[int],
    store: Store,
    out: pathlib.Path,
    strict: bool = False,
    only_known: bool = False,
    command: str = "",
) -> None:
    """Runs what is missing of the chosen rows, table by table, and writes and prints each table when it is complete.

    With ``only_known`` nothing is run, and tables of which nothing is known are left out.
    """
    for name, rows in chosen.items():
        table = paper.tables[name]
        print(f"\n{table.title}: {len(rows)} rows", flush=True)
        lines = run_rows(table, rows, scale=scale, seeds=seeds, store=store, strict=strict, only_known=only_known)
        if only_known and not any(line.results for line in lines):
            continue
        directory = out / paper.name / name
        tables.write(directory, table, lines, scale=scale.name, command=command, rows_in_table=len(table.rows))
        print(f"\n{tables.as_markdown(table, lines)}\n\n({table.statistic}; ours is in {directory})", flush=True)


def listing(paper: Paper, chosen: Mapping[str, Sequence[Row]]) -> str:
    """A line for each row: its name, the paper's number, its settings; what a table's rows share comes first."""
    lines = []
    for name, rows in chosen.items():
        table = paper.tables[name]
        unit, _ = KINDS[table.kind].measures[table.measure]
        lines += ["", f"{name}: {table.title}", f"  all rows: {_settings(table.settings)}"]
        for row in rows:
            own = {key: value for key, value in row.settings.items() if table.settings.get(key) != value}
            number = tables.paper_number(row.paper)
            lines.append(f"  {name}/{row.name}: {_settings(own)}; paper: {number} ({unit})")
    return "\n".join(lines[1:])


def plan(paper: Paper, chosen: Mapping[str, Sequence[Row]], scale: Scale, seeds: Sequence[int], store: Store) -> str:
    """How much there is to do, in a sentence."""
    jobs, rows, impossible = {}, 0, 0
    for name, members in chosen.items():
        table = paper.tables[name]
        for row in members:
            rows += 1
            try:
                job = job_of(table, row, scale)
            except ValueError:
                impossible += 1
                continue
            jobs[job.key] = len(missing(job, seeds if KINDS[table.kind].seeded else (0,), store))
    left = f"; {impossible} cannot be run" if impossible else ""
    return f"{rows} rows, {len(jobs)} different settings, {sum(jobs.values())} runs to do{left}"


def define_flags(paper: Paper) -> None:
    """The flags of a paper's program."""
    flags.DEFINE_string("row", "", f"a row, a table ({', '.join(paper.tables)}) or a part of one; empty: all")
    flags.DEFINE_bool("list", False, "show the rows and their settings, and run nothing")
    flags.DEFINE_string("scale", "paper", "paper: exactly as printed; small: on small images, in seconds to minutes")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "one run of each row per seed")
    flags.DEFINE_string("dataset", "", "as for experiments.train, in place of the paper's; small scale: of digits")
    flags.DEFINE_string("data_dir", "", "as for experiments.train")
    flags.DEFINE_integer("epochs", 0, "small scale: passes over the training set; 0: 3 to 12")
    flags.DEFINE_bool("only_known", False, "run nothing: write the tables of what the workdir holds")
    flags.DEFINE_string("out", "", "directory for tables and pictures; empty: tables/ in the workdir")
    flags.DEFINE_string("workdir", "", "directory of results, which is used again; empty: runs/reproduction")
    flags.DEFINE_bool("overwrite", False, "forget the results that the workdir holds")


def main(argv: list[str], paper: Paper) -> None:
    """What the program does with its flags."""
    with command_line.frame(argv, interrupted="what was finished is kept; the same command goes on from there"):
        chosen = paper.choose(FLAGS.row)
        if FLAGS.list:
            print(listing(paper, chosen))
            return
        scale = Scale(choose("scale", FLAGS.scale, SCALES), FLAGS.dataset, FLAGS.epochs, FLAGS.data_dir)
        if scale.epochs < 0:
            raise ValueError(f"epochs is {scale.epochs}; write at least 1, or 0 for the small scale's own")
        seeds = list(dict.fromkeys(numbers("seeds", FLAGS.seeds, int, least=0)))
        # Unlike that of a run, this workdir is meant to be used again: by every paper, at every scale.
        workdir = pathlib.Path(FLAGS.workdir or "runs/reproduction")
        devices.request(CPU_DEVICES)
        devices.compile_once()
        store = Store(workdir, overwrite=FLAGS.overwrite)
        print(f"{paper.title}: {plan(paper, chosen, scale, seeds, store)}")
        ours = ("--workdir", "--data_dir", "--only_known")  # which say nothing of the results
        told = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
        command = " ".join([f"python -m experiments.{paper.name}", *told])
        out = pathlib.Path(FLAGS.out) if FLAGS.out else store.path / "tables"
        single = sum(map(len, chosen.values())) == 1
        run(
            paper,
            chosen,
            scale=scale,
            seeds=seeds,
            store=store,
            out=out,
            strict=single,
            only_known=FLAGS.only_known,
            command=command,
        )


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items()) or "as of the table"
