"""Where workers begin to gain: the lines of the table, and what is said of them."""

import functools
import json
import os
import types

import pytest

from experiments.asynchronous import border
from experiments.asynchronous.border import Line
from experiments.measure import throughput


def test_a_border_is_the_least_message_at_which_workers_gain():
    lines = [
        Line(10, [1e-4, 1e-4, 1e-4], [1e-3, 5e-4, 2e-3]),
        Line(500, [4e-3, 6e-3, 5e-3], [4e-3, 4e-3, 4e-3]),  # 1, 1.5, 1.25
        Line(2000, [2e-2, 2e-2, 2e-2], [1e-2, 1e-2, 1e-2]),
    ]
    assert lines[1].message == 5e-3 and lines[1].ratios == pytest.approx([1, 1.5, 1.25])
    assert lines[1].cells() == ["500", "5", "4", "1.25", "1.00..1.50"]
    assert "from messages on that take 5 ms" in border.said(lines, 2)
    assert "slower than the loop, whatever" in border.said(lines[:1], 2)


def test_loop_and_workers_take_turns(tmp_path, monkeypatch, call):
    turns, cores = [], {}

    def taken(name, seconds, *asked):
        turns.append((name, *asked[1:]))
        cores[name] = os.sched_getaffinity(0) if throughput.can_confine() else {}
        return seconds

    for name, seconds in (("alone", 3.0), ("together", 2.0)):
        monkeypatch.setattr(border, name, functools.partial(taken, name, seconds))
    workdir = tmp_path / "run"
    given = ["--batch_sizes=2,5", "--num_examples=20", "--workers=3", "--rounds=2", f"--workdir={workdir}"]
    done = call(border, *given)
    assert done.status == 0, done
    of_two, of_five = [("alone", 2, 100), ("together", 2, 100, 3)], [("alone", 5, 40), ("together", 5, 40, 3)]
    assert turns == [*of_two, *of_two, *of_five, *of_five]
    if throughput.can_confine():
        assert len(cores["alone"]) == 1 and cores["together"] == os.sched_getaffinity(0)
    assert json.loads((workdir / "results.json").read_text())["lines"][1]["workers"] == [2.0, 2.0]
    assert "| 5 | 3e+03 | 2e+03 | 1.50 | 1.50..1.50 |" in (workdir / "table.md").read_text()
    assert (workdir / "border.png").stat().st_size > 1000


def test_the_loop_is_timed_without_its_first_outer_iteration(monkeypatch):
    def solve(problem, *, outer_steps, on_record, **options):
        assert options == {"workers": 1, "batch_size": 5, "step_size": border.STEP_SIZE, "inner_steps": 4}
        for record in range(outer_steps + 1):
            on_record(record, None)

    times = iter([0.0, 100.0, 104.0, 108.0])
    monkeypatch.setattr(border, "asynchronous", types.SimpleNamespace(distributed_asysvrg=solve))
    monkeypatch.setattr(border, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    assert border.alone(None, 5, 4) == 1.0
