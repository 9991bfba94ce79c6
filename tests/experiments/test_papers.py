"""The program of the papers: rows say what the papers say, small runs keep what makes a method, nothing runs twice."""

import dataclasses
import hashlib
import json
import pathlib

import pytest

from experiments.papers import __main__ as program
from experiments.papers import render
from experiments.papers.kinds.training import FINAL_ERROR
from experiments.papers.store import Store, first_with, job_of
from experiments.papers.table import DIVERGES, Row, Scale, Table, choose
from experiments.training.config import Config

PAPERS = {name: paper.TABLES for name, paper in program.PAPERS.items()}
ALL = {
    f"{paper}/{name}/{row.name}": (table, row)
    for paper, tables in PAPERS.items()
    for name, table in tables.items()
    for row in table.rows
}
KEPT = (
    *("method", "num_stages", "beta", "accumulate", "p", "m", "order", "weights"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "warmup_rate", "decay", "decay_factor"),
)
# How many rows each table has, and a hash of all names.
NAMES = {
    "fdg": ((12, 30, 21, 6, 32, 26, 8, 16, 11), "515f3d756628449f"),
    "adl": ((24, 12, 67, 10, 12, 17, 16, 6), "66f5d7f67d40f1ec"),
    "dsp": ((36, 16, 13, 6, 8, 6, 9, 6), "0ef45e82b780acfb"),
    "thesis": ((4, 9, 7, 4, 3, 8, 4, 4, 2, 18, 18, 18), "13a00b77ec6693b9"),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_rows_keep_their_names(paper):
    names = [f"{name}/{row.name}" for name, table in PAPERS[paper].items() for row in table.rows]
    found = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    assert (tuple(len(table.rows) for table in PAPERS[paper].values()), found) == NAMES[paper]
    readme = (pathlib.Path(program.__file__).parent / "README.md").read_text()
    assert [name for name in PAPERS[paper] if f"`{name}`" not in readme] == []


def test_names_of_rows_are_unique():
    with pytest.raises(ValueError, match="Table 1 has rows of the same name: a"):
        Table(title="Table 1", claim="", measure=FINAL_ERROR, rows=(Row("a", {}), Row("a", {})))


# Transcribed by hand from the papers, apart from the rows: name, number, and settings.
SPOT_CHECKS = [
    ("fdg/table3/resnet56/fdg_beta0.5", 5.90, {"beta": 0.5, "num_stages": 2, "decay_epochs": (150, 225, 275)}),
    ("fdg/table3/resnet56/features_replay", 6.07, {"learning_rate": 0.1, "epochs": 300, "batch_size": 128}),
    ("fdg/table3/resnet110/fdg_beta0.2", 5.73, {"warmup_epochs": 3.0, "warmup_rate": 0.01, "weight_decay": 5e-4}),
    ("fdg/table4/wrn28_10/fdg_beta0.6", 19.08, {"dataset": "cifar100", "beta": 0.6, "nesterov": False}),
    ("fdg/table6/wrn28_10/K4/fdg_beta0.5", 4.42, {"num_stages": 4, "warmup_rate": 0.01, "order": "backward_first"}),
    ("fdg/table8/resnet20/forward_beta0.2", 7.57, {"order": "forward_first"}),
    ("fdg/table7/resnet101/K2/fdg", 1.68, {"num_stages": 2, "image_size": 224}),
    ("adl/table2a/M3", DIVERGES, {"accumulate": 3, "batch_size": 42, "num_stages": 16, "model": "resnet56"}),
    ("adl/table2a/M12", 6.86, {"accumulate": 12, "batch_size": 10, "warmup_epochs": 3.0}),
    ("adl/table2b/resnet34/K12/features_replay", DIVERGES, {"num_stages": 12, "learning_rate": 0.1}),
    ("adl/table2b/resnet164/K10/adl", 5.52, {"accumulate": 4, "batch_size": 32, "num_stages": 10}),
    ("adl/table2b/resnet98/K4/dsp", 6.59, {"p": (1, 1, 1, 0), "m": (6, 4, 2, 0), "learning_rate": 0.01}),
    ("adl/table2c/resnet50/K4/adl", 23.43, {"weight_decay": 1e-4, "learning_rate": 0.05, "decay_epochs": (30, 60, 80)}),
    ("adl/table3/K4/adl", 3.32, {"num_stages": 4, "accumulate": 4}),
    ("dsp/table1/resnet164/cifar10/K4/dsp_2220_9630", 94.87, {"p": (2, 2, 2, 0), "m": (9, 6, 3, 0)}),
    ("dsp/table1/resnet98/cifar100/K3/features_replay", 73.27, {"num_stages": 3, "decay_epochs": (150, 225)}),
    ("dsp/table2/dsp_330_1050/150", 53.42, {"p": (3, 3, 0), "m": (10, 5, 0), "percent": 150}),
    ("dsp/table3/resnet1001/dsp", 4.8, {"baseline_stages": 4, "batch_size": 128}),
    ("dsp/table4/resnet50/dsp_110_420", 74.91, {"batch_size": 256, "weight_decay": 1e-4, "epochs": 90}),
    ("dsp/figure4_curves/resnet1001/bp", None, {"epochs": 250, "weight_decay": 2e-4, "decay_epochs": (100, 150, 200)}),
    ("thesis/table5/cifar100/resnet56/ddg", 70.17, {"learning_rate": 0.01, "nesterov": True, "num_stages": 2}),
    ("thesis/table7/resnet152/cifar10/features_replay", 4.91, {"weight_decay": 5e-4, "decay_epochs": (150, 225)}),
    ("thesis/figure17_18/layer7/dni", DIVERGES, {"optimizer": "adam", "learning_rate": 1e-3, "boundaries": (4,)}),
]


@pytest.mark.parametrize(("name", "number", "settings"), SPOT_CHECKS, ids=[check[0] for check in SPOT_CHECKS])
def test_rows_have_what_the_papers_print(name, number, settings):
    table, row = ALL[name]
    assert row.paper == number
    assert settings.items() <= table.settings_of(row).items()


def test_every_row_can_be_run_as_the_paper_has_it():
    for name, (table, row) in ALL.items():
        settings = job_of(table, row, Scale("paper")).settings
        if isinstance(settings, Config):
            settings.check()
            settings = dataclasses.asdict(settings)
        assert settings.items() >= table.settings_of(row).items(), name


TRAINED = [name for name, (table, _) in ALL.items() if table.measure.kind == "training"]


@pytest.mark.parametrize("paper", PAPERS)
def test_a_small_run_keeps_the_method_and_the_shape_of_the_schedule(paper):
    for name in (name for name in TRAINED if name.startswith(f"{paper}/")):
        full, cut = (job_of(*ALL[name], Scale(scale)).settings for scale in ("paper", "small"))
        assert {kept: getattr(full, kept) for kept in KEPT} == {kept: getattr(cut, kept) for kept in KEPT}, name
        assert cut.dataset == "digits" and cut.epochs <= 12
        assert cut.batch_size == min(full.batch_size, 64 // (cut.accumulate or 1))
        part = full.warmup_epochs / full.epochs
        assert cut.warmup_epochs == (pytest.approx(max(1, part * cut.epochs)) if part else 0), name
        drops = [[epoch / run.epochs for epoch in run.decay_epochs] for run in (full, cut)]
        assert drops[0] == pytest.approx(drops[1], abs=1e-6)
        assert len(cut.layers(10, 8)) >= cut.num_stages


def test_a_table_or_a_part_of_one_is_chosen_by_name():
    tables = PAPERS["fdg"]
    assert list(choose(tables, "table3/resnet56")) == ["table3"]
    assert [row.name for row in choose(tables, "table8/resnet20/")["table8"]] == [
        f"resnet20/{order}_beta{beta}" for order in ("forward", "backward") for beta in ("1", "0.2")
    ]
    assert {name: list(table.rows) for name, table in tables.items()} == choose(tables, "")


def test_the_listing_has_every_row_with_its_settings():
    text = program.listing(PAPERS["adl"], choose(PAPERS["adl"], "table2a"))
    assert "table2a/M3: " in text and "accumulate=3, batch_size=42; paper: diverges (test error, %)" in text
    assert '"cifar10"' in text and "weight_decay=0.0005" in text and "M <= 3, training diverges" in text


RUNS = []


def counted(settings, seeds, emit):
    """Notes each run; seed 1 of settings with ``wild`` diverges."""
    for seed in seeds:
        RUNS.append((settings["name"], seed))
        if settings.get("stop") == seed:
            raise KeyboardInterrupt
        lost = bool(settings.get("wild")) and seed == 1
        emit(seed, {"diverged": lost, "test_error": None if lost else 0.01 * seed, "records": []})


COUNTED = dataclasses.replace(FINAL_ERROR, settings=lambda settings, scale: dict(settings), run=counted)


def table_of(*rows, **parts):
    return Table(title="Table 1", claim="It works.", measure=COUNTED, rows=rows, **parts)


def lines_of(table, path, seeds=(0, 1, 2), tables=None):
    RUNS.clear()
    scale = Scale("small")
    first = first_with(tables or {"table1": table}, scale)
    return program.lines_of(
        "table1", table, table.rows, scale=scale, seeds=seeds, store=Store(path / "work"), first=first
    )


def test_what_is_finished_is_not_run_again(tmp_path):
    table = table_of(Row("a", {"name": "x"}), Row("b", {"name": "y"}), Row("c", {"name": "x"}))
    lines_of(table, tmp_path, seeds=(0, 1))
    assert RUNS == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]  # a and c are the same
    lines = lines_of(table, tmp_path)
    assert RUNS == [("x", 2), ("y", 2)]
    assert [list(line.results) for line in lines] == [[0, 1, 2]] * 3
    assert len({file.name for file in (tmp_path / "work" / "jobs").iterdir()}) == 6
    Store(tmp_path / "work", overwrite=True)
    lines_of(table, tmp_path, seeds=(0,))
    assert RUNS == [("x", 0), ("y", 0)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no run"):
        Store(tmp_path / "other")


def test_a_stopped_run_loses_nothing_that_was_finished(tmp_path):
    table = table_of(Row("a", {"name": "x", "stop": 1}), Row("b", {"name": "y"}))
    for runs in ([("x", 0), ("x", 1)], [("x", 1)]):
        with pytest.raises(KeyboardInterrupt):
            lines_of(table, tmp_path)
        assert RUNS == runs


def test_a_table_has_the_papers_number_beside_ours(tmp_path):
    rows = (
        *(Row("a", {"name": "x"}, 6.19, "once 6.97"), Row("b", {"name": "y", "wild": True}, DIVERGES)),
        *(Row("c", {"name": "x"}, 5.0, "of c"), Row("d", {"name": "z"})),
    )
    table, earlier = table_of(*rows, statistic="median of 3 runs"), table_of(Row("e", {"name": "z"}))
    lines = lines_of(table, tmp_path, tables={"table0": earlier, "table1": table})
    text = render.as_markdown("table1", table, lines).splitlines()
    assert text[0] == "| row | paper: test error, % | test error, % | seeds | remarks |"
    assert text[2] == "| a | 6.19 | 1.00 ± 1.00 | 3 | once 6.97; median 1.00 |"
    assert text[3] == "| b | diverges | 1.00 ± 1.41 (1 of 3 diverge) | 3 | median 1.00 |"
    assert text[4] == "| c | 5 | as a |  | of c |"
    assert text[5] == "| d | - | 1.00 ± 1.00 | 3 | median 1.00; same run as table0/e |"
    section = render.section("table1", table, lines[:2], {"learning curves": tmp_path / "curves.png"})
    assert "It works." in section and "2 of 4 rows" in section and "![learning curves](curves.png)" in section


def test_the_page_has_the_tables_of_which_something_is_known(tmp_path, monkeypatch):
    """A row that cannot be run says why, and the others go on; asked for alone, it is an error."""

    def refuse(settings, scale):
        if "model" in settings:
            raise ValueError("no such model")
        return settings

    measure = dataclasses.replace(COUNTED, settings=refuse)
    tables = {
        "table1": dataclasses.replace(table_of(Row("a", {"name": "x"}), Row("b", {"model": "y"})), measure=measure),
        "table2": dataclasses.replace(table_of(Row("c", {"name": "z"})), measure=measure),
    }
    monkeypatch.setattr(program.PAPERS["fdg"], "TABLES", tables)
    given = {"scale": Scale("small"), "seeds": (0,), "store": Store(tmp_path / "work"), "page": tmp_path / "fdg.md"}
    program.run("fdg", choose(tables, "table1"), **given)
    page = given["page"].read_text()
    assert "## table1: Table 1" in page and "| b | - | not run | 0 | not run: no such model |" in page
    program.run("fdg", choose(tables, ""), only_known=True, command="python", **given)
    page = given["page"].read_text()
    assert "table2" not in page and "| a | - | 0.00 | 1 |" in page and "Scale: small. `python`" in page
    (result,) = (json.loads(file.read_text()) for file in (tmp_path / "work" / "jobs").iterdir())
    assert result["row"] == "table1/a" and result["result"]["test_error"] == 0.0
    with pytest.raises(ValueError, match="no such model"):
        program.run("fdg", choose(tables, "table1/b"), **given)
