"""Staleness found by walking a schedule's operations equals the formulas and figures of the papers."""

import math

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.schedules import BACKWARD, FORWARD, GradientAge, Op, ends_group, gradient_ages, staleness


def by_formula(lag, accumulate, order):
    """The closed form, for the lag of each stage: d, M -> one level for each j = 0..M-1."""
    late = 0 if order == "forward_first" else 1
    return tuple(tuple(max(0, math.ceil((d - late - j) / accumulate)) for j in range(accumulate)) for d in lag)


def multiples(factor):
    return lambda K: tuple(factor * (K - 1 - k) for k in range(K))


def dsp(K):
    return schedules.dsp((2,) * (K - 1) + (0,), multiples(5)(K))


# name -> (schedule of K stages, lag of its stages, order in a tick)
METHODS = {
    "fdg": (schedules.fdg, multiples(2), "backward_first"),
    "fdg-forward": (lambda K: schedules.fdg(K, order="forward_first"), multiples(2), "forward_first"),
    "adl": (schedules.adl, multiples(2), "forward_first"),
    "adl-backward": (lambda K: schedules.adl(K, order="backward_first"), multiples(2), "backward_first"),
    "ddg": (schedules.ddg, multiples(1), "forward_first"),
    "features_replay": (schedules.features_replay, multiples(1), "forward_first"),
    "pipedream": (schedules.pipedream, multiples(1), "forward_first"),
    "dsp": (dsp, multiples(5), "forward_first"),
    "backprop": (schedules.backprop, multiples(0), "forward_first"),
}


@pytest.mark.parametrize("accumulate", range(1, 10))
@pytest.mark.parametrize("name", METHODS)
def test_equals_the_closed_form(name, accumulate):
    build, lag, order = METHODS[name]
    for K in range(1, 7):
        assert staleness(build(K), accumulate) == by_formula(lag(K), accumulate, order), f"K = {K}"


@pytest.mark.parametrize("order", ["forward_first", "backward_first"])
def test_equals_the_closed_form_for_any_delays(order):
    rng = np.random.default_rng(0)
    for _ in range(30):
        K, accumulate = int(rng.integers(2, 6)), int(rng.integers(1, 6))
        p, q = rng.integers(0, 4, K - 1).tolist(), rng.integers(0, 4, K - 1).tolist()
        q[-1] += order == "backward_first"
        schedule = schedules.delays(p, q, order=order)
        assert staleness(schedule, accumulate) == by_formula(schedule.lag, accumulate, order), f"{p} {q} {accumulate}"


def test_adl_figure_1():
    two, four = staleness(schedules.adl(3), 2), staleness(schedules.adl(3), 4)
    assert four[1] == (1, 1, 0, 0)  # Fig. 1(b) and below eq. 17: the paper's module 2
    assert set(two[0]) == {2} and set(four[0]) == {1}  # Fig. 1's caption: module 1, from 2 with M = 2 to 1 with M = 4
    assert two[2] == (0, 0) and four[2] == (0, 0, 0, 0)


def test_adl_figure_2():
    averages = {M: [sum(levels) / M for levels in staleness(schedules.adl(8), M)] for M in range(1, 9)}  # eq. 19
    assert averages[1][0] == 14  # module 1
    assert averages[1][5] == 4  # module 6
    assert averages[4] == [0.25 * lag for lag in averages[1]]  # "with M = 4 reduced by 75 %"
    assert averages[2] == [0.5 * lag for lag in averages[1]]
    assert averages[3][0] == pytest.approx((5 + 5 + 4) / 3)


@pytest.mark.parametrize("M", range(1, 7))
def test_adl_equation_17(M):
    K, s = 5, 50  # d_kj = s - floor((U_s + j - 2 (K - k)) / M) with U_s = s M, and modules k = 1..K
    expected = tuple(tuple(s - (s * M + j - 2 * (K - k)) // M for j in range(M)) for k in range(1, K + 1))
    assert staleness(schedules.adl(K), M) == expected


@pytest.mark.parametrize(
    ("p", "m"),
    [
        ((1, 1, 0), (4, 2, 0)),  # Figure 2
        ((2, 2, 0), (6, 3, 0)),
        ((3, 3, 0), (10, 5, 0)),
        ((1, 1, 1, 0), (6, 4, 2, 0)),
        ((2, 2, 2, 0), (9, 6, 3, 0)),
        ((3, 3, 3, 0), (15, 10, 5, 0)),
    ],
)
def test_dsp_m_is_the_layer_wise_staleness(p, m):
    """DSP, section 3.3, for every configuration in the paper."""
    assert staleness(schedules.dsp(p, m)) == tuple((level,) for level in m)
    backward_first = schedules.dsp(p, m, order="backward_first")
    assert staleness(backward_first) == tuple((max(0, level - 1),) for level in m)


@pytest.mark.parametrize("chunks", range(1, 6))
def test_gpipe_is_plain_training_when_a_round_is_an_update(chunks):
    for K in range(1, 5):
        for multiple in (1, 2):
            accumulate = multiple * chunks
            assert staleness(schedules.gpipe(K, chunks), accumulate) == ((0,) * accumulate,) * K


def test_gpipe_is_stale_when_it_is_not():
    # Updates after every batch of a round of 4, whose forwards all came before: but the last stage updates at once.
    assert staleness(schedules.gpipe(3, 4), 1) == ((3,), (3,), (0,))
    # Groups of 2 in rounds of 3: batches 0 1 2 | 3 4 5; group (2, 3) spans rounds, (4, 5) follows an update.
    assert staleness(schedules.gpipe(2, 3), 2) == ((1, 1), (0, 0))


def test_missed_updates():
    assert schedules.missed_updates(schedules.ddg(4)) == (3, 2, 1, 0)  # thesis, eq. 5.8: none before t = K - 1 - k
    assert schedules.missed_updates(schedules.fdg(3)) == (4, 3, 2)  # the first batch is at the last stage in tick 2
    assert schedules.missed_updates(schedules.fdg(3), 3) == ((2 + 4) // 3, (2 + 3) // 3, (2 + 2) // 3)
    assert schedules.missed_updates(schedules.gpipe(3, 4), 4) == (0, 0, 0)
    assert schedules.missed_updates(schedules.dgl(3)) == (0, 1, 2)


def test_weights_policy_is_no_matter_of_staleness():
    assert staleness(schedules.fdg(3, weights="latest"), 2) == staleness(schedules.fdg(3), 2)


def test_ages_worked_by_hand():
    # FDG, K = 2, at stage 0:   F0 | F1 | B0 F2 | B1 F3 | B2, each B an update.
    ages = [age for age in gradient_ages(schedules.fdg(2), 3) if age.stage == 0]
    assert ages == [
        GradientAge(stage=0, batch=0, lag=2, forward_version=0, backward_version=0, update_version=0),
        GradientAge(stage=0, batch=1, lag=2, forward_version=0, backward_version=1, update_version=1),
        GradientAge(stage=0, batch=2, lag=2, forward_version=1, backward_version=2, update_version=2),
    ]
    assert [age.staleness for age in ages] == [0, 1, 1]


def test_ages_of_a_group_worked_by_hand():
    # ADL, K = 2, M = 2, at stage 0:   F0 | F1 | F2 B0 | F3 B1* | F4 B2 | F5 B3* | ..., B* with an update.
    ages = [age for age in gradient_ages(schedules.adl(2), 7, accumulate=2) if age.stage == 0]
    versions = [(age.batch, age.forward_version, age.backward_version, age.update_version) for age in ages]
    assert versions == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 1, 1), (3, 0, 1, 1), (4, 1, 2, 2), (5, 1, 2, 2)]
    # Batch 6 is alone in its group: no update consumes its gradient.


def test_ages_come_in_the_order_of_the_updates():
    # Rounds of 3, M = 4: both stages update in the second round, after batch 3; batches 4 and 5 have no update.
    ages = gradient_ages(schedules.gpipe(2, 3), 6, accumulate=4)
    assert [(age.stage, age.batch) for age in ages] == [(1, n) for n in range(4)] + [(0, n) for n in range(4)]
    for age in gradient_ages(schedules.gpipe(3, 5), 40, accumulate=3):
        assert age.forward_version <= age.backward_version <= age.update_version


@pytest.mark.parametrize("name", METHODS)
def test_lags_are_the_schedules(name):
    build, lag, _ = METHODS[name]
    schedule, num_batches = build(4), 25
    ages = gradient_ages(schedule, num_batches, accumulate=3)
    assert all(age.lag == lag(4)[age.stage] == schedule.lag[age.stage] for age in ages)
    # Each gradient is consumed once, except those of batch 24, alone in its group.
    assert sorted((age.stage, age.batch) for age in ages) == [(k, n) for k in range(4) for n in range(24)]


def test_the_largest_level_of_a_long_period_is_found():
    # Every batch is finished in its own tick, but for one of 40, whose update comes after the next forward.
    ticks = [[Op(FORWARD, 0, t), Op(FORWARD, 1, t), Op(BACKWARD, 0, t)] for t in range(40)]
    late = ticks[30].pop()
    ticks[31].insert(1, late)
    schedule = schedules.TableSchedule(name="mine", num_stages=2, table=ticks, period=40)
    schedules.validate(schedule, 90)
    stale = [age for age in gradient_ages(schedule, 90) if age.staleness]
    assert [(age.stage, age.batch) for age in stale] == [(0, 31), (0, 71)]
    assert staleness(schedule) == ((1,), (0,))


def test_groups_end_at_multiples():
    assert [n for n in range(12) if ends_group(n, 4)] == [3, 7, 11]
    assert all(ends_group(n, 1) for n in range(5))
