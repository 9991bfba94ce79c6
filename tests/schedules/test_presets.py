"""Schedules equal the pictures in the papers, and the delays follow the papers' arithmetic."""

import dataclasses
import itertools
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.schedules import BACKWARD, FORWARD, DelaySchedule, Op, ScheduleError


def queues(num_stages, length=1):
    """DSP's p and m with every activation and gradient queue of ``length``."""
    return (length,) * (num_stages - 1) + (0,), tuple(2 * length * (num_stages - 1 - k) for k in range(num_stages))


# name -> the schedule for K stages
PRESETS = {
    "backprop": schedules.backprop,
    "gpipe-1": lambda K: schedules.gpipe(K, 1),
    "gpipe-3": lambda K: schedules.gpipe(K, 3),
    "ddg": schedules.ddg,
    "features_replay": schedules.features_replay,
    "fdg": schedules.fdg,
    "fdg-forward": lambda K: schedules.fdg(K, order="forward_first"),
    "adl": schedules.adl,
    "adl-backward": lambda K: schedules.adl(K, order="backward_first"),
    "pipedream": schedules.pipedream,
    "dsp": lambda K: schedules.dsp(*queues(K)),
    "dsp-long": lambda K: schedules.dsp(*queues(K, 2)),
    "delays": lambda K: schedules.delays([k % 3 for k in range(K - 1)], [(k + 1) % 2 for k in range(K - 1)]),
}
ALL = [pytest.param(name, K, id=f"{name}-K{K}") for name in PRESETS for K in range(1, 9)]
ALL += [pytest.param("fdg", 64, id="fdg-K64")]

# The last stage's F contains its loss, backward and update.
PICTURES = {
    "fdg": """
        tick      0    1    2    3        4        5        6
        stage 0   F0   F1   F2   F3       B0 F4    B1 F5    B2 F6
        stage 1        F0   F1   B0 F2    B1 F3    B2 F4    B3 F5
        stage 2             F0   F1       F2       F3       F4
        """,
    "fdg-forward": """
        tick      0    1    2    3        4        5        6
        stage 0   F0   F1   F2   F3       F4 B0    F5 B1    F6 B2
        stage 1        F0   F1   F2 B0    F3 B1    F4 B2    F5 B3
        stage 2             F0   F1       F2       F3       F4
        """,
    "backprop": """
        tick      0       1       2
        stage 0   F0 B0   F1 B1   F2 B2
        stage 1   F0 B0   F1 B1   F2 B2
        stage 2   F0      F1      F2
        """,
    "ddg": """
        tick      0    1       2       3       4
        stage 0   F0   F1      F2 B0   F3 B1   F4 B2
        stage 1   F0   F1 B0   F2 B1   F3 B2   F4 B3
        stage 2   F0   F1      F2      F3      F4
        """,
    "pipedream": """
        tick      0    1    2       3       4
        stage 0   F0   F1   F2 B0   F3 B1   F4 B2
        stage 1        F0   F1 B0   F2 B1   F3 B2
        stage 2             F0      F1      F2
        """,
    "gpipe-3": """
        tick      0    1    2             3    4    5
        stage 0   F0   F1   F2 B0 B1 B2   F3   F4   F5 B3 B4 B5
        stage 1   F0   F1   F2 B0 B1 B2   F3   F4   F5 B3 B4 B5
        stage 2   F0   F1   F2            F3   F4   F5
        """,
    "dsp-long": """
        tick      0    1    2    3    4    5    6       7       8       9
        stage 0   F0   F1   F2   F3   F4   F5   F6      F7      F8 B0   F9 B1
        stage 1             F0   F1   F2   F3   F4 B0   F5 B1   F6 B2   F7 B3
        stage 2                       F0   F1   F2      F3      F4      F5
        """,
}
PICTURES |= {"features_replay": PICTURES["ddg"], "adl": PICTURES["fdg-forward"], "dsp": PICTURES["fdg-forward"]}


def read_picture(picture):
    """[tick][stage] -> cell, cut at the columns of the header."""
    header, *rows = picture.strip("\n").splitlines()[:-1]
    starts = [match.start() for match in re.finditer(r"\d+", header)]
    return [[row[a:b].strip() for row in rows] for a, b in itertools.pairwise([*starts, None])]


def cells(ops, num_stages):
    letters = {FORWARD: "F", BACKWARD: "B"}
    return [" ".join(f"{letters[op.kind]}{op.batch}" for op in ops if op.stage == k) for k in range(num_stages)]


@pytest.mark.parametrize("name", PICTURES)
def test_equals_the_picture(name):
    schedule = PRESETS[name](3)
    picture = read_picture(PICTURES[name])
    assert [cells(schedule.ops(tick), 3) for tick in range(len(picture))] == picture


def test_a_partial_round_is_flushed_when_its_round_would_have_ended():
    picture = read_picture("""
        tick      0    1    2    3                4    5    6    7
        stage 0   F0   F1   F2   F3 B0 B1 B2 B3   F4   F5        B4 B5
        stage 1   F0   F1   F2   F3 B0 B1 B2 B3   F4   F5        B4 B5
        stage 2   F0   F1   F2   F3               F4   F5
        """)
    run = [cells(ops, 3) for _, ops in schedules.gpipe(3, 4).run(6)]
    assert run[: len(picture)] == picture
    assert not any(map(any, run[len(picture) :]))


def test_draw():
    assert schedules.draw(schedules.fdg(3), 3).splitlines() == [
        "tick     0   1   2   3      4   5   6",
        "stage 0  F0  F1  F2         B0  B1  B2",
        "stage 1      F0  F1  B0 F2  B1  B2",
        "stage 2          F0  F1     F2",
    ]


def test_ops_of_one_tick_in_dispatch_order():
    backward = (Op(BACKWARD, 1, 1), Op(BACKWARD, 0, 0))
    forward = (Op(FORWARD, 0, 4), Op(FORWARD, 1, 3), Op(FORWARD, 2, 2))
    assert schedules.fdg(3).ops(4) == backward + forward
    assert schedules.adl(3).ops(4) == forward + backward


def needs(op, num_stages):
    """What must have been dispatched before ``op``."""
    if op.kind is FORWARD:
        return [op._replace(stage=op.stage - 1)] if op.stage else []
    above = op._replace(stage=op.stage + 1)
    return [op._replace(kind=FORWARD), above._replace(kind=FORWARD) if above.stage == num_stages - 1 else above]


@pytest.mark.parametrize(("name", "K"), ALL)
def test_every_batch_passes_every_stage_once_in_order(name, K):
    schedule, num_batches = PRESETS[name](K), 11
    schedules.validate(schedule)
    dispatched = []
    for tick, ops in schedule.run(num_batches):
        for op in ops:
            assert op.batch <= tick
            assert set(needs(op, K)) <= set(dispatched), f"tick {tick}: {op}"
            dispatched.append(op)
    for kind, stage in itertools.product((FORWARD, BACKWARD), range(K)):
        done = [op.batch for op in dispatched if (op.kind, op.stage) == (kind, stage)]
        assert done == ([] if kind is BACKWARD and stage == K - 1 else list(range(num_batches)))


@pytest.mark.parametrize("name", PRESETS)
def test_ops_depend_on_the_tick_alone(name):
    schedule = PRESETS[name](4)
    in_order = {tick: schedule.ops(tick) for tick in range(40)}
    shuffled = random.Random(0).sample(range(40), 40)
    assert all(schedule.ops(tick) == in_order[tick] for tick in shuffled)
    assert PRESETS[name](4).ops(27) == in_order[27]


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_after_a_flush_is_the_same_run_later(name):
    schedule, shift = PRESETS[name](3), 12  # a multiple of the rounds
    first = [ops for _, ops in schedule.run(7)]
    again = list(schedule.run(7, first=shift))
    assert [tick for tick, _ in again] == list(range(shift, shift + len(first)))
    assert [tuple(op._replace(batch=op.batch - shift) for op in ops) for _, ops in again] == first
    assert list(schedule.run(0)) == list(schedule.run(0, first=5)) == []


def test_a_window_keeps_the_order_and_drops_other_batches():
    schedule = schedules.fdg(3)
    assert schedule.window(4, 1, 4) == (Op(BACKWARD, 1, 1), Op(FORWARD, 1, 3), Op(FORWARD, 2, 2))
    assert schedule.window(4, 0, 5) == schedule.ops(4)


@pytest.mark.parametrize("order", ["forward_first", "backward_first"])
def test_delays_follow_the_formulas(order):
    rng = np.random.default_rng(0)
    for K in range(1, 7):
        p, q = rng.integers(0, 4, K - 1).tolist(), (1 + rng.integers(0, 4, K - 1)).tolist()
        schedule = schedules.delays(p, q, order=order)
        m = [sum(p[k:]) + sum(q[k:]) for k in range(K)]
        assert schedule.lag == tuple(m)
        assert schedule.drain == m[0]
        when = {op: tick for tick, ops in schedule.run(5) for op in ops}
        for n, k in itertools.product(range(5), range(K)):
            assert when[Op(FORWARD, k, n)] == n + sum(p[:k])
            if k < K - 1:
                assert when[Op(BACKWARD, k, n)] == n + sum(p[:k]) + m[k]


@pytest.mark.parametrize(
    ("p", "m", "q"),
    [
        ((1, 1, 0), (4, 2, 0), (1, 1)),
        ((2, 2, 0), (6, 3, 0), (1, 1)),
        ((3, 3, 0), (10, 5, 0), (2, 2)),
        ((1, 1, 1, 0), (6, 4, 2, 0), (1, 1, 1)),
        ((2, 2, 2, 0), (9, 6, 3, 0), (1, 1, 1)),
        ((3, 3, 3, 0), (15, 10, 5, 0), (2, 2, 2)),
        ((1, 2, 0), (9, 3, 0), (5, 1)),
    ],
)
def test_dsp_in_the_papers_notation(p, m, q):
    schedule = schedules.dsp(p, m)
    schedules.validate(schedule)
    assert (schedule.p, schedule.q, schedule.lag) == (p[:-1], q, m)
    assert schedule.name == f"dsp({','.join(map(str, p))};{','.join(map(str, m))})"
    assert (schedule.order, schedule.weights) == ("forward_first", "replay")


@pytest.mark.parametrize("K", range(1, 9))
def test_dsp_with_queues_of_one_is_fdg(K):
    dsp, fdg = schedules.dsp(*queues(K)), schedules.fdg(K, order="forward_first")
    assert dataclasses.replace(dsp, name="fdg", weights="stash") == fdg


@pytest.mark.parametrize(
    ("p", "m", "message"),
    [
        (1, 2, r"p is 1 and m 2; write one of each per stage, as dsp"),
        ((1, 1, 0), (3, 2, 0), r"q_1 = m_0 - p_0 - m_1 = 3 - 1 - 2 = 0.*m_0 >= 4"),
        ((1, 1, 0), (4, 1, 0), r"q_2 = m_1 - p_1 - m_2 = 1 - 1 - 0 = 0.*m_1 >= 2"),
        ((1, 1, 0), (2, 4, 0), r"q_1 = .* = -3.*m_0 >= 6"),
        ((0, 1, 0), (4, 2, 0), r"p_0 = 0 must be at least 1"),
        ((1, 1, 1), (4, 2, 0), r"DSP\(1,1,1;4,2,0\) must end in p = 0 and m = 0"),
        ((1, 1, 0), (4, 0), r"3 p and 2 m; write one of each per stage"),
        ((1.0, 1, 0), (4, 2, 0), r"must hold integers"),
    ],
)
def test_dsp_refuses_impossible_queues(p, m, message):
    with pytest.raises(ScheduleError, match=message):
        schedules.dsp(p, m)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.fdg(0), "num_stages is 0; write an integer of at least 1"),
        (lambda: schedules.adl(2.0), "num_stages is 2.0"),
        (lambda: schedules.gpipe(2, 0), "chunks is 0; write an integer of at least 1"),
        (lambda: schedules.gpipe(2, 1.5), "chunks is 1.5"),
        (lambda: schedules.fdg(2, weights="old"), "weights is 'old'; write one of stash, remat, replay, latest"),
        (lambda: schedules.fdg(2, order="both"), "order is 'both'; write one of forward_first, backward_first"),
        (lambda: schedules.delays([1, 1], [1]), "q = .1,. has 1 delays, but 3 stages have 2 edges.*gradients"),
        (lambda: schedules.delays([1], [1, 1]), "has 2 delays, but 2 stages have 1 edges"),
        (lambda: schedules.delays([-1], [1]), "p = .-1,. must hold integers of at least 0"),
        (lambda: schedules.delays([1], [0.5]), "q = .0.5,. must hold integers"),
        (lambda: schedules.delays([1, 1], [1, 0], order="backward_first"), "stage 1 .*last gradient delay of at least"),
    ],
)
def test_refuses_and_says_what_to_write(build, message):
    with pytest.raises(ScheduleError, match=message):
        build()


def test_weights_policies():
    policies = {name: PRESETS[name](2).weights for name in PRESETS}
    replaying = {"gpipe-1", "gpipe-3", "features_replay", "dsp", "dsp-long"}
    assert {name for name, weights in policies.items() if weights == "replay"} == replaying
    assert {name for name, weights in policies.items() if weights == "latest"} == {"backprop"}
    schedule = schedules.fdg(3)
    assert schedule.with_weights(None) is schedule
    changed = schedule.with_weights("latest")
    assert isinstance(changed, DelaySchedule) and changed.weights == "latest" and changed.ops(9) == schedule.ops(9)


@pytest.mark.parametrize(
    "build",
    [
        lambda: schedules.fdg(np.int64(3)),
        lambda: schedules.dsp(np.array([1, 1, 0]), np.array([4, 2, 0])),
        lambda: schedules.delays(np.array([1, 1]), np.array([1, 1])),
    ],
)
def test_numpy_integers_are_integers(build):
    assert build().lag == (4, 2, 0)


def test_schedules_need_no_jax():
    code = """
import sys
from jaxdecouple import schedules
schedules.validate(schedules.fdg(3))
schedules.staleness(schedules.adl(3), 4)
schedules.draw(schedules.gpipe(3, 2), 4)
print(sorted({name.split(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax", "optax"}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
