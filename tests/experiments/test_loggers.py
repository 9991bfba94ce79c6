"""Loggers get the numbers of metrics.jsonl, those from before a stop too. One that fails costs a warning, no run."""

import csv
import gc
import json
import pathlib
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.report.workdir import Files
from experiments.training import session
from experiments.training.config import Config, Saving
from experiments.training.loggers import Loggers
from experiments.training.progress import EpochRecord
from jaxdecouple import schedules
from jaxdecouple.reports import RunFiles

CONFIG = Config(model="mlp", num_stages=2, boundaries=(2,), epochs=2, batch_size=400, learning_rate=0.05)
RECORDS = [EpochRecord(n, 8 * n, 1 / n, 2 / n, 0.5, 0.1, 99.0) for n in (1, 2, 3)]
RESULTS = ("train_loss", "test_loss", "test_error")


class Ours:
    """A logger of one's own, which fails from the ``fails``-th call on."""

    def __init__(self, fails=99):
        self.seen, self.closed, self.fails = [], False, fails

    def log(self, numbers):
        if len(self.seen) == self.fails:
            raise OSError("no space left")
        self.seen.append(dict(numbers))

    def close(self):
        self.closed = True


def logged(chosen, path, records=RECORDS):
    said = []
    with Loggers(chosen, Files(path), CONFIG, said.append) as logs:
        for record in records:
            logs.log(record)
    return said


def events(folder):
    """(step, name, value) of the one file of events in a folder, read as TFRecords are laid out."""
    (path,) = folder.iterdir()
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        event = Event.FromString(data[at + 12 : at + 12 + length])
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
        at += length + 16


def rows(path):
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_run_that_goes_on_is_logged_whole(tmp_path, monkeypatch):
    """Killed in its second epoch: the files have one line for each epoch, as metrics.jsonl has."""

    def killed(record, config):
        raise KeyboardInterrupt

    for name in ("curves", "schedules"):
        monkeypatch.setattr(session.plots, name, lambda *args: None)
    with monkeypatch.context() as first:
        first.setattr(session, "_line", killed)
        with pytest.raises(KeyboardInterrupt):
            session.train(CONFIG, tmp_path / "run", loggers=("csv", "tensorboard"), saving=Saving(save_every=1))
    ours = Ours()
    session.train(CONFIG, tmp_path / "run", loggers=("csv", "tensorboard", ours), saving=Saving(save_every=1))
    expected = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in expected] == [1, 2]
    for found in (rows(tmp_path / "run" / "metrics.csv"), ours.seen):
        assert [{name: row[name] for name in record} for row, record in zip(found, expected, strict=True)] == expected
    found = {(step, name): value for step, name, value in events(tmp_path / "run" / "tensorboard")}
    for record in expected:
        for name in RESULTS:
            assert found[record["ticks"], name] == pytest.approx(record[name], rel=1e-6)
    files = RunFiles.read(tmp_path / "run")  # what a report is made of
    assert files.finished and files.remarks == [] and files.schedule == schedules.fdg(2)
    assert files.setup["staleness"] == [[1], [0]] and len(files.speed) == 2
    assert ours.closed and {"metrics.csv", "tensorboard"} <= set((tmp_path / "run" / "files.txt").read_text().split())


def test_one_that_fails_gives_one_warning_and_the_others_go_on(tmp_path):
    failing, whole = Ours(fails=1), Ours()
    said = logged([failing, "csv"], tmp_path)
    assert said == ["nothing more is logged to Ours (OSError: no space left); training goes on"]
    assert len(failing.seen) == 1 and failing.closed and len(rows(tmp_path / "metrics.csv")) == 3
    assert logged([whole], tmp_path) == [] and whole.closed


def test_what_cannot_be_written_gives_one_warning(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    (said,) = logged(["csv", "tensorboard"], tmp_path)
    assert said.startswith("nothing more is logged to csv (IsADirectoryError")
    assert len(list(events(tmp_path / "tensorboard"))) == 3 * len(RECORDS[0].results() | RECORDS[0].times())


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no full disk to write to")
@pytest.mark.filterwarnings("error")  # as of a file that could not be closed
def test_a_full_disk_and_what_is_not_installed_cost_a_warning_each(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    said = logged(["csv", "tensorboard", "wandb"], tmp_path)
    gc.collect()
    assert [line.split(" (")[0] for line in said] == [f"nothing more is logged to {name}" for name in ("wandb", "csv")]
    assert len(list(events(tmp_path / "tensorboard"))) == 3 * len(RECORDS[0].results() | RECORDS[0].times())


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ModuleNotFoundError
    (said,) = logged(["wandb"], tmp_path)
    assert "pip install wandb" in said and said.endswith("training goes on")


def test_numbers_that_are_none_are_left_out(tmp_path):
    ours = Ours()
    logged([ours, "csv"], tmp_path, [EpochRecord(1, 8, float("nan"), 2.0, 0.5, 0.1, 99.0)])
    assert "train_loss" not in ours.seen[0] and ours.seen[0]["test_loss"] == 2.0
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("1,8,,2.0,")


def test_what_else_is_measured_is_logged_too(tmp_path):
    record = EpochRecord(1, 8, 3.0, 2.0, 0.5, 0.1, 99.0, {"perplexity": 7.4})
    assert logged(["csv"], tmp_path, [record]) == []
    assert rows(tmp_path / "metrics.csv")[0]["perplexity"] == 7.4


def test_a_run_of_weights_and_biases_goes_on(tmp_path, monkeypatch):
    """As its documentation has it: one id, and no step that was logged before."""
    runs = {}

    class Run:
        def __init__(self):
            self.step, self.logged, self.ends = 0, {}, 0

        def log(self, numbers, step):
            assert step > self.step
            self.logged[step], self.step = numbers, step

        def finish(self):
            self.ends += 1

    def init(*, id, resume, **settings):
        assert resume == "allow" and settings["config"]["model"] == "mlp"
        return runs.setdefault(id, Run())

    fake = types.SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert logged(["wandb"], tmp_path, RECORDS[:2]) == [] and logged(["wandb"], tmp_path) == []
    (run,) = runs.values()
    assert list(run.logged) == [8, 16, 24] and run.ends == 2
    assert run.logged[24]["train_loss"] == RECORDS[2].train_loss
