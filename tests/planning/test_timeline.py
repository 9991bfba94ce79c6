"""Timelines equal hand-worked cases, a naive simulator, the periods of precedence graphs, and the design's claims."""

import dataclasses
import math

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Times, plan, timeline
from jaxdecouple.schedules import BACKWARD, FORWARD, Op, ScheduleError
from tests.oracles import cycle_time


def uniform(K, transfer=0.0, **more):
    """T_f = 1 and T_b = 2, as in the design's claims."""
    return Times(forward=[1] * K, backward=[2] * K, up=[transfer] * (K - 1), down=[transfer] * (K - 1), **more)


def spans(run):
    """{"F0.1": (start, end)}: the forward of batch 1 at stage 0."""
    return {f"{r.kind.value}{r.stage}.{r.batch}": (r.start, r.end) for r in run}


def naive(schedule, times, num_batches, devices, run_ahead):
    """{op: (start, end)} as the least solution of what the rules demand: relaxed, all from 0, until nothing moves."""
    units, losses = [], []  # (tick, ops); the units that are losses, with their ticks
    for tick, ops in schedule.run(num_batches):
        units += [(tick, unit) for unit in (schedules.join(ops) if times.joined else [(op,) for op in ops])]
    losses = [(u, tick) for u, (tick, unit) in enumerate(units) if unit[0].stage == schedule.loss_stage]
    unit_of = {op: u for u, (_, unit) in enumerate(units) for op in unit}
    last, issued = schedule.loss_stage, [0.0] * len(units)
    start, end, arrival = [0.0] * len(units), [0.0] * len(units), dict.fromkeys(unit_of, 0.0)

    def duration(unit):
        op = unit[0]
        if len(unit) == 2:
            return times.joined[op.stage]
        local = schedule.learning in ("greedy", "synthetic")
        if local and op.kind is BACKWARD:
            return times.teach[op.stage]
        redo = local or op.stage == last or (op.kind is BACKWARD and schedule.weights == "replay")
        whole = times.forward[op.stage] + times.backward[op.stage]
        return whole if redo else (times.forward if op.kind is FORWARD else times.backward)[op.stage]

    def reached(op):
        """When what the operation needs of a neighbour is there."""
        up = op.kind is FORWARD
        if up and op.stage == 0:
            return 0.0
        made_forward = up or op.stage + 1 == last or schedule.learning == "synthetic"
        source = Op(FORWARD if made_forward else BACKWARD, op.stage + (-1 if up else 1), op.batch)
        edge, before = min(op.stage, source.stage), arrival.get(op._replace(batch=op.batch - 1), 0.0)
        near = devices[edge] == devices[edge + 1]
        return max(end[unit_of[source]], before) + (0 if near else (times.up if up else times.down)[edge])

    while True:
        old = list(start), list(end), list(issued), dict(arrival)
        for u, (tick, unit) in enumerate(units):
            behind = [v for v in range(u) if devices[units[v][1][0].stage] == devices[unit[0].stage]]
            ended = [v for v, at in losses if at < min(tick, num_batches - 1)]
            wait = [end[v] for v in ended[: len(ended) - run_ahead + 1]] if run_ahead else []
            issued[u] = max([issued[u - 1] if u else 0.0, *wait]) + times.host
            arrival.update({op: reached(op) for op in unit})
            start[u] = max([issued[u], *(arrival[op] for op in unit), *(end[v] for v in behind[-1:])])
            end[u] = start[u] + duration(unit)
        if old == (start, end, issued, arrival):
            return {op: (start[u], end[u]) for op, u in unit_of.items()}


def random_case(rng, most_stages=4):
    K = int(rng.integers(1, most_stages + 1))
    order = rng.choice(["forward_first", "backward_first"])
    p, q = rng.integers(0, 3, K - 1).tolist(), rng.integers(0, 3, K - 1).tolist()
    if K > 1:
        q[-1] += order == "backward_first"
    weights = rng.choice(["stash", "replay"])
    schedule = schedules.delays(p, q, order=str(order), weights=str(weights))
    if rng.random() < 0.2:
        schedule = schedules.gpipe(K, int(rng.integers(1, 4)))
    edges = {name: rng.random(K - 1) * rng.integers(0, 3) for name in ("up", "down")}
    joined = 2 * rng.random(K - 1) if rng.random() < 0.5 else None
    return schedule, dict(forward=rng.random(K), backward=2 * rng.random(K), joined=joined, **edges)


@pytest.mark.parametrize("seed", range(40))
def test_both_passes_equal_the_naive_simulator(seed):
    rng = np.random.default_rng(seed)
    schedule, parts = random_case(rng)
    if seed % 4 == 0 and not isinstance(schedule, schedules.FlushSchedule):
        parts |= {"teach": rng.random(schedule.num_stages - 1)}
        learning, q = ("greedy", [0] * len(schedule.q)) if seed % 8 == 0 else ("synthetic", schedule.q)
        schedule = schedules.delays(schedule.p, q, learning=learning)
    host, run_ahead = rng.choice([0.0, 0.3]), rng.choice([None, 1, 3])
    devices = np.unique(rng.integers(0, 4, schedule.num_stages), return_inverse=True)[1].tolist()
    devices = devices if rng.random() < 0.5 else list(range(schedule.num_stages))
    times = Times(**parts, host=host)
    expected = naive(schedule, times, 7, devices, run_ahead)
    for slowdown in ((), (1, 1)):
        times = Times(**parts, host=host, slowdown=slowdown)
        run = timeline(schedule, times, num_batches=7, devices=devices, run_ahead=run_ahead)
        assert len(run.start) == len(expected)
        found = {Op(r.kind, r.stage, r.batch): (r.start, r.end) for r in run}
        for op, times_of_op in expected.items():
            assert found[op] == pytest.approx(times_of_op, abs=1e-9), str(op)


@pytest.mark.parametrize("slowdown", [(), (1, 1)])
def test_pipedream_by_hand(slowdown):
    times = Times(forward=[1, 1], backward=[1, 1], up=[0.5], down=[0.25], slowdown=slowdown)
    run = timeline(schedules.pipedream(2), times, num_batches=2)
    # Queues: stage 0: F0 F1 B0 B1; stage 1: F0 F1.
    stage0 = {"F0.0": (0, 1), "F0.1": (1, 2), "B0.0": (3.75, 4.75), "B0.1": (5.75, 6.75)}
    assert spans(run) == stage0 | {"F1.0": (1.5, 3.5), "F1.1": (3.5, 5.5)}
    assert run.makespan == 6.75
    assert run.kind.tolist() == ["F", "F", "F", "B", "F", "B"] and run.tick.tolist() == [0, 1, 1, 1, 2, 2]
    assert run.bubble == pytest.approx(1 - 4 / 6.75)
    # Of the input of F0.0, F1.0, F0.1, B0.0, F1.1, B0.1, in the order of dispatch.
    assert run.arrival[run.stage == 1].tolist() == [1.5, 2.5] and run.arrival[run.kind == "B"].tolist() == [3.75, 5.75]
    assert run.arrival[(run.stage == 0) & (run.kind == "F")].tolist() == [0, 1]  # as they start


@pytest.mark.parametrize("slowdown", [(), (1, 1)])
def test_synthetic_gradients_by_hand(slowdown):
    links = {"up": [0.5] * 2, "down": [0.25] * 2}
    times = Times(forward=[1, 1, 1], backward=[1, 1, 1], teach=[0.5, 1], slowdown=slowdown, **links)
    run = timeline(schedules.dni(3), times, num_batches=2)
    # Queues: stage 0: F0 F1 B0 B1; stage 1: F0 F1 B0 B1; stage 2: F0 F1. A forward sends its results both ways.
    stage0 = {"F0.0": (0, 2), "F0.1": (2, 4), "B0.0": (4.75, 5.25), "B0.1": (6.75, 7.25)}
    stage1 = {"F1.0": (2.5, 4.5), "F1.1": (4.5, 6.5), "B1.0": (7.25, 8.25), "B1.1": (9.25, 10.25)}
    assert spans(run) == stage0 | stage1 | {"F2.0": (5, 7), "F2.1": (7, 9)}


def test_greedy_stages_reach_full_speed_with_any_transfer():
    times = Times(forward=[1, 1, 1], backward=[2, 2, 2], up=[2.9] * 2, down=[100] * 2)
    run = timeline(schedules.dgl(3), times)
    assert run.speedup == pytest.approx(3) and run.busy == pytest.approx((1, 1, 1))


def test_a_link_carries_one_transfer_at_a_time():
    run = timeline(schedules.gpipe(2, 3), Times(forward=[1, 0], backward=[0, 0.5], up=[4]), num_batches=3)
    assert run.arrival[run.stage == 1].tolist() == [5, 9, 13]  # sent at 1, 2, 3


@pytest.mark.parametrize("slowdown", [(), (1,)])
def test_joined_operations_are_one_dispatch(slowdown):
    times = Times(forward=[1, 1], backward=[2, 2], joined=[2.5], slowdown=slowdown)
    run = timeline(schedules.fdg(2), times, num_batches=4)
    # Stage 0: F0 F1 (B0 F2) (B1 F3) B2 B3, and stage 1 takes 3 from 1 on.
    found = spans(run)
    assert found["B0.0"] == found["F0.2"] == (4, 6.5) and found["B0.1"] == found["F0.3"] == (7, 9.5)
    assert found["F1.2"] == (7, 10) and found["B0.2"] == (10, 12) and found["B0.3"] == (13, 15)
    assert len(set(run.dispatch.tolist())) == len(run.start) - 2
    assert run.utilisation == (pytest.approx((1 + 1 + 2.5 + 2.5 + 2 + 2) / 15), pytest.approx(12 / 15))
    singly = timeline(schedules.fdg(2), Times(forward=[1, 1], backward=[2, 2]), num_batches=4)
    assert spans(singly)["B0.0"] == (4, 6) and spans(singly)["F0.2"] == (6, 7)


def test_busy_devices_slow_one_another_down_by_hand():
    times = Times(forward=[1, 1], backward=[1, 1], slowdown=[1, 2])
    run = timeline(schedules.pipedream(2), times, num_batches=2)
    # 0..1 F0.0 alone; 1..3 F0.1 beside half of F1.0; 3..4 its rest alone; 4..6 B0.0 beside half of F1.1.
    expected = {"F0.0": (0, 1), "F0.1": (1, 3), "F1.0": (1, 4), "B0.0": (4, 6), "F1.1": (4, 7), "B0.1": (7, 8)}
    assert {op: pytest.approx(span) for op, span in expected.items()} == spans(run)


def test_arrivals_in_a_slow_time_by_hand():
    times = Times(forward=[2, 1], backward=[1, 1], up=[1], slowdown=[1, 2])
    run = timeline(schedules.fdg(2, order="forward_first"), times, num_batches=3)
    # Stage 0: F0 F1 F2 B0 B1 B2. Transfers keep their speed. F0.1 has half of its work done when batch 0 is up, at 3;
    # batch 1 is up at 6, in the middle of a time, 3..13, in which both work at half speed.
    stage0 = {"F0.0": (0, 2), "F0.1": (2, 5), "F0.2": (5, 9), "B0.0": (9, 11), "B0.1": (11, 13), "B0.2": (14, 15)}
    expected = stage0 | {"F1.0": (3, 7), "F1.1": (7, 11), "F1.2": (11, 14)}
    assert {op: pytest.approx(span) for op, span in expected.items()} == spans(run)


def test_the_last_slowdown_serves_for_more_devices():
    times = dict(forward=[1] * 4, backward=[1] * 4)
    short, long = (timeline(schedules.fdg(4), Times(**times, slowdown=s)) for s in ([1, 2], [1, 2, 2, 2]))
    np.testing.assert_array_equal(short.end, long.end)
    # Two devices that are half as fast, when both are busy, gain nothing.
    halved = timeline(schedules.fdg(2), Times(forward=[1, 1], backward=[1, 1], slowdown=[1, 2]))
    assert halved.speedup == pytest.approx(1)


def test_the_host_issues_one_dispatch_after_another():
    run = timeline(schedules.backprop(1), Times(forward=[0.5], backward=[0.5], host=2), num_batches=3)
    assert run.start.tolist() == [2, 4, 6]
    assert timeline(schedules.fdg(3), uniform(3, host=2)).seconds_per_batch == pytest.approx(5 * 2)
    assert timeline(schedules.fdg(3), uniform(3, host=2, joined=[3, 3])).seconds_per_batch == pytest.approx(3 * 2)


def test_the_host_waits_for_losses():
    # run_ahead = 1: stage 0 forwards a batch when the loss of the one before is there. The flush waits for nothing.
    run = timeline(schedules.ddg(2), uniform(2), num_batches=3, run_ahead=1)
    forwards, losses = run.start[(run.stage == 0) & (run.kind == "F")], run.end[run.stage == 1]
    assert forwards[1:].tolist() == losses[:-1].tolist() == [4, 8]
    assert timeline(schedules.ddg(2), uniform(2), run_ahead=1).seconds_per_batch == 4
    assert timeline(schedules.ddg(2), uniform(2), run_ahead=2).seconds_per_batch == 3
    # Ticks count, not batches in flight: FDG's stage 0 is ahead of the loss by its p.
    assert timeline(schedules.fdg(8), uniform(8), run_ahead=1).speedup == pytest.approx(8)
    assert timeline(schedules.ddg(8), uniform(8), run_ahead=2).speedup == pytest.approx(24 / 5)


def test_stages_of_one_device():
    run = timeline(schedules.fdg(4), uniform(4, 100.0), devices=[0, 0, 0, 0])
    assert run.seconds_per_batch == run.times.serial == 12  # transfers within a device are free
    assert run.num_devices == 1 and run.busy == (pytest.approx(1),)
    two = timeline(schedules.fdg(4), uniform(4), devices=[0, 0, 1, 1])
    assert two.speedup == pytest.approx(2) and two.busy == (pytest.approx(1), pytest.approx(1))
    with pytest.raises(ValueError, match="number the devices"):
        timeline(schedules.fdg(2), uniform(2), devices=[0, 2])
    with pytest.raises(ValueError, match="has 1 entries"):
        timeline(schedules.fdg(2), uniform(2), devices=[0])


@pytest.mark.parametrize("seed", range(60))
def test_the_steady_state_is_the_precedence_graphs(seed):
    rng = np.random.default_rng(seed)
    schedule, parts = random_case(rng)
    if isinstance(schedule, schedules.FlushSchedule):
        schedule = schedules.fdg(schedule.num_stages)
    run = timeline(schedule, Times(**parts))
    (period,) = cycle_time.cycle_times([schedule], run.times)
    assert run.seconds_per_batch == pytest.approx(period, rel=1e-6)
    stages = range(schedule.num_stages)
    singly = [sum(run.times.duration(kind, k, schedule.weights) for kind in (FORWARD, BACKWARD)) for k in stages]
    if run.times.joined is None:
        singly[-1] = run.times.duration(FORWARD, stages[-1], schedule.weights)
        # Seed 41: a stage that is 0.2 % faster than the slowest lives on its stock for long.
        assert run.busy == pytest.approx([work / period for work in singly], abs=1e-6 if seed != 41 else 2e-3)
        assert run.idle == pytest.approx([(1 - busy) * period for busy in run.busy])


# What the design says of 4 and 8 stages: (schedule, speed-ups without transfers, and with transfers of 0.3 T_f).
CLAIMS = {
    "ddg": (schedules.ddg, {4: 3.5, 8: 6.8}),
    "pipedream": (schedules.pipedream, {4: 3.5, 8: 6.8}),
    "fdg": (schedules.fdg, {4: 3.6, 8: 7.3}),
    "fdg-forward-first": (lambda K: schedules.fdg(K, order="forward_first"), {4: 4, 8: 8}),
    "one-more-tick": (lambda K: schedules.delays([2] * (K - 1), [1] * (K - 1), order="backward_first"), {4: 4, 8: 8}),
}


@pytest.mark.parametrize("K", [4, 8])
@pytest.mark.parametrize("name", CLAIMS)
def test_there_is_no_barrier_between_ticks(name, K):
    build, speedups = CLAIMS[name]
    assert timeline(build(K), uniform(K)).speedup == pytest.approx(K, rel=1e-9)
    hidden = timeline(build(K), uniform(K, 0.3))
    assert hidden.speedup == pytest.approx(speedups[K], abs=0.05)
    # The batch's way up and down is shared by as many batches as may be on it.
    way = {"ddg": 3 + 0.6 * (K - 1) / K, "pipedream": 3 + 0.6 * (K - 1) / K, "fdg": 3 + 0.6 / 2}
    assert hidden.seconds_per_batch == pytest.approx(way.get(name, 3), rel=1e-9)


def test_uneven_losses_give_an_exact_speed():
    run = timeline(schedules.ddg(4), uniform(4, 0.3))
    gaps = np.diff(run.end[run.stage == 3][-40:-10])
    assert np.ptp(gaps) > 0.1  # they come in fours
    assert run.steady.batches % 4 == 0 and run.seconds_per_batch == pytest.approx(3.45, rel=1e-12)
    short = timeline(schedules.ddg(4), uniform(4, 0.3), num_batches=31)
    assert short.seconds_per_batch == pytest.approx(3.45, rel=1e-9)
    assert run.throughput * 3.45 == pytest.approx(1)


def test_the_last_stage_may_start_faster_than_it_goes_on():
    # Stage 0 sends 20 batches before it needs a gradient, then each of them costs it 10.
    run = timeline(schedules.delays([0], [20]), Times(forward=[1, 0.5], backward=[9, 0.5]))
    assert np.diff(run.end[run.stage == 1])[:10].max() == 1
    assert run.seconds_per_batch == pytest.approx(10)


@pytest.mark.parametrize("K, M", [(1, 3), (2, 1), (2, 4), (4, 8), (8, 4)])
def test_gpipes_bubble(K, M):
    schedule, times = schedules.gpipe(K, M, weights="stash"), uniform(K)
    bubble = (K - 1) / (M + K - 1)  # GPipe, section 2.3
    one = timeline(schedule, times, num_batches=M)
    assert one.makespan == 3 * (M + K - 1)
    assert one.bubble == pytest.approx(bubble)
    rounds = timeline(schedule, times)
    assert 1 - np.mean(rounds.busy) == pytest.approx(bubble)  # rounds do not overlap
    assert rounds.seconds_per_batch == pytest.approx(3 * (M + K - 1) / M)


def test_gpipes_replay_is_paid_for():
    # Stage 2 of 0..3 forwards until 10, does 8 backwards of 3 seconds, and two stages follow with the last of them.
    run = timeline(schedules.gpipe(4, 8), uniform(4), num_batches=8)
    assert run.makespan == 10 + 8 * 3 + 2 * 3
    assert run.bubble == pytest.approx(1 - (3 * 8 * 4 + 8 * 3) / (4 * 40))


def test_back_propagation_uses_one_device_at_a_time():
    run = timeline(schedules.backprop(4), uniform(4))
    assert run.speedup == pytest.approx(1) and run.busy == pytest.approx([0.25] * 4)


def test_a_table_is_measured_over_whole_periods():
    # Ticks of two batches: the second is forwarded after the first is done.
    even = [Op(FORWARD, 0, 0), Op(FORWARD, 1, 0)]
    odd = [Op(FORWARD, 0, 1), Op(BACKWARD, 0, 0), Op(FORWARD, 1, 1), Op(BACKWARD, 0, 1)]
    table = schedules.TableSchedule(name="mine", num_stages=2, table=(even, odd), period=2)
    run = timeline(table, Times(forward=[1, 1], backward=[2, 4]))
    # Stage 0: F0 0..1, F1 1..2, B0 6..8, B1 11..13; stage 1: 1..6, 6..11.
    assert run.steady.batches % 2 == 0 and run.seconds_per_batch == pytest.approx(6.5)


def test_schedules_and_runs_that_cannot_be():
    with pytest.raises(ValueError, match="times has 2 stages, but schedule 'fdg' has 3"):
        timeline(schedules.fdg(3), uniform(2))
    for computed in (timeline, lambda schedule, times: plan(times)):
        with pytest.raises(ValueError, match=r"times is 0.1; write jaxdecouple.Times\(forward="):
            computed(schedules.fdg(3), 0.1)
    with pytest.raises(ValueError, match="run_ahead is 0"):
        timeline(schedules.fdg(2), uniform(2), run_ahead=0)
    with pytest.raises(ValueError, match="num_batches is 0"):
        timeline(schedules.fdg(2), uniform(2), num_batches=0)
    table = [(Op(BACKWARD, 0, 0), Op(FORWARD, 0, 0), Op(FORWARD, 1, 0))]
    with pytest.raises(ScheduleError, match="tick 0: BACKWARD of batch 0 at stage 0"):
        timeline(schedules.TableSchedule(name="mine", num_stages=2, table=table), uniform(2))
    with pytest.raises(ValueError, match="too short to have a steady state"):
        timeline(schedules.gpipe(2, 8), uniform(2), num_batches=8).speedup  # noqa: B018


@dataclasses.dataclass(frozen=True, kw_only=True)
class Late(schedules.DelaySchedule):
    """Wrong in tick 500, where no check of a few periods looks."""

    places: tuple[int, ...]

    def ops(self, tick):
        ops = super().ops(tick)
        return tuple(ops[place] for place in self.places) if tick == 500 else ops


@pytest.mark.parametrize(
    "places, message",
    [
        ((2, 0, 1), "'late', tick 500: BACKWARD of batch 500 at stage 0: its input does not exist"),
        ((1, 0, 2), "'late', tick 500: FORWARD of batch 500 at stage 1: its input does not exist"),
        ((1, 2), "'late', tick 500: FORWARD of batch 500 at stage 1: its input does not exist"),
        ((0, 0, 1, 2), "'late', tick 500: FORWARD of batch 500 at stage 0: is listed twice"),
    ],
)
def test_what_validation_does_not_reach_is_found_by_the_simulation(places, message):
    schedule = Late(name="late", num_stages=2, p=(0,), q=(0,), places=places)
    with pytest.raises(ScheduleError, match=message):
        timeline(schedule, uniform(2), num_batches=600)


def test_staleness_is_the_schedules():
    assert timeline(schedules.fdg(3), uniform(3)).staleness(2) == schedules.staleness(schedules.fdg(3), 2)


def test_ten_thousand_ticks_are_soon_done():
    times = uniform(8, 0.3)
    run = timeline(schedules.fdg(8), times, num_batches=10_000)
    assert run.seconds_per_batch == pytest.approx(3.3, rel=1e-9)
    assert math.isclose(run.makespan, 3.3 * 10_000, rel_tol=0.01)


def test_devices_that_are_slow_in_some_ticks():
    """Against the recursion written out: an operation starts when its device is free and its input is there."""
    rng = np.random.default_rng(0)
    for schedule in (schedules.dsp((1, 1, 0), (4, 2, 0)), schedules.features_replay(3), schedules.backprop(3)):
        slowness = 1 + rng.random((40 + schedule.drain + 1, 3)) * (rng.random((40 + schedule.drain + 1, 3)) < 0.3)
        free, done = [0.0] * 3, {}
        redone = schedule.weights == "replay"
        for tick, ops in schedule.run(40):
            for op in ops:
                forward = op.kind is schedules.FORWARD
                below, above = (schedules.FORWARD, op.stage - 1), (schedules.BACKWARD, op.stage + 1)
                source = below if forward else (schedules.FORWARD, 2) if op.stage == 1 else above
                seconds = 3 if op.stage == 2 else 1 if forward else 2 + redone
                start = max(free[op.stage], done.get((*source, op.batch), 0.0))
                free[op.stage] = start + seconds * slowness[tick, op.stage]
                done[op.kind, op.stage, op.batch] = free[op.stage]
        times = Times(forward=[1, 1, 1], backward=[2, 2, 2])
        run = timeline(schedule, times, num_batches=40, slowness=slowness)
        assert {(r.kind, r.stage, r.batch): r.end for r in run} == pytest.approx(done)
        assert run.makespan > 1.05 * timeline(schedule, times, num_batches=40).makespan
    with pytest.raises(ValueError, match=r"slowness has shape \(40, 3\); write \[ticks, 3\] for at least"):
        timeline(schedules.fdg(3), times, num_batches=40, slowness=np.ones((40, 3)))
    with pytest.raises(ValueError, match="finite numbers above 0; write 1"):
        timeline(schedules.fdg(3), times, num_batches=1, slowness=np.zeros((40, 3)))
