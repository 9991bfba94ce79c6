"""The program of the papers: rows say what the papers say, small runs keep what makes a method, nothing runs twice."""

import dataclasses
import hashlib
import json
import pathlib
import re

import numpy as np
import pytest

from experiments.papers import program, render, scales
from experiments.papers.kinds.training import FINAL_ERROR
from experiments.papers.scales import Scale
from experiments.papers.store import Store, first_with, job_of
from experiments.papers.table import DIVERGES, Row, Table, choose
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
    "fdg": ((18, 30, 21, 6, 32, 26, 8, 16, 11), "53ccd197805c692e"),
    "adl": ((24, 12, 67, 10, 12, 17, 16, 6), "66f5d7f67d40f1ec"),
    "dsp": ((36, 16, 13, 6, 8, 6, 9, 6), "0ef45e82b780acfb"),
    "thesis": ((10, 32, 6, 4, 9, 7, 4, 3, 8, 4, 4, 2, 18, 18, 12, 18), "5d9f00efe06c4fd0"),
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
    ("adl/table3/K4/adl", 3.32, {"num_stages": 4, "accumulate": 4, "whole_batches": True}),
    ("adl/table4/adl", 1.84 / 1.14, {"num_stages": 4, "accumulate": 4, "whole_batches": True, "batch_size": 128}),
    ("dsp/table1/resnet164/cifar10/K4/dsp_2220_9630", 94.87, {"p": (2, 2, 2, 0), "m": (9, 6, 3, 0)}),
    ("dsp/table1/resnet98/cifar100/K3/features_replay", 73.27, {"num_stages": 3, "decay_epochs": (150, 225)}),
    ("dsp/table2/dsp_330_1050/150", 53.42, {"p": (3, 3, 0), "m": (10, 5, 0), "percent": 150}),
    ("dsp/table3/resnet1001/dsp", 4.8, {"baseline_stages": 4, "batch_size": 128}),
    ("dsp/table4/resnet50/dsp_110_420", 74.91, {"batch_size": 256, "weight_decay": 1e-4, "epochs": 90}),
    ("dsp/figure3/resnet98/dni", DIVERGES, {"dni_labels": False}),
    ("thesis/figure28/resnet164/K4/dni", DIVERGES, {"dni_labels": False, "counters": "global"}),
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


def max_update(name):
    """Images of an update of the paper's run."""
    settings = ALL[name][0].settings_of(ALL[name][1])
    return settings["batch_size"] * (settings.get("accumulate") or 1)


def test_thesis_chapter_4_trains_with_the_batches_and_rates_of_its_text():
    batches = {name: max_update(name) for name in TRAINED if name.startswith(("thesis/figure10", "thesis/figure13"))}
    assert {batch for name, batch in batches.items() if "figure13" in name} == {8192}
    assert {batches[f"thesis/figure10/vgg11/lars_{size}"] - size for size in (128, 512, 2048, 8192)} == {0}
    for name, eta, rate, epochs in (("resnet50/lars", 1e-3, 25, 90), ("mobilenet_v2/clars", 1e-2, 6, 150)):
        run = job_of(*ALL[f"thesis/figure14/{name}"], Scale("paper")).settings
        assert (run.eta, run.learning_rate, run.epochs, run.batch_size * run.accumulate) == (eta, rate, epochs, 16384)
        assert (run.warmup_epochs, run.decay, run.nesterov) == (5 if "lars" == run.optimizer else 0, "polynomial", True)
    assert job_of(*ALL["thesis/figure13/resnet56/clars/eta0.01"], Scale("paper")).settings.learning_rate == 6.4


@pytest.mark.parametrize("paper", PAPERS)
def test_a_small_run_keeps_the_method_and_the_shape_of_the_schedule(paper):
    for name in (name for name in TRAINED if name.startswith(f"{paper}/")):
        if max_update(name) > 256:
            with pytest.raises(
                ValueError,
                match="images, and those of the small scale at most 256 of a paper's; write --scale=medium, or see",
            ):
                job_of(*ALL[name], Scale("small"))
            continue
        full, cut = (job_of(*ALL[name], Scale(scale)).settings for scale in ("paper", "small"))
        assert {kept: getattr(full, kept) for kept in KEPT} == {kept: getattr(cut, kept) for kept in KEPT}, name
        assert cut.dataset == "digits"
        updates = 1437 // cut.batch_size * cut.epochs / cut.steps_per_update
        assert 2000 <= updates < 2100, name
        assert cut.batch_size == min(full.batch_size, 64 // (cut.accumulate or 1))
        part = full.warmup_epochs / full.epochs
        assert cut.warmup_epochs == (pytest.approx(max(1, part * cut.epochs)) if part else 0), name
        drops = [[epoch / run.epochs for epoch in run.decay_epochs] for run in (full, cut)]
        assert drops[0] == pytest.approx(drops[1], abs=1e-6)
        assert len(cut.layers(10, 8)) >= cut.num_stages


@pytest.fixture
def images(tmp_path):
    """Noise of CIFAR-10's shape."""
    rng, file = np.random.default_rng(0), tmp_path / "images.npz"
    arrays = {
        f"x_{part}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in (("train", 1000), ("test", 20))
    }
    np.savez(file, **arrays, y_train=np.arange(1000) % 10, y_test=np.arange(20) % 10)
    return f"npz:{file}"


def test_a_medium_run_has_a_smaller_network_of_the_same_kind(images):
    """Networks that differ in a table differ here; what makes the method, and the batch, are the paper's."""
    scale, impossible = Scale("medium", images), []
    for paper, tables in PAPERS.items():
        for name, table in tables.items():
            networks = {}
            for row in table.rows if table.measure.kind in ("training", "diagnostics") else ():
                full = job_of(table, row, Scale("paper")).settings
                try:
                    cut = job_of(table, row, scale).settings
                except ValueError as error:
                    impossible.append((f"{paper}/{name}/{row.name}", str(error)))
                    continue
                assert {kept: getattr(full, kept) for kept in (*KEPT, "batch_size")} == {
                    kept: getattr(cut, kept) for kept in (*KEPT, "batch_size")
                }
                assert networks.setdefault(full.model, cut.model) == cut.model
                assert 1000 // cut.batch_size * cut.epochs / cut.steps_per_update >= 4000
                assert len(cut.layers(10, 32)) >= cut.num_stages
            assert len(set(networks.values())) == len(networks), name
    assert {error.split(" is ")[0] for _, error in impossible} <= {"num_stages"}
    assert {name.split("/")[-1] for name, _ in impossible} <= {"dgl"}  # whose stages end between blocks
    table, row = ALL["fdg/table3/resnet20/bp"]
    with pytest.raises(ValueError, match="the medium scale has no data of its own; write --dataset=npz:PATH"):
        job_of(table, row, Scale("medium"))


def test_set_changes_settings_of_any_row():
    def settings(name, **given):
        return job_of(*ALL[name], Scale("small", changes=given)).settings

    plain, longer = (settings("fdg/table6/wrn28_10/K3/fdg_beta1", **given) for given in ({}, {"epochs": "30"}))
    assert plain.epochs == 91
    assert longer.epochs == 30 and longer.decay_epochs == (15, 22.5, 27.5)  # the shape of the schedule is kept
    assert settings("fdg/table3/resnet20/bp", epochs="30", decay_epochs="3,4").decay_epochs == (3, 4)
    assert dataclasses.replace(plain, beta=0.2) == settings("fdg/table6/wrn28_10/K3/fdg_beta1", beta="0.2")
    assert settings("dsp/figure4_gradients/K3/dsp_110_420", diagnose_every="7").diagnose_every == 7
    assert settings("dsp/table1/resnet164/cifar10/K3/dsp_110_420", m="9,4,0").m == (9, 4, 0)
    assert settings("dsp/table2/dsp_110_420/20", percent="30")["percent"] == 30.0
    assert settings("adl/figure2/module1/M4", accumulate="2")["accumulate"] == 2
    assert settings("adl/table3/K4/adl", batch_size="16")["batch_size"] == 16


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fdg/table3/resnet20/bp", ["num_epochs=30"], "there is no setting 'num_epochs'; did you mean 'epochs'"),
        ("fdg/table3/resnet56/dgl", ["beta=0.2"], "beta is 0.2, but dgl's stages pass no gradients on"),
        ("fdg/table3/resnet56/ddg", ["order=backward_first"], "method ddg has no such setting"),
        ("fdg/table3/resnet20/bp", ["epochs=many"], "epochs is 'many'; write"),
        ("fdg/table3/resnet20/bp", ["nesterov=2"], "unknown nesterov '2'"),
        ("fdg/table3/resnet20/bp", ["seed=2"], "there is no setting 'seed'; write --seeds"),
        ("fdg/table3/resnet20/bp", ["beta"], "set is 'beta'; write a setting and its value"),
        ("fdg/table3/resnet20/bp", ["beta=1", "beta=0.5"], "set names beta twice"),
        ("fdg/table2/K2/ddg", ["epochs=3"], "there is no setting 'epochs'"),
        ("fdg/table2/K2/ddg", ["p=1,0"], "method ddg has no such setting"),
        ("adl/table4/adl", ["num_stages=two"], "num_stages is 'two'; write an integer"),
        ("fdg/table3/resnet20/bp", ["model=vgg19"], "VGGLayer) cannot take"),
    ],
)
def test_changes_that_a_row_cannot_have_are_refused_before_anything_runs(name, given, message):
    paper, _, row = name.partition("/")
    tables = PAPERS[paper]
    with pytest.raises(ValueError, match=re.escape(message)):
        program.check(tables, choose(tables, row), Scale("small", changes=scales.parsed_changes(given)))


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


COUNTED = dataclasses.replace(FINAL_ERROR, settings=lambda settings, scale: dict(settings), run=counted, resumes=False)


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
    best = dataclasses.replace(table, statistic="best of all epochs")
    assert render.as_markdown("table1", best, lines).splitlines()[2].endswith("| once 6.97; best run 0.00 |")
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
    assert "Changed by --set" not in page
    assert "table2" not in page and "| a | - | 0.00 | 1 |" in page and "Scale: small. `python`" in page
    (result,) = (json.loads(file.read_text()) for file in (tmp_path / "work" / "jobs").iterdir())
    assert result["row"] == "table1/a" and result["result"]["test_error"] == 0.0
    with pytest.raises(ValueError, match="no such model"):
        program.run("fdg", choose(tables, "table1/b"), **given)
