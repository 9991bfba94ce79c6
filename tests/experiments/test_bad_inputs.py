"""Bad inputs: each ends with one line that says what was given and what to write, and leaves no file.

The table is that of `tests.experiments.bad_inputs`, which runs all of it; these rows settings alone decide.
"""

import importlib
import importlib.util

import pytest

from tests.experiments.bad_inputs import Row, rows


@pytest.mark.parametrize("row", rows("settings"), ids=lambda row: f"{row.program} {row.flags}")
def test_is_refused_in_one_line(row, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    name = f"experiments.{row.program}"
    if hasattr(importlib.import_module(name), "__path__"):
        name += ".__main__"
    done = call(importlib.import_module(name), *row.arguments(tmp_path))
    left = [entry.name for entry in tmp_path.iterdir()]
    assert not row.fault(done.status, done.stderr, left)


def test_the_table_is_of_programs_that_there_are():
    table = rows()
    assert len(table) >= 300 and len(set(table)) == len(table)
    assert all(importlib.util.find_spec(f"experiments.{program}") for program in {row.program for row in table})
    assert all(row.says for row in table)


@pytest.mark.parametrize(
    ("says", "status", "written", "left", "fault"),
    [
        ("epochs", 1, "error: epochs is 0", [], ""),
        ("epochs", 1, "epoch 1\nerror: epochs is 0", [], ""),
        ("epochs", 1, "error: batch_size is 0", [], "says something else: error: batch_size is 0"),
        ("epochs", 0, "error: epochs is 0", [], "ends with status 0"),
        ("epochs", 1, "epochs is 0", [], "the last line is no error: epochs is 0"),
        ("epochs", 1, "error: epochs is 0\nerror: or so", [], "the last line is no error: error: or so"),
        ("epochs", 1, "Traceback (most recent call last):\nValueError: epochs", [], "a traceback: ValueError: epochs"),
        ("epochs", 1, "error: epochs is 0", ["run"], "leaves run"),
        ("works: epoch", 0, "epoch 1", ["run"], ""),
        ("works: epoch", 1, "epoch 1", [], "ends with status 1"),
    ],
)
def test_what_is_wrong_with_an_end(says, status, written, left, fault):
    assert Row("train", "", says).fault(status, written, left) == fault
