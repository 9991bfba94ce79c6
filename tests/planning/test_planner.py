"""A plan has the least staleness of all delays that allow for its speed: compared with all of them, one by one."""

import functools
import itertools
import math

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Times, plan, timeline
from jaxdecouple.schedules import DelaySchedule, join, staleness
from tests.oracles import cycle_time

MOST = {2: 3, 3: 3, 4: 2}  # K -> ticks of delay on an edge, in the search through all


def uniform(K, transfer=0.0, **more):
    return Times(forward=[1] * K, backward=[2] * K, up=[transfer] * (K - 1), down=[transfer] * (K - 1), **more)


def random_times(rng, K):
    transfers = rng.choice([0.0, 0.3, 1.5])
    return Times(
        forward=rng.random(K) + 0.3,
        backward=2 * rng.random(K) + 0.3,
        up=transfers * rng.random(K - 1),
        down=transfers * rng.random(K - 1),
        joined=0.3 + 2.5 * rng.random(K - 1) if rng.random() < 0.6 else None,
    )


@functools.cache
def everything(K, weights):
    """All delay schedules of p, q in 0..MOST; those that differ in neither lag nor joining once. With their levels."""
    found = {}
    delays = list(itertools.product(range(MOST[K] + 1), repeat=K - 1))
    for p, q, order in itertools.product(delays, delays, ("forward_first", "backward_first")):
        if order == "forward_first" or q[-1]:
            schedule = schedules.delays(p, q, order=order, weights=weights)
            found.setdefault((schedule.lag, order, frozenset(cycle_time.joined_stages(schedule))), schedule)
    # The papers' formulas, d or d - 1 for every stage below the last: tests/test_staleness.py
    return [(schedule, sum(schedule.lag) - (K - 1) * (order[0] == "b")) for (_, order, _), schedule in found.items()]


def total(schedule):
    return sum(map(sum, staleness(schedule)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("K", [2, 3, 4])
def test_equals_the_best_of_all_by_their_precedence_graphs(K, seed):
    rng = np.random.default_rng(100 * K + seed)
    times, weights = random_times(rng, K), str(rng.choice(["stash", "replay"]))
    jitter, margin = float(rng.choice([0.0, 0.0, 0.2, 0.5])), float(rng.choice([0.0, 0.01, 0.1]))
    found = plan(times, jitter=jitter, weights=weights, margin=margin)
    candidates, levels = zip(*everything(K, weights), strict=True)
    late = jitter * max(times.work(k, weights) for k in range(K))
    periods = cycle_time.cycle_times(candidates, times, late)
    # With lags of hundreds of ticks nothing but work counts; any stage but the first can be kept from being joined.
    endless = [
        schedules.delays(p, q, order=order, weights=weights)
        for order in ("forward_first", "backward_first")
        for p in itertools.product((0, 400), repeat=K - 1)
        for q in [[400] * (K - 1)]
    ]
    assert found.best == pytest.approx(cycle_time.cycle_times(endless, times).min(), rel=1e-3)
    limit = found.best / (1 - margin) * (1 + 1e-9)
    fast = [(level, schedule) for level, schedule, T in zip(levels, candidates, periods, strict=True) if T <= limit]
    within = all(delay <= MOST[K] for delay in found.schedule.p + found.schedule.q)
    least = min((level for level, _ in fast), default=math.inf)
    assert total(found.schedule) == least if within else total(found.schedule) <= least
    late_period, period = (cycle_time.cycle_times([found.schedule], times, x)[0] for x in (late, 0.0))
    assert late_period <= limit
    assert found.seconds_per_batch == pytest.approx(period, rel=1e-3) and period <= limit
    if times.joined is None and within:  # the least for every stage at once
        for level, schedule in fast:
            pairs = zip(staleness(found.schedule), staleness(schedule), strict=True)
            assert all(mine <= other for mine, other in pairs), f"{level}: {schedule}"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("K", [2, 3])
def test_equals_the_best_of_all_by_simulation(K, seed):
    rng = np.random.default_rng(100 * K + seed)
    times = random_times(rng, K)
    found = plan(times)
    assert max(found.schedule.p + found.schedule.q) <= MOST[K]  # or the search through all would not reach the plan
    rivals = [(level, schedule) for schedule, level in everything(K, "stash") if level <= total(found.schedule)]
    speeds = [(timeline(schedule, times).seconds_per_batch, level) for level, schedule in rivals]
    limit = found.best / 0.99
    assert min(level for seconds, level in speeds if seconds <= limit * (1 + 1e-9)) == total(found.schedule)
    assert found.seconds_per_batch <= limit * (1 + 1e-9)


@pytest.mark.parametrize("seed", [6161, *range(5)])
def test_what_looks_worse_above_may_be_better_below(seed):
    # With seed 6161 the choice with the least staleness at stages 1 and 2 leaves stage 0 more: it joins stage 1.
    rng = np.random.default_rng(seed)
    K = int(rng.integers(3, 6)) if seed == 6161 else 4
    forward, backward = rng.random(K) + 0.3, 2 * rng.random(K) + 0.3
    transfers = {"up": rng.random(K - 1), "down": rng.random(K - 1)}
    times = Times(forward=forward, backward=backward, joined=0.3 + 2.5 * rng.random(K - 1), **transfers)
    found = plan(times, order="backward_first")
    candidates = [entry for entry in everything(K, "stash") if entry[0].order == "backward_first"]
    periods = cycle_time.cycle_times([schedule for schedule, _ in candidates], times)
    fast = [level for (_, level), T in zip(candidates, periods, strict=True) if T <= found.best / 0.99]
    assert total(found.schedule) <= min(fast, default=math.inf)
    assert cycle_time.cycle_times([found.schedule], times)[0] <= found.best / 0.99 * (1 + 1e-9)
    assert seed != 6161 or total(found.schedule) == 8


def test_without_transfers_pipedream_is_the_plan():
    for K in range(1, 9):
        found = plan(uniform(K), margin=0)
        assert found.staleness == staleness(schedules.pipedream(K))
        assert (found.schedule.p, found.schedule.q) == ((1,) * (K - 1), (0,) * (K - 1))
        assert found.speedup == pytest.approx(K)


def test_with_transfers_a_tick_more_on_every_edge():
    found = plan(uniform(4, 0.3))
    assert (found.schedule.lag, found.schedule.order) == ((6, 4, 2, 0), "forward_first")
    assert found.speedup == pytest.approx(4)
    # For a tenth of the speed there is even less to pay than FDG does, with 5, 3, 1, 0 at 3.3 seconds.
    tenth = plan(uniform(4, 0.3), margin=0.1)
    assert tenth.staleness == ((4,), (3,), (1,), (0,)) and tenth.seconds_per_batch <= 3 / 0.9
    assert plan(uniform(4, 0.3), margin=0.14).staleness == staleness(schedules.ddg(4))  # 3.45 seconds


def test_a_fast_stage_needs_less_delay():
    times = Times(forward=[0.1, 0.1, 1], backward=[0.1, 0.2, 2])
    assert plan(times).staleness == ((1,), (1,), (0,))


def test_jitter_is_tolerance():
    times = uniform(3)
    for jitter in (0.2, 0.6, 1.0):
        found = plan(times, jitter=jitter)
        late = uniform(3, 3 * jitter)
        assert timeline(found.schedule, late).seconds_per_batch <= 3 / 0.99
        assert timeline(plan(times).schedule, late).seconds_per_batch > 3.1
        assert found.seconds_per_batch == pytest.approx(3) and found.jitter == jitter
    # Latency does not occupy a link: transfers later by more than a period are borne, too.
    far = plan(times, jitter=5.0)
    assert cycle_time.cycle_times([far.schedule], times, late=15.0)[0] <= 3 / 0.99


def test_joining_is_planned_where_it_pays():
    times = uniform(3, joined=[2.2, 2.2], host=0.0)
    slow_last = Times(forward=[1, 1, 0.5], backward=[2, 2, 1.5], joined=[2.2, 2.2])
    assert plan(times).schedule.order == "forward_first"  # the last stage takes 3 in any case
    found = plan(slow_last)
    assert found.best == 2.2 and found.seconds_per_batch == pytest.approx(2.2)
    assert found.schedule.order == "backward_first" and min(found.schedule.p + found.schedule.q) >= 1
    (dispatches,) = [join(ops) for tick, ops in found.schedule.run(40) if tick == 30]
    assert sorted(map(len, dispatches)) == [1, 2, 2]
    one = Times(forward=[1, 0.1, 0.5], backward=[2, 0.1, 1.5], joined=[2.2, 2.0])
    assert cycle_time.joined_stages(plan(one).schedule) == {0}  # joining stage 1 would only make batches wait
    assert plan(slow_last, order="forward_first").best == 3
    # Stage 0 would have to be joined as well, which takes it 5.
    first = Times(forward=[0.5, 1, 0.5], backward=[0.5, 2, 0.5], joined=[5, 1.5])
    assert plan(first).best == 3 and plan(first).schedule.order == "forward_first"


def test_the_host_is_a_limit():
    assert plan(uniform(3, host=1)).best == 5  # F F L B B
    busy = plan(uniform(3, host=1, joined=[3, 3]))
    assert busy.best == 3 and busy.seconds_per_batch == pytest.approx(3)
    assert len(cycle_time.joined_stages(busy.schedule)) == 2
    one = plan(uniform(3, host=1, joined=[3, 4.5]))  # joining stage 1 is slower than issuing it twice
    assert one.best == 4 and cycle_time.joined_stages(one.schedule) == {0}


def test_replay_redoes_forwards():
    found = plan(uniform(2), weights="replay")
    assert found.best == 4 and found.schedule.weights == "replay"


@pytest.mark.parametrize("M", [2, 3, 4])
def test_the_levels_of_a_group_sum_to_one_batchs(M):
    found = plan(uniform(4, 0.7), accumulate=M)
    alone = plan(uniform(4, 0.7))
    assert found.schedule == alone.schedule
    assert [sum(levels) for levels in found.staleness] == [level for (level,) in alone.staleness]


def test_orders_can_be_chosen():
    first, last = (plan(uniform(4, 0.3), order=order) for order in ("forward_first", "backward_first"))
    assert (first.schedule.order, last.schedule.order) == ("forward_first", "backward_first")
    assert first.staleness == last.staleness and last.schedule.lag[0] == first.schedule.lag[0] + 1


def test_a_plan_feeds_ahead_of_a_host_that_waits_for_losses():
    for transfer in (0.0, 0.3, 2.0):
        found = plan(uniform(8, transfer))
        assert timeline(found.schedule, found.times, run_ahead=2).speedup == pytest.approx(found.speedup, rel=1e-6)


def test_many_stages():
    rng = np.random.default_rng(0)
    times = Times(
        forward=1 + 0.1 * rng.random(32),
        backward=2 + 0.2 * rng.random(32),
        up=[0.3] * 31,
        down=[0.3] * 31,
        joined=2.8 + 0.3 * rng.random(31),
    )
    found = plan(times)
    assert isinstance(found.schedule, DelaySchedule) and found.schedule.name == "plan(jitter=0)"
    assert found.best <= found.seconds_per_batch <= found.best / 0.99 * (1 + 1e-9)


def test_explanations_give_the_numbers():
    limit, delays, comparison = plan(uniform(4, 0.3)).explain().splitlines()
    assert limit.startswith("Limit: stage 0 takes 3 s per batch; this plan takes 3 s, 4 times as fast")
    assert "p = 1 everywhere, q = 1 everywhere, forward first; staleness by stage 6 / 4 / 2 / 0, in all 12" in delays
    assert delays.endswith("with less than 12, a batch would take 3.3 s, 10.0% over the limit.")  # FDG, for one
    assert "ddg 3.48 times with staleness 3 / 2 / 1 / 0; fdg 3.64 times with staleness 5 / 3 / 1 / 0" in comparison
    assert "the link 1 -> 2 takes 5 s" in plan(Times(forward=[1] * 3, backward=[1] * 3, up=[1, 5])).explain()
    assert "the host takes 5 s" in plan(uniform(3, host=1)).explain()
    assert "no gradient is stale" in plan(uniform(1)).explain()
    assert "late by 0.5 of a batch" in plan(uniform(2), jitter=0.5).explain()
    assert len(plan(uniform(20, 0.3)).explain().splitlines()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter": -0.1},
        {"jitter": math.nan},
        {"weights": "newest"},
        {"accumulate": 0},
        {"accumulate": 1.5},
        {"margin": 1.0},
        {"margin": -0.1},
        {"order": "sideways"},
    ],
)
def test_arguments_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is"):
        plan(uniform(2), **wrong)
