"""In lock-step a tick takes what the papers' formulas say."""

import dataclasses

import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.schedules import Kind

T_F, T_B = 0.7, 1.9  # of the whole network
T_AUX = 0.3

# FDG, Table II, and the thesis's Table 3: name -> (schedule, seconds of an iteration with K equal modules)
FORMULAS = {
    "BP": (schedules.backprop, lambda K: T_F + T_B),
    "DDG": (schedules.ddg, lambda K: T_F + T_B / K),
    "FR": (schedules.features_replay, lambda K: T_F + (T_F + T_B) / K),
    "FDG": (schedules.fdg, lambda K: (T_F + T_B) / K),
    "FDG, forward first": (lambda K: schedules.fdg(K, order="forward_first"), lambda K: (T_F + T_B) / K),
    "ADL": (schedules.adl, lambda K: (T_F + T_B) / K),
    "DGL": (schedules.dgl, lambda K: (T_F + T_B) / K + T_AUX),
    "DNI": (schedules.dni, lambda K: (T_F + T_B) / K + T_AUX),
}


def equal(K, **settings):
    return jd.Times(forward=[T_F / K] * K, backward=[T_B / K] * K, **settings)


def with_auxiliary(name, K):
    """The auxiliary network's time: DGL's is part of a stage's learning; DNI's is used there, and taught later."""
    times, inner = equal(K), [1.0] * (K - 1) + [0.0]
    share = {"DGL": T_AUX, "DNI": 0.4 * T_AUX}.get(name, 0.0)
    backward = [b + share * has for b, has in zip(times.backward, inner, strict=True)]
    teach = [T_AUX - share if name == "DNI" else 0.0] * (K - 1)
    return dataclasses.replace(times, backward=backward, teach=teach)


@pytest.mark.parametrize("K", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_closed_formulas(name, K):
    schedule, formula = FORMULAS[name]
    run = jd.timeline(schedule(K), with_auxiliary(name, K), lock_step=True)
    assert run.seconds_per_batch == pytest.approx(formula(K), rel=1e-12, abs=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_one_stage_is_back_propagation(name):
    run = jd.timeline(FORMULAS[name][0](1), equal(1), lock_step=True)
    assert run.seconds_per_batch == pytest.approx(T_F + T_B, rel=1e-12)


def test_ddg_is_2_0_times_as_fast_on_4_devices_where_nothing_else_is_waited_for():
    times = jd.Times(forward=[1.0] * 4, backward=[2.0] * 4)
    assert jd.timeline(schedules.ddg(4), times, lock_step=True).speedup == pytest.approx(2.0, rel=1e-12)
    assert jd.timeline(schedules.ddg(4), times).speedup == pytest.approx(4.0)


def by_hand(schedule, times, ticks):
    """End of each tick: written anew, op by op, with unequal stages and transfers."""
    last, ends, clock, free = schedule.num_stages - 1, [], 0.0, {}
    there = {}  # (kind, stage, batch) -> when its output is at the neighbour
    for tick in range(ticks):
        ops = schedule.ops(tick)
        played = end = clock
        stage_free = [clock] * (last + 1)
        crossing = any(op.kind is Kind.FORWARD and op.stage and op._replace(stage=op.stage - 1) in ops for op in ops)
        for op in ops:
            forward, k = op.kind is Kind.FORWARD, op.stage
            needs = (
                there.get((Kind.FORWARD, k - 1, op.batch), 0.0)
                if forward
                else there[schedule.gradient_source(k, op.batch).kind, k + 1, op.batch]
            )
            begin = max(stage_free[k], needs, clock, played if crossing and not forward else 0.0)
            stage_free[k] = begin + times.duration(op.kind, k, schedule.weights)
            if forward:
                played = max(played, begin + times.forward[k])
            edge = ("up", k) if forward and k < last else ("down", k - 1)
            if edge[1] >= 0:
                seconds = getattr(times, edge[0])[edge[1]]
                there[op.kind, k, op.batch] = free[edge] = max(stage_free[k], free.get(edge, 0.0)) + seconds
                end = max(end, there[op.kind, k, op.batch])
            end = max(end, stage_free[k])
        clock = end
        ends.append(end)
    return ends


@pytest.mark.parametrize("name", ["BP", "DDG", "FR", "FDG", "ADL"])
def test_unequal_stages_and_transfers(name):
    rng = np.random.default_rng(3)
    for K in (2, 3, 5):
        times = jd.Times(
            forward=rng.uniform(0.5, 2, K),
            backward=rng.uniform(1, 3, K),
            up=rng.uniform(0, 1, K - 1),
            down=[0.4] * (K - 1),
        )
        schedule = FORMULAS[name][0](K)
        run = jd.timeline(schedule, times, num_batches=20, lock_step=True)
        assert run.batch[run.tick < 20].max() == 19
        arrived = np.maximum(run.end, _arrivals(run))
        found = [float(arrived[run.tick <= tick].max()) for tick in range(12)]
        np.testing.assert_allclose(found, by_hand(schedule, times, 12), rtol=1e-12)
        starts = [float(run.start[run.tick == tick].min()) for tick in range(1, 12)]
        np.testing.assert_allclose(starts, found[:-1], rtol=1e-12)  # nothing starts before all of a tick is over


def _arrivals(run):
    """For each operation, when its result is at the neighbour."""
    there = np.zeros(len(run.end))
    place = {(kind, k, n): i for i, (kind, k, n) in enumerate(zip(run.kind, run.stage, run.batch, strict=True))}
    for (kind, k, n), index in place.items():
        if kind == "F" and k:
            origin = ("F", k - 1, n)
        elif kind == "B":
            origin = (("F" if run.schedule.learns_in_forward(k + 1) else "B"), k + 1, n)
        else:
            continue
        there[place[origin]] = run.arrival[index]
    return there


def test_a_slow_stage_holds_up_all():
    K, ticks = 3, 400
    slowness = np.ones((ticks, K))
    slowness[::2, 0] = 3.0  # in turn with another
    slowness[1::2, 1] = 3.0
    times, schedule = jd.Times(forward=[1.0] * K, backward=[2.0] * K), schedules.dsp((3, 3, 0), (10, 5, 0))
    ends = {}
    for lock_step in (False, True):
        run = jd.timeline(schedule, times, num_batches=300, slowness=slowness, lock_step=lock_step)
        ends[lock_step] = run.makespan / 300
    replayed = 4.0  # forward, the forward again, backward
    assert ends[True] == pytest.approx(3 * replayed, rel=0.05) and ends[False] < 2.2 * replayed


def test_what_has_no_lock_step_is_refused():
    with pytest.raises(ValueError, match="a round of 'gpipe' takes 4 of them"):
        jd.timeline(schedules.gpipe(2, 4), equal(2), lock_step=True)
    with pytest.raises(ValueError, match="lock_step knows of no devices that share cores"):
        jd.timeline(schedules.fdg(2), equal(2, slowdown=[1.0, 2.0]), lock_step=True)


def test_devices_are_busy_for_their_part_of_a_tick():
    run = jd.timeline(schedules.ddg(4), jd.Times(forward=[1.0] * 4, backward=[2.0] * 4), lock_step=True)
    assert run.busy == pytest.approx([3 / 6] * 4)  # GPU utilisation, as in FDG's Table VII
    uneven = jd.Times(forward=[1.0, 2.0], backward=[2.0, 4.0])
    assert jd.timeline(schedules.fdg(2), uneven, lock_step=True).busy == pytest.approx([0.5, 1.0])
