"""The programs of the papers: rows say what the papers say, small runs keep what makes a method, nothing runs twice."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from experiments.reproduction import program, tables
from experiments.reproduction.config import RowConfig, row_config
from experiments.reproduction.kind import Kind, Scale
from experiments.reproduction.kinds import KINDS
from experiments.reproduction.rows import DIVERGES, Paper, Row, Table
from experiments.reproduction.runner import job_of, run_rows
from experiments.reproduction.store import Store

PAPERS = {name: importlib.import_module(f"experiments.{name}").paper() for name in ("fdg", "adl", "dsp", "thesis")}
ALL = [
    pytest.param(paper.tables[name], row, id=f"{paper.name}/{name}/{row.name}")
    for paper in PAPERS.values()
    for name in paper.tables
    for row in paper.tables[name].rows
]
KEPT = (
    *("method", "num_stages", "beta", "accumulate", "p", "m", "order", "weights"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "warmup_rate", "decay", "decay_factor"),
)


def found(name: str) -> tuple[Table, Row]:
    paper, table, row = name.split("/", 2)
    table = PAPERS[paper].tables[table]
    return table, next(each for each in table.rows if each.name == row)


def test_every_table_has_a_folder_with_a_readme_and_nothing_else_has():
    for paper in PAPERS.values():
        folder = pathlib.Path(importlib.import_module(f"experiments.{paper.name}").__file__).parent
        assert {file.parent.name for file in folder.glob("*/rows.py")} == set(paper.tables)
        for name in paper.tables:
            assert f"--row={name}" in (folder / name / "README.md").read_text()


def test_names_of_rows_are_unique():
    for paper in PAPERS.values():
        assert len(set(paper.names())) == len(paper.names())
    twice = Table(title="", measure="final_error", rows=(Row("a", {}), Row("a", {})))
    with pytest.raises(ValueError, match="table1 has rows of the same name: a"):
        Paper("paper", "", {"table1": twice})


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
    table, row = found(name)
    assert row.paper == number
    assert settings.items() <= table.settings_of(row).items()


@pytest.mark.parametrize(("table", "row"), ALL)
def test_every_row_can_be_run_as_the_paper_has_it(table, row):
    if table.kind in ("training", "diagnostics"):
        job = job_of(table, row, Scale("paper"))
        row_config({name: value for name, value in job.settings.items()}).check()
    else:
        assert job_of(table, row, Scale("paper")).settings.items() >= row.settings.items()


@pytest.mark.parametrize(("table", "row"), [case for case in ALL if case.values[0].kind == "training"])
def test_a_small_run_keeps_the_method_and_the_shape_of_the_schedule(table, row):
    full, cut = (job_of(table, row, Scale(name)).settings for name in ("paper", "small"))
    assert {name: full[name] for name in KEPT} == {name: cut[name] for name in KEPT}
    assert cut["dataset"] == "digits" and cut["epochs"] <= 12
    assert cut["batch_size"] == min(full["batch_size"], 64 // (cut["accumulate"] or 1))
    part = full["warmup_epochs"] / full["epochs"]
    assert cut["warmup_epochs"] == (pytest.approx(max(1, part * cut["epochs"])) if part else 0)
    drops = [[epoch / run["epochs"] for epoch in run["decay_epochs"]] for run in (full, cut)]
    assert drops[0] == pytest.approx(drops[1], abs=1e-6)
    assert len(row_config(cut).layers(10, 8)) >= cut["num_stages"]


def test_a_constant_warmup_comes_before_the_schedule_without_moving_it():
    config = RowConfig(epochs=10, decay_epochs=(4,), learning_rate=0.1, warmup_epochs=2.0, warmup_rate=0.01)
    rates = [float(config.learning_rates(10.0)(n)) for n in (0, 19, 20, 39, 40)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="warmup_rate is 0.01, but warmup_epochs is 0"):
        RowConfig(warmup_rate=0.01).check()


def test_an_unknown_row_is_one_clear_error():
    run = subprocess.run(
        [sys.executable, "-m", "experiments.fdg", "--row=table3/resnet56/fdg_beta5"], capture_output=True, text=True
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "no row 'table3/resnet56/fdg_beta5'" in run.stderr and "table3/resnet56/fdg_beta0.5" in run.stderr
    with pytest.raises(ValueError, match="table3"):
        PAPERS["fdg"].choose("table33")
    assert list(PAPERS["fdg"].choose("table3/resnet56")) == ["table3"]
    assert sum(map(len, PAPERS["fdg"].choose("").values())) == len(PAPERS["fdg"].names())


def test_the_listing_has_every_row_with_its_settings():
    text = program.listing(PAPERS["adl"], PAPERS["adl"].choose("table2a"))
    assert "table2a/M3: " in text and "accumulate=3, batch_size=42; paper: diverges (test error, %)" in text
    assert '"cifar10"' in text and "weight_decay=0.0005" in text


@pytest.fixture
def counted(monkeypatch):
    """A kind whose runs are counted; seed 1 of settings with ``wild`` diverges."""
    runs = []

    def run(settings, seeds, emit):
        for seed in seeds:
            runs.append((settings["name"], seed))
            if settings.get("stop") == seed:
                raise KeyboardInterrupt
            lost = bool(settings.get("wild")) and seed == 1
            emit(seed, {"diverged": lost, "test_error": None if lost else 0.01 * seed, "records": []})

    training = KINDS["training"]
    kinds = {**KINDS, "training": Kind(lambda settings, scale: dict(settings), run, training.measures)}
    for module in ("runner", "tables"):
        monkeypatch.setattr(f"experiments.reproduction.{module}.KINDS", kinds)
    return runs


def _run(table, store, seeds=(0, 1, 2)):
    return run_rows(table, table.rows, scale=Scale("small"), seeds=seeds, store=store, say=lambda text: None)


def test_what_is_finished_is_not_run_again(counted, tmp_path):
    rows = (Row("a", {"name": "x"}), Row("b", {"name": "y"}), Row("c", {"name": "x"}))
    table = Table(title="", measure="final_error", rows=rows)
    _run(table, Store(tmp_path / "work"), seeds=(0, 1))
    assert counted == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]  # a and c are the same
    lines = _run(table, Store(tmp_path / "work"))
    assert counted[4:] == [("x", 2), ("y", 2)]
    assert [list(line.results) for line in lines] == [[0, 1, 2]] * 3
    Store(tmp_path / "work", overwrite=True)
    _run(table, Store(tmp_path / "work"), seeds=(0,))
    assert counted[6:] == [("x", 0), ("y", 0)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no run"):
        Store(tmp_path / "other")


def test_a_stopped_run_loses_nothing_that_was_finished(counted, tmp_path):
    table = Table(title="", measure="final_error", rows=(Row("a", {"name": "x", "stop": 1}), Row("b", {"name": "y"})))
    with pytest.raises(KeyboardInterrupt):
        _run(table, Store(tmp_path / "work"))
    assert counted == [("x", 0), ("x", 1)]
    with pytest.raises(KeyboardInterrupt):
        _run(table, Store(tmp_path / "work"))
    assert counted[2:] == [("x", 1)]


def test_a_table_has_the_papers_number_beside_ours(counted, tmp_path):
    rows = (Row("a", {"name": "x"}, 6.19, "once 6.97"), Row("b", {"name": "y", "wild": True}, DIVERGES))
    table = Table(title="Table 1", measure="final_error", rows=rows, statistic="median of 3 runs")
    lines = _run(table, Store(tmp_path / "work"))
    text = tables.as_markdown(table, lines).splitlines()
    assert text[0] == "| row | paper: test error, % | test error, % | seeds | remarks |"
    assert text[2] == "| a | 6.19 | 1.00 ± 1.00 | 3 | once 6.97; median 1.00 |"
    assert text[3] == "| b | diverges | 1.00 ± 1.41 (1 of 3 diverge) | 3 | median 1.00 |"
    tables.write(tmp_path / "out", table, lines, scale="small", command="python", rows_in_table=3)
    assert "small, 2 of 3 rows" in (tmp_path / "out" / "table.md").read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"][0]["paper"] == 6.19 and results["rows"][1]["results"]["1"]["diverged"]


def test_settings_that_a_config_does_not_have_are_refused():
    with pytest.raises(ValueError, match="config has no setting bata"):
        row_config({"bata": 1})
    assert dataclasses.asdict(row_config({"beta": 0.5}))["beta"] == 0.5
