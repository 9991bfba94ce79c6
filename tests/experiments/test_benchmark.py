"""The benchmark: its arithmetic with clocks that tell known times, and one small run that writes everything."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from experiments.measure import benchmark, compilations, entrants, operation_times, throughput
from experiments.measure.compilations import Compilations
from experiments.measure.operation_times import Round, as_times, dispatches_per_tick, host_times, joined_stages, predict
from experiments.measure.workload import Workload
from experiments.report import tables
from experiments.report.workdir import Workdir
from jaxdecouple import schedules
from jaxdecouple.planning import Times

TINY = Workload(model="mlp", image_size=4, batch_size=8, repeats=2, seconds=0.01)
PNG = b"\x89PNG\r\n\x1a\n"


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch, module):
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(module.time, "thread_time", lambda: self.now / 4)

    def taking(self, seconds, result=None):
        def work(*args):
            self.now += seconds
            return result

        return work


# ---- A whole run.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("benchmark") / "run"
    settings, lines = dataclasses.replace(TINY, methods=("fdg", "gpipe"), boundaries=(1,)), []
    places, choose = jax.devices()[:2], entrants.auto.choose
    with pytest.MonkeyPatch.context() as patch:  # stages are measured once, for no time
        patch.setattr(entrants.auto, "choose", lambda *args, **how: choose(*args, **how, repeats=1, seconds=0.0))
        results = benchmark.benchmark(settings, Workdir(workdir, {}), places, command="as typed", say=lines.append)
    return results, workdir, lines


def test_a_run_writes_everything(finished):
    results, workdir, _ = finished
    record = json.loads((workdir / "results.json").read_text())
    assert record["command"] == "as typed" and record["machine"]["platform"] == "cpu"
    assert record["versions"]["jax"] == jax.__version__ and record["settings"]["model"] == "mlp"
    assert list(record["results"]) == [result.label for result in results]
    fdg = record["results"]["fdg"]
    assert fdg["staleness"] == [[1], [0]] and fdg["layers_per_stage"] == [1, 3] and fdg["weights"] == "stash"
    assert len(fdg["images_per_second"]) == len(fdg["rounds"]) == 2 and len(fdg["rounds"][0]["batch"]) == 2
    table = (workdir / "table.md").read_text().splitlines()
    assert len(table) == 2 + len(results) and {line.count("|") for line in table} == {12}
    for picture in ("benchmark.png", "gantt-fdg.png", "gantt-gpipe-m-4.png", "gantt-one-stage.png"):
        assert (workdir / picture).read_bytes().startswith(PNG)


def test_every_column_of_a_method_is_filled(finished):
    results = {result.label: result for result in finished[0]}
    confined = [entrants.ONE_JIT] if throughput.can_confine() else []
    assert list(results) == [entrants.ONE_WORKER, *confined, entrants.ONE_STAGE, "gpipe M=4", "fdg"]
    assert results[entrants.ONE_WORKER].ratio == 1.0 and results[entrants.ONE_WORKER].predicted_ratio is None
    for label in (entrants.ONE_STAGE, "gpipe M=4", "fdg"):
        assert results[label].predicted_ratio > 0 and results[label].host_ms > 0
        assert "-" not in results[label].cells()
    assert len(results["fdg"].peak_bytes) == 2 and len(results[entrants.ONE_STAGE].peak_bytes) == 1
    assert results["gpipe M=4"].batch_size == 2 and results["gpipe M=4"].accumulate == 4


def test_each_function_is_compiled_once_before_anything_is_measured(finished):
    results, workdir, lines = finished
    counts = {result.label: result.compilations for result in results}
    # fdg: the first forwards, backward joined with forward, train. gpipe: forward, and with and without an update the
    # backward and train.
    assert counts["fdg"] == 3 and counts["gpipe M=4"] == 5
    assert counts[entrants.ONE_STAGE] == counts[entrants.ONE_WORKER] == 1
    assert json.loads((workdir / "results.json").read_text())["compilations_while_measuring"] == 0
    assert not any("warning" in line for line in lines)


def test_the_one_worker_trains_like_the_library():
    step, state = entrants.training_step(TINY.layers(), entrants.optimizer(), TINY.sample(), jax.devices()[0])
    stages = jd.partition(TINY.layers(), 1, sample=TINY.sample())
    pipeline = jd.Pipeline(stages, schedules.backprop(1), optimizer=entrants.optimizer())
    expected = pipeline.init(jax.random.key(0), TINY.sample())
    for batch in TINY.distinct(8):
        state, _ = step(state, batch)
        expected, _ = pipeline.step(expected, batch)
    assert jax.tree.structure(state[0]) == jax.tree.structure(expected.stages[0].params)
    for ours, theirs in zip(jax.tree.leaves(state[0]), jax.tree.leaves(expected.stages[0].params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- Bad settings.


def test_a_batch_need_not_be_split_where_no_method_does():
    dataclasses.replace(TINY, batch_size=6, methods=("fdg", "ddg"))


# ---- Rates.


def test_a_rate_counts_images_and_whole_units(monkeypatch):
    clock, fed = Clock(monkeypatch, throughput), []

    def step(state, batch):
        clock.now += 0.5
        fed.append(batch)
        return state, None

    loop = throughput.Loop(step, 0, iter(lambda: ("images", [0] * 10), None), fill=5, unit=4)
    assert len(fed) == 8  # five, in whole units
    assert loop.ticks_in(4.0) == 8 and loop.ticks_in(0.1) == 8 and loop.ticks_in(4.6) == 12
    assert loop.images_per_second(12) == 10 / 0.5


def test_measurements_take_turns():
    order = []
    measurements = {label: lambda label=label: order.append(label) or len(order) for label in "abc"}
    assert throughput.in_turn(measurements, 2) == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}
    assert throughput.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_host_times_are_those_of_step(monkeypatch):
    clock = Clock(monkeypatch, operation_times)
    step = clock.taking(0.5, (0, None))
    assert host_times(step, 0, range(2)) == ([(0.5, 0.125)] * 2, 0)


def test_time_spent_compiling_counts_once(monkeypatch):
    clock, heard = Clock(monkeypatch, compilations), Compilations()
    trace, lower, compiled = compilations._EVENTS[1], compilations._EVENTS[2], compilations.COMPILED
    for event, end, seconds in [(trace, 12.0, 1.0), (trace, 13.0, 3.0), (lower, 14.0, 1.0), (compiled, 20.0, 5.0)]:
        clock.now = end
        heard._hear(event, seconds)
    heard._hear("/jax/something_else", 7.0)
    assert heard.seconds == 3.0 + 1.0 + 5.0 and heard.count == 1


def test_compilations_are_heard_only_inside():
    with Compilations() as heard:
        double = jax.jit(lambda x: 2 * x)
        double(np.float32(1)), double(np.float32(2))
    assert heard.count == 1 and heard.seconds > 0
    jax.jit(lambda x: 3 * x)(np.float32(1))
    assert heard.count == 1


# ---- Times of operations.


def rounds(**changes):
    first = {"forward": [1.0], "batch": [4.0, 6.0], "up": [0.5], "down": [0.25], "together": [{0: 6.0, 1: 12.0}]}
    second = {"forward": [2.0], "batch": [5.0, 8.0], "up": [0.5], "down": [0.75], "together": [{0: 5.0, 1: 8.0}]}
    return [Round(**{**values, **changes}) for values in (first, second)]


def test_slowdown_is_the_mean_over_the_stages():
    assert [found.slowdown for found in rounds()] == [[1.0, (1.5 + 2.0) / 2], [1.0, 1.0]]


def test_times_are_medians_and_the_backward_what_is_left():
    times = as_times(rounds(), "stash", set(), host=0.1)
    assert times.forward == (1.5, 7.0) and times.backward == (4.5 - 1.5, 0.0)
    assert times.up == (0.5,) and times.down == (0.5,) and times.joined is None and times.host == 0.1
    assert times.slowdown == (1.0, 1.375)
    assert as_times(rounds(together=[]), "stash", set(), host=0.0).slowdown == ()


@pytest.mark.parametrize("weights", ["replay", "remat"])
def test_a_redone_forward_is_counted_once(weights):
    times = as_times(rounds(), weights, set(), host=0.0)
    assert times.backward[0] == 4.5 - 2 * 1.5
    assert times.work(0, weights) == 4.5 and times.work(1, weights) == 7.0


def test_joined_dispatches_keep_their_own_time():
    times = as_times(rounds(), "stash", {0}, host=0.0)
    assert (
        times.joined == (4.5,) and jd.timeline(schedules.fdg(2), dataclasses.replace(times, slowdown=())).busy[1] == 1
    )


def test_what_is_joined_and_dispatched_in_the_steady_state():
    assert joined_stages(schedules.fdg(3)) == {0, 1} and joined_stages(schedules.ddg(3)) == set()
    assert dispatches_per_tick(schedules.fdg(2)) == 2 and dispatches_per_tick(schedules.ddg(2)) == 3
    assert dispatches_per_tick(schedules.gpipe(2, 4)) == 3  # 8 forwards and 4 backwards in 4 ticks


def test_a_loop_is_timed_as_a_whole(monkeypatch):
    clock = Clock(monkeypatch, operation_times)
    loop = operation_times._Loop(None, None, None)
    assert loop.seconds(clock.taking(2.0), 5) == 2.0


def test_all_operations_of_a_pipeline_are_measured():
    pipeline = jd.Pipeline(
        dataclasses.replace(TINY, num_stages=3).cut(schedules.dsp((1, 1, 0), (4, 2, 0))),
        schedules.dsp((1, 1, 0), (4, 2, 0)),
        optimizer=jd.stagewise(optax.sgd(0.1), accumulate=2),
    )
    meter = operation_times.OperationMeter(pipeline, jax.random.key(0), TINY.distinct(8)[0], group=2)
    found = meter.round(0.0)
    assert [len(part) for part in (found.forward, found.batch, found.up, found.down)] == [2, 3, 2, 2]
    assert [set(busy) for busy in found.together] == [{0, 1}, {0, 1, 2}]
    assert min(found.forward + found.batch + found.up + found.down) > 0
    with Compilations() as heard:
        meter.round(0.0)
    assert heard.count == 0


def test_stages_that_share_a_device_are_predicted_to_take_turns():
    device = jax.devices()[0]
    pipeline = jd.Pipeline(
        TINY.cut(schedules.ddg(2)), schedules.ddg(2), optimizer=optax.sgd(0.1), devices=[device, device]
    )
    times = Times(forward=[1.0, 4.0], backward=[2.0, 0.0], up=[9.0], down=[9.0])
    assert predict(pipeline, times).seconds_per_batch == pytest.approx(7.0)


def test_the_line_against_another_row(finished):
    line = tables.against(finished[0], entrants.ONE_STAGE)
    assert line.startswith("against one stage: one worker ") and "gpipe M=4 " in line
