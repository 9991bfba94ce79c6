"""The programs of experiments.asynchronous run, write what they say, and refuse what cannot be run."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from experiments import settings
from experiments.asynchronous import __main__ as program
from experiments.asynchronous import (
    figure1,
    figure2,
    figure3,
    figure4,
    figure6,
    figure7,
    figure8,
    networks,
    solving,
    speedups,
)
from experiments.asynchronous.curves import Curve
from experiments.asynchronous.solving import Solving
from experiments.training.progress import NonFiniteLoss

PNG = b"\x89PNG\r\n\x1a\n"
TINY = Solving(num_examples=60, outer_steps=3, workers=2)


def _json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("method", "problem", "more"),
    [
        ("dis_dfsdca", "ridge", {"local_steps": 5, "sampling": "importance", "delays": "drawn:2"}),
        ("cocoa_plus", "smoothed_hinge", {"local_steps": 5, "straggler_probability": 0.5}),
        ("sdca", "logistic", {"labels": "3", "num_examples": 0}),
        ("sgd_svrg", "network", {"l2": 1e-3, "sgd_epochs": 2, "step_size": 0.05, "hidden": 4}),
        ("shared_asysvrg", "quadratic", {"step_size": 0.01, "coordinates": 20, "delays": "1"}),
        ("distributed_svrg", "pca", {"l2": 0.01}),
    ],
)
def test_methods_on_problems(tmp_path, capsys, method, problem, more):
    setting = dataclasses.replace(TINY, method=method, problem=problem, **more)
    summary = program.run(setting, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["outer"] for record in records] == [0, 1, 2, 3]
    assert all(a["epochs"] < b["epochs"] for a, b in zip(records, records[1:], strict=False))
    assert records[-1]["objective"] < records[0]["objective"]
    assert summary["objective"] == records[-1]["objective"] and summary["d"] >= 64
    assert ("gap" in summary) == (problem in ("ridge", "smoothed_hinge", "logistic") and "svrg" not in method)
    assert ("seconds" in summary) == ("delays" not in more)
    assert ("test_error" in summary) == (problem in ("smoothed_hinge", "logistic", "network"))
    assert _json(tmp_path / "run" / "config.json")["method"] == method
    assert _json(tmp_path / "run" / "summary.json") == summary
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(PNG)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("outer")]
    assert len(shown) == 4 and shown[-1].startswith("outer   3/3")


def test_the_workdir_names_no_folders(tmp_path):
    (tmp_path / "a").write_text("1 1:1\n0 2:1\n1 1:2\n0 2:2\n")
    setting = Solving(data=f"libsvm:{tmp_path}/a", local_steps=1, workers=2, outer_steps=1, labels="signs")
    program.run(setting, tmp_path / "run")
    assert _json(tmp_path / "run" / "config.json")["data"] == "libsvm:a"
    assert str(tmp_path) not in (tmp_path / "run" / "summary.json").read_text()


def test_a_run_that_diverges_ends(tmp_path):
    setting = dataclasses.replace(TINY, method="sgd", step_size=1e200)
    with pytest.raises(NonFiniteLoss, match="in outer iteration 1; write a smaller --step_size"):
        program.run(setting, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "sdcaa"}, "unknown method 'sdcaa'; did you mean 'sdca'"),
        ({"problem": "lasso"}, "unknown problem 'lasso'"),
        ({"engine": "mpi"}, "unknown engine 'mpi'"),
        ({"delays": "three"}, "delays is 'three'; write a number such as 3, drawn:3"),
        ({"labels": "odd"}, "labels is 'odd'; write auto, signs, or a class"),
        ({"labels": "11", "problem": "logistic"}, "no label is 11; write one of 0, 1"),
        ({"straggler_slowdown": (1.0,)}, "straggler_slowdown is '1'; write two numbers"),
        ({"method": "sgd"}, "step_size is 0, and sgd has no step size of its own"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"l2": -1.0}, "l2 is -1.0; write a number of at least 0"),
        ({"step_size": math.nan}, "step_size is nan; write a number"),
        ({"data": "made:50x4:0.5", "problem": "pca"}, "made:50x4:0.5 is sparse, and pca needs dense data"),
        (
            {"method": "svrg", "sampling": "adaptive"},
            "method svrg has no such setting; write --method=dfsdca or dis_dfs",
        ),
        ({"mu": 3.0}, "mu is 3.0, but problem ridge has no such setting; write --problem=pca, or leave it out"),
        ({"straggler_workers": (1,)}, "straggler_probability is 0"),
        ({"l2": 0.0}, "l2 is 0, and dis_dfsdca needs it above 0"),
    ],
)
def test_what_cannot_be_run(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        setting = dataclasses.replace(TINY, **({"num_examples": 0} if "data" in given else {}), **given)
        program.run(setting, tmp_path / "run")


def test_every_method_of_the_library_can_be_run():
    from jaxdecouple import asynchronous

    assert all(callable(getattr(asynchronous, name)) for name in (*solving.METHODS, *solving.PROBLEMS))


def test_a_wrong_flag_is_one_line():
    command = [sys.executable, "-m", "experiments.asynchronous", "--delays=x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith("error: delays is 'x'") and done.stderr.count("\n") == 1


@pytest.fixture
def parsed(monkeypatch):
    """Reads a setting from arguments, with flags of its own."""

    def parse(kind, *arguments):
        values = flags.FlagValues()
        monkeypatch.setattr(settings, "flags", _Defining(values))
        settings.define(kind, scaled=True)
        values(["program", *arguments])
        return settings.read(kind, scaled=True)

    return parse


class _Defining:
    """absl.flags, whose definitions go into other values."""

    def __init__(self, values):
        self.FLAGS = values

    def __getattr__(self, name):
        return lambda *arguments: getattr(flags, name)(*arguments, flag_values=self.FLAGS)


def test_scales(parsed):
    assert parsed(figure6.Figure6) == figure6.Figure6()
    thesis = parsed(figure6.Figure6, "--scale=thesis", "--outer_steps=7")
    assert thesis.local_steps == (100, 1000) and thesis.outer_steps == 7 and thesis.message_seconds == 1e-4
    assert thesis.pairs() == [
        ("made:49990x22:0.41", 4),
        ("made:581012x54:0.22", 8),
        ("made:677399x47236:0.0016", 16),
    ]
    first = parsed(figure1.Figure1, "--scale=thesis")
    assert (first.hidden, first.num_examples, first.num_tests, first.inner_steps) == (100, 10_000, 2_000, 1_000)
    assert (first.l2, first.batch_size, first.coordinates, first.sgd_epochs) == (1e-3, 10, 1000, 10)
    third = parsed(figure3.Figure3, "--scale=thesis")
    assert (third.hidden, third.l2, third.inner_steps, third.sgd_epochs) == (50, 1e-4, 2_000, 1)
    assert parsed(figure2.Figure2, "--scale=thesis").workers == (1, 2, 4, 8, 16, 32)
    assert parsed(figure4.Figure4, "--scale=thesis").workers == tuple(range(1, 11))
    eighth = parsed(figure8.Figure8, "--scale=thesis")
    assert (eighth.n, eighth.d, eighth.mu, eighth.l2, eighth.workers) == (500_000, 500, 100.0, 1e-4, (4, 8))
    with pytest.raises(ValueError, match="unknown scale 'large'; write one of: small, thesis"):
        parsed(figure6.Figure6, "--scale=large")
    with pytest.raises(
        ValueError, match="workers is '2,a'; write integers of at least 1 with commas between, such as 4,8,16"
    ):
        parsed(figure6.Figure6, "--workers=2,a")
    with pytest.raises(ValueError, match="l2 is nan"):
        parsed(figure6.Figure6, "--l2=nan")


def test_when_a_curve_reaches_a_target():
    curve = Curve({"workers": 1}, [{"gap": gap, "seconds": at} for at, gap in enumerate((1.0, None, 1e-2, 1e-4))])
    assert curve.reaches(1.0, "gap", "seconds") == 0
    assert curve.reaches(1e-3, "gap", "seconds") == pytest.approx(2.5)
    assert curve.reaches(0.1, "gap", "seconds") == 2  # nothing to interpolate from
    assert curve.reaches(1e-5, "gap", "seconds") == math.inf
    twice = Curve({"workers": 2}, [{"gap": row["gap"], "seconds": row["seconds"] / 2} for row in curve.rows])
    assert speedups.speedups([curve, twice], 1e-3, "gap") == {1: 1.0, 2: pytest.approx(2.0)}
    assert math.isnan(speedups.speedups([curve, twice], 1e-9, "gap")[2])


def _check(path, name, text, num_curves):
    assert (path / f"{name}.png").read_bytes().startswith(PNG)
    assert (path / "table.md").read_text() == text.rstrip() + "\n"
    assert text.startswith("**The thesis:** ") and "\n\n**Found:** " in text
    results = _json(path / "results.json")
    assert len(results["curves"]) == num_curves and results["machine"]["jax"]
    assert results["setting"] == _json(path / "config.json")
    return results


def test_figure6(tmp_path):
    setting = figure6.Figure6(
        data=("made:100x6:0.5",), workers=(2,), local_steps=(5,), step_sizes=(0.0, 1e9), outer_steps=4, target=1e-2
    )
    results = _check(tmp_path / "run", "figure6", setting.run(tmp_path / "run"), 2)
    assert [curve["about"]["method"] for curve in results["curves"]] == ["dis_dfsdca", "cocoa_plus"]
    assert all(curve["rows"][-1]["gap"] < curve["rows"][0]["gap"] for curve in results["curves"])
    with pytest.raises(ValueError, match="workers has 2 numbers, and there are 3 data sets"):
        figure6.Figure6(workers=(1, 2)).run(tmp_path / "other")
    with pytest.raises(ValueError, match="holds another run"):
        setting.run(tmp_path / "run")


def test_figure7(tmp_path):
    setting = figure7.Figure7(data=("made:100x6:0.5",), workers=(1, 2), local_steps=5, outer_steps=4, target=1e-1)
    results = _check(tmp_path / "run", "figure7", setting.run(tmp_path / "run"), 4)
    assert [curve["about"]["workers"] for curve in results["curves"]] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="workers is 2,4; write 1 too"):
        figure7.Figure7(workers=(2, 4)).run(tmp_path / "other")


def test_figure8(tmp_path):
    setting = figure8.Figure8(
        n=200,
        d=5,
        l2=0.1,
        workers=(2,),
        local_steps=5,
        batch_size=5,
        dual_steps=(1.0,),
        svrg_steps=(3.0,),
        passes=(0.5,),
        epochs=6,
    )
    text = setting.run(tmp_path / "run")
    results = _check(tmp_path / "run", "figure8", text, 4)
    kinds = [curve["about"]["variant"].split(", ")[1] for curve in results["curves"]]
    assert kinds == ["all parts convex"] * 2 + ["parts not convex"] * 2
    assert all(abs(curve["rows"][-1]["relative"]) < 0.1 for curve in results["curves"])


def test_figure1(tmp_path):
    setting = figure1.Figure1(
        num_examples=200,
        num_tests=50,
        hidden=6,
        coordinates=200,
        epochs=6,
        sgd_epochs=2,
        sgd_step_sizes=(0.1, 1e30),
        sgd_decays=(0.0,),
        svrg_step_sizes=(0.2,),
    )
    results = _check(tmp_path / "run", "figure1", setting.run(tmp_path / "run"), 3)
    sgd, svrg, both = results["curves"]
    assert sgd["about"].items() >= {"method": "SGD", "step_size": 0.1, "decay": 0.0, "d": 460, "n": 200}.items()
    assert [row["epochs"] for row in sgd["rows"]] == list(range(7))
    assert [row["epochs"] for row in svrg["rows"]] == [0, 3, 6]
    assert both["rows"][:3] == sgd["rows"][:3] and [row["outer"] for row in both["rows"]] == [0, 1, 2, 3, 4]
    assert {*svrg["rows"][-1]} == {"outer", "epochs", "loss", "train_error", "test_error"}
    with pytest.raises(ValueError, match="has no test part"):
        figure1.Figure1(data="made:50x4").run(tmp_path / "other")
    with pytest.raises(ValueError, match="all step sizes of SGD diverge"):
        dataclasses.replace(setting, sgd_step_sizes=(1e30,)).run(tmp_path / "diverging")


def test_where_curves_cross():
    curves = [
        Curve({}, [{"outer": at, "loss": loss} for at, loss in enumerate(losses)])
        for losses in ((3.0, 2.0, 1.0, 0.5), (3.0, 1.5, 1.2))
    ]
    assert networks._crossing(*curves, "outer") == 2
    assert networks._crossing(*curves[::-1], "outer") == math.inf


def test_figure3_and_its_features(tmp_path):
    setting = figure3.Figure3(
        num_examples=60,
        num_tests=20,
        cnn_examples=64,
        cnn_epochs=1,
        filters=2,
        hidden=4,
        epochs=3,
        sgd_step_sizes=(0.01,),
        sgd_decays=(0.0,),
        svrg_step_sizes=(0.01,),
    )
    results = _check(tmp_path / "run", "figure3", setting.run(tmp_path / "run"), 3)
    assert 0 <= results["error of the network of the features"] <= 1
    with np.load(tmp_path / "run" / "features.npz") as file:
        assert file["x_train"].shape == (60, 384) and file["x_test"].shape == (20, 384)
        assert file["x_train"].min() >= 0 and file["y_train"].shape == (60,)
    wrong = dataclasses.replace(setting, features=f"npz:{tmp_path}/run/features.npz", num_tests=21)
    with pytest.raises(ValueError, match="num_tests is 21, and npz:features.npz has 20 examples"):
        wrong.run(tmp_path / "again")


@pytest.mark.parametrize("figure", [figure2.Figure2, figure4.Figure4])
def test_speedups_of_svrg(tmp_path, figure):
    fewer = {"coordinates": 100} if figure is figure2.Figure2 else {}
    setting = figure(num_examples=100, hidden=4, inner_steps=20, workers=(1, 4), outer_steps=2, **fewer)
    text = setting.run(tmp_path / "run")
    results = _check(tmp_path / "run", figure.name, text, 2)
    assert results["target"] > 0 and "the speed-up is" in text
    ends = [curve["rows"][-1]["seconds"] for curve in results["curves"]]
    assert ends[1] < ends[0]
    with pytest.raises(ValueError, match="is sparse, and a network needs dense data"):
        figure(data="made:50x4:0.5").run(tmp_path / "other")
