"""The program of `python -m experiments.papers`: runs rows, and sets our numbers beside the paper's."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from experiments import devices, settings
from experiments.papers import adl, dsp, fdg, render, scales, thesis
from experiments.papers.kinds import training
from experiments.papers.render import Line
from experiments.papers.scales import SCALES, Scale
from experiments.papers.store import Job, Store, first_with, job_of
from experiments.papers.table import Result, Row, Table, choose
from experiments.training.config import Config

FLAGS = flags.FLAGS
PAPERS = {"fdg": fdg, "adl": adl, "dsp": dsp, "thesis": thesis}
CPU_DEVICES = 4  # no table of speed or memory has more stages; training puts several stages on one without loss


def run_row(
    path: str,
    job: Job,
    seeds: Sequence[int],
    store: Store,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
    *,
    keep_weights: bool = False,
) -> None:
    """Runs what the store does not hold yet; a run that was stopped goes on.

    Args:
      path: of the row, for messages.
      job: what it runs.
      seeds: of the runs.
      store: holds what was run before, by any row of any table.
      say: called with a text on each result.
      keep_weights: whether those of training runs are kept in the store.

    Raises:
      ValueError: the row cannot be run here.
    """
    start = time.perf_counter()

    def emit(seed: int, result: Result) -> None:
        nonlocal start
        store.put(job, seed, result, path)
        found = ", ".join(f"{column.header} {render.cell(column, {seed: result})}" for column in job.measure.columns)
        say(f"{path:44s} seed {seed}: {found}; {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()

    missing = store.missing(job, seeds, keep_weights=keep_weights)
    if missing and job.measure.resumes:
        job.measure.run(job.settings, missing, emit, functools.partial(store.places, job, keep_weights=keep_weights))
    elif missing:
        job.measure.run(job.settings, missing, emit)


def lines_of(
    name: str,
    table: Table,
    rows: Sequence[Row],
    *,
    scale: Scale,
    seeds: Sequence[int],
    store: Store,
    first: Mapping[str, str],
    strict: bool = False,
    only_known: bool = False,
    keep_weights: bool = False,
) -> list[Line]:
    """Runs what is missing. A row that cannot be run says why in its line, and the others go on.

    Args:
      name: of the table.
      table: of the rows.
      rows: to run.
      scale: of the settings.
      seeds: of the runs.
      store: of results.
      first: for each job's key, the first row of the paper that runs it.
      strict: raise for a row that cannot be run: it was asked for alone.
      only_known: run nothing.
      keep_weights: as of `run_row`.
    """
    lines = []
    for row in rows:
        job, reason, path = None, "", f"{name}/{row.name}"
        try:
            job = job_of(table, row, scale)
            if not only_known:
                run_row(path, job, seeds, store, keep_weights=keep_weights)
        except ValueError as error:
            if strict:
                raise
            reason = f"not run: {error}"
            print(f"{path:44s} {reason}", flush=True)
        results = store.results(job, seeds) if job else {}
        lines.append(Line(row, job, results, reason, first.get(job.key, "") if job else ""))
    return lines


def run(
    paper: str,
    chosen: Mapping[str, Sequence[Row]],
    *,
    scale: Scale,
    seeds: Sequence[int],
    store: Store,
    page: pathlib.Path,
    only_known: bool = False,
    keep_weights: bool = False,
    command: str = "",
) -> None:
    """Runs the chosen rows, table by table; each table is printed and added to the page when it is complete.

    With ``only_known`` nothing is run, and tables of which nothing is known are left out.
    """
    tables = PAPERS[paper].TABLES
    single = sum(map(len, chosen.values())) == 1
    machine = ", ".join(f"{name} {value}" for name, value in devices.describe().items())
    changed = f" Changed by --set: {scales.changes_in_words(scale.changes)}." if scale.changes else ""
    text = f"# {PAPERS[paper].TITLE}\n\nScale: {scale.name}.{changed} `{command}`\n\nMachine: {machine}.\n"
    first = first_with(tables, scale)
    page.parent.mkdir(parents=True, exist_ok=True)
    for name, rows in chosen.items():
        table = tables[name]
        print(f"\n{table.title}: {len(rows)} of {len(table.rows)} rows", flush=True)
        given = {"scale": scale, "seeds": seeds, "store": store, "first": first}
        lines = lines_of(name, table, rows, strict=single, only_known=only_known, keep_weights=keep_weights, **given)
        if only_known and not any(line.results for line in lines):
            continue
        pictures = render.draw(page.with_name(f"{paper}-{name}"), table, lines, scale.name)
        section = render.section(name, table, lines, pictures)
        text += f"\n{section}"
        page.write_text(text)
        print(f"\n{section}\n({page})", flush=True)


def listing(tables: Mapping[str, Table], chosen: Mapping[str, Sequence[Row]]) -> str:
    """A line for each row: its name, the paper's number, its settings; what a table's rows share comes first."""
    lines = []
    for name, rows in chosen.items():
        table = tables[name]
        lines += ["", f"{name}: {table.title}", f"  the claim: {table.claim}"]
        lines += [f"  all rows: {_settings(table.settings)}"]
        for row in rows:
            own = {key: value for key, value in row.settings.items() if table.settings.get(key) != value}
            number = render.paper_number(row.paper)
            lines.append(f"  {name}/{row.name}: {_settings(own)}; paper: {number} ({table.measure.unit})")
    return "\n".join(lines[1:])


def plan(
    tables: Mapping[str, Table],
    chosen: Mapping[str, Sequence[Row]],
    scale: Scale,
    seeds: Sequence[int],
    store: Store,
) -> str:
    """How much there is to do, in a sentence."""
    left, rows, impossible = {}, 0, 0
    for name, members in chosen.items():
        for row in members:
            rows += 1
            try:
                job = job_of(tables[name], row, scale)
            except ValueError:
                impossible += 1
                continue
            left[job.key] = len(store.missing(job, seeds))
    rest = f"; {impossible} cannot be run" if impossible else ""
    return f"{rows} rows, {len(left)} different settings, {sum(left.values())} runs to do{rest}"


def check(tables: Mapping[str, Table], chosen: Mapping[str, Sequence[Row]], scale: Scale) -> None:
    """Refuses, before anything runs, changes that a row cannot have, and a data set that does not fit its network.

    Rows that cannot be run at this scale anyway say so in their own line.

    Raises:
      ValueError: names the row.
    """
    as_it_is, fitting = dataclasses.replace(scale, changes={}), set()
    refused: dict[str, ValueError] = {}
    for name, row in ((name, row) for name, rows in chosen.items() for row in rows):
        try:
            job_of(tables[name], row, as_it_is)
        except ValueError as error:
            refused[f"{name}/{row.name}"] = error
            continue
        try:
            config = job_of(tables[name], row, scale).settings
            given = isinstance(config, Config) and (
                scale.dataset or {"dataset", "model", "image_size"} & {*scale.changes}
            )
            network = given and (
                config.model,
                config.split_blocks,
                config.num_stages,
                config.dataset,
                config.image_size,
            )
            if given and network not in fitting:
                training.trainer_of(config)
                fitting.add(network)
        except ValueError as error:
            raise ValueError(f"{name}/{row.name}: {error}") from error
    if scale.dataset and len(refused) == sum(map(len, chosen.values())):
        path, error = next(iter(refused.items()))
        raise ValueError(f"no row can be run on {scale.dataset}; {path}: {error}") from error


def main(argv: Sequence[str]) -> None:
    """What the program does, with the paper that its arguments name, and its flags.

    Raises:
      ValueError: they cannot be used.
    """
    if len(argv) < 2:
        raise ValueError(f"no paper is given; write one of {', '.join(PAPERS)}: python -m experiments.papers fdg")
    paper = settings.choose("paper", argv[1], PAPERS)
    tables = PAPERS[paper].TABLES
    chosen = choose(tables, FLAGS.row)
    if FLAGS.list:
        print(listing(tables, chosen))
        return
    name = settings.choose("scale", FLAGS.scale, SCALES)
    scale = Scale(name, FLAGS.dataset, FLAGS.epochs, FLAGS.data_dir, scales.parsed_changes(FLAGS.set))
    if scale.epochs < 0:
        raise ValueError(f"epochs is {scale.epochs}; write at least 1, or 0 for the scale's own")
    if scale.epochs and name == "paper":
        raise ValueError(f"epochs is {scale.epochs}, but scale paper trains as printed; write --set epochs=...")
    if FLAGS.out and pathlib.Path(FLAGS.out).exists() and not pathlib.Path(FLAGS.out).is_dir():
        raise ValueError(f"out is {FLAGS.out}, which is a file; write a directory")
    seeds = list(dict.fromkeys(settings.numbers("seeds", FLAGS.seeds, int, least=0, below=2**32)))
    devices.request(CPU_DEVICES)
    devices.compile_once()
    check(tables, chosen, scale)
    # Unlike that of a run, this workdir is meant to be used again: by every paper, at every scale.
    store = Store(pathlib.Path(FLAGS.workdir or "runs/reproduction"), overwrite=FLAGS.overwrite)
    print(f"{PAPERS[paper].TITLE}: {plan(tables, chosen, scale, seeds, store)}")
    ours = ("--workdir", "--data_dir", "--only_known")  # which say nothing of the results
    told = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
    out = pathlib.Path(FLAGS.out) if FLAGS.out else store.path / "tables"
    changed = [f"{name}={value}".replace("/", "_") for name, value in scale.changes.items()]
    page = "-".join([paper, *filter(None, FLAGS.row.split("/")), *changed])
    run(
        paper,
        chosen,
        scale=scale,
        seeds=seeds,
        store=store,
        page=out / f"{page}.md",
        only_known=FLAGS.only_known,
        keep_weights=FLAGS.keep_weights,
        command=" ".join(["python -m experiments.papers", *told]),
    )


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items()) or "as of the table"
