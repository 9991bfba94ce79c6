"""Validation names what is wrong with a schedule of one's own: tick, stage, batch, and what to write."""

import pytest

from jaxdecouple import schedules
from jaxdecouple.schedules import BACKWARD, FORWARD, WEIGHT, Op, ScheduleError, TableSchedule, validate


def F(stage, batch):
    return Op(FORWARD, stage, batch)


def B(stage, batch):
    return Op(BACKWARD, stage, batch)


def W(stage, batch):
    return Op(WEIGHT, stage, batch)


def table(*ticks, num_stages=2, period=1):
    return TableSchedule(name="mine", num_stages=num_stages, table=ticks, period=period)


# FDG with two stages: the last tick repeats.
FDG2 = [[F(0, 0)], [F(0, 1), F(1, 0)], [B(0, 0), F(0, 2), F(1, 1)]]


def changed(tick, ops):
    """FDG with the operations of one of its first three ticks exchanged, written out up to tick 3."""
    ticks = [*FDG2, [B(0, 1), F(0, 3), F(1, 2)]]
    ticks[tick] = ops
    return table(*ticks)


def test_a_table_repeats_its_last_ticks():
    for period in (1, 2, 3):
        ticks = [schedules.fdg(2).ops(t) for t in range(2 + period)]
        schedule = table(*ticks, period=period)
        assert [schedule.ops(t) for t in range(30)] == [schedules.fdg(2).ops(t) for t in range(30)]
        assert schedule.drain == 2
        validate(schedule)


def test_a_table_takes_plain_tuples():
    plain = table(*[[tuple(op) for op in tick] for tick in FDG2])
    assert plain == table(*FDG2)
    assert all(isinstance(op, Op) for op in plain.ops(7))


def test_a_table_may_group_batches():
    # Two batches up, two batches down, in rounds of two ticks.
    schedule = table([], [F(0, 0), F(1, 0), F(0, 1), F(1, 1), B(0, 0), B(0, 1)], period=2)
    assert schedule.drain == 1
    assert schedule.ops(4) == () and schedule.ops(5)[0] == F(0, 4)
    validate(schedule)


def test_operations_of_batches_before_the_first_are_left_out():
    # The steady state alone describes FDG: what it says of batches -1 and -2 never happens.
    schedule = table([B(0, -2), F(0, 0), F(1, -1)])
    assert [ops for _, ops in schedule.run(9)] == [ops for _, ops in schedules.fdg(2).run(9)]
    validate(schedule)


@pytest.mark.parametrize(
    ("ticks", "period", "message"),
    [
        ([], 1, "the table is empty; write the operations"),
        (FDG2, 0, "period is 0, but the table has 3 ticks; write how many of its last ticks repeat"),
        (FDG2, 4, "period is 4, but the table has 3 ticks"),
    ],
)
def test_refuses_a_period_beyond_the_table(ticks, period, message):
    with pytest.raises(ScheduleError, match=message):
        table(*ticks, period=period)


class Unsplit(TableSchedule):
    splits_backward = False


# what is wrong -> (schedule, message)
BROKEN = {
    "activation missing": (
        changed(1, [F(1, 0), F(1, 1), F(0, 1)]),
        "schedule 'mine', tick 1: FORWARD of batch 1 at stage 1: .* stage 0 has not forwarded batch 1",
    ),
    "activation missing within the tick": (
        table([F(1, 0), F(0, 0), B(0, 0)]),
        "tick 0: FORWARD of batch 0 at stage 1: its input does not exist yet",
    ),
    "gradient missing, above is the loss": (
        changed(1, [B(0, 0), F(0, 1), F(1, 0)]),
        "tick 1: BACKWARD of batch 0 at stage 0: its gradient .* comes from the FORWARD of batch 0 at stage 1",
    ),
    "gradient missing, above is not the loss": (
        table([F(0, 0), F(1, 0), F(2, 0), B(0, 0), B(1, 0)], num_stages=3),
        "tick 0: BACKWARD of batch 0 at stage 0: its gradient .* comes from the BACKWARD of batch 0 at stage 1",
    ),
    "not forwarded": (
        table([B(0, 0), F(0, 0), F(1, 0)]),
        "tick 0: BACKWARD of batch 0 at stage 0: it has not been forwarded at this stage yet",
    ),
    "backward twice in a tick": (
        changed(2, [B(0, 0), B(0, 0), F(0, 2), F(1, 1)]),
        "tick 2: BACKWARD of batch 0 at stage 0: was already done in tick 2; write it once",
    ),
    "backward twice": (
        changed(3, [B(0, 1), B(0, 0), F(0, 3), F(1, 2)]),
        "tick 3: BACKWARD of batch 0 at stage 0: was already done in tick 2; write it once",
    ),
    "forward twice": (
        changed(2, [B(0, 0), F(0, 2), F(1, 0), F(1, 1)]),
        "tick 2: FORWARD of batch 0 at stage 1: was already done in tick 1",
    ),
    "forwards out of order": (
        table([F(0, 0)], [F(0, 1), F(1, 1), F(1, 0), B(0, 0), B(0, 1)], period=2),
        "tick 1: FORWARD of batch 0 at stage 1: comes after batch 1: batches must cross an edge in order",
    ),
    "one batch left behind": (
        table([F(0, 0), F(1, 0)], [F(0, 1)], [F(0, 2), F(1, 2), F(1, 1), B(0, 0), B(0, 1), B(0, 2)], period=3),
        "tick 2: FORWARD of batch 1 at stage 1: comes after batch 2",
    ),
    "backwards out of order": (
        table([F(0, 0)], [F(0, 1), F(1, 0), F(1, 1), B(0, 1), B(0, 0)], period=2),
        "tick 1: BACKWARD of batch 0 at stage 0: comes after batch 1",
    ),
    "backward never happens": (
        table([F(0, 0)], [F(0, 1), F(1, 0)]),
        "the BACKWARD of batch 0 at stage 0 never happens within 1 ticks of its feeding; add it",
    ),
    "loss never happens": (
        changed(2, [B(0, 0), F(0, 2)]),
        "tick 3: BACKWARD of batch 1 at stage 0: its gradient .* comes from the FORWARD of batch 1 at stage 1",
    ),
    "one batch is forgotten": (
        table([F(0, 0), F(1, 0), B(0, 0)], [], period=2),
        "the FORWARD of batch 1 at stage 0 never happens",
    ),
    "a later batch is forgotten": (
        table(*([F(0, t), F(1, t), B(0, t)] if t != 7 else [] for t in range(9)), period=9),
        "the FORWARD of batch 7 at stage 0 never happens",
    ),
    "nothing happens": (table([]), "the FORWARD of batch 0 at stage 0 never happens"),
    "stage too high": (changed(2, [F(2, 0)]), "tick 2: FORWARD of batch 0 at stage 2: there are 2 stages; .* 0..1"),
    "stage negative": (changed(2, [B(-1, 0)]), "tick 2: BACKWARD of batch 0 at stage -1: there are 2 stages"),
    "backward at the last stage": (
        changed(2, [B(1, 0), B(0, 0), F(0, 2), F(1, 1)]),
        "tick 2: BACKWARD of batch 0 at stage 1: the last stage's FORWARD includes its backward; leave",
    ),
    "backward at the only stage": (
        table([F(0, 0), B(0, 0)], num_stages=1),
        "tick 0: BACKWARD of batch 0 at stage 0: the last stage's FORWARD includes its backward",
    ),
    "weight before the backward": (
        table([F(0, 0), F(1, 0), W(1, 0), W(0, 0), B(0, 0)]),
        "tick 0: WEIGHT of batch 0 at stage 0: it takes what the BACKWARD of batch 0 at stage 0 leaves, which has not",
    ),
    "weight before the loss": (
        table([F(0, 0), W(1, 0), F(1, 0), B(0, 0), W(0, 0)]),
        "tick 0: WEIGHT of batch 0 at stage 1: it takes what the FORWARD of batch 0 at stage 1 leaves, which has not",
    ),
    "weights out of order": (
        table([F(0, 0), F(1, 0), B(0, 0)], [F(0, 1), F(1, 1), B(0, 1), W(0, 1), W(0, 0), W(1, 0), W(1, 1)], period=2),
        "tick 1: WEIGHT of batch 0 at stage 0: comes after batch 1",
    ),
    "weights of one stage alone": (
        table([F(0, 0), F(1, 0), B(0, 0), W(0, 0)]),
        "the WEIGHT of batch 0 at stage 1 never happens",
    ),
    "weight of a backward that is not split": (
        Unsplit(name="mine", num_stages=2, table=([F(0, 0), F(1, 0), B(0, 0), W(0, 0)],)),
        "tick 0: WEIGHT of batch 0 at stage 0: the BACKWARD at stage 0 includes the gradient of its weights; leave",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_says_what_is_wrong(what):
    schedule, message = BROKEN[what]
    with pytest.raises(ScheduleError, match=message):
        validate(schedule)


def test_refuses_a_batch_that_is_not_fed_yet():
    with pytest.raises(ScheduleError):
        validate(table([F(0, 1), F(1, 1), B(0, 1)]))


def test_says_that_a_batch_is_not_fed_yet():
    early = table([F(0, 0), F(0, 1)], [F(1, 0), F(0, 2)], [F(1, 1), B(0, 0), F(0, 3)])
    with pytest.raises(ScheduleError, match="tick 0: FORWARD of batch 1 at stage 0: batch 1 is only fed in tick 1"):
        validate(early)


def test_follows_a_table_to_its_end():
    ticks = [[F(0, t), F(1, t), B(0, t)] for t in range(40)]
    ticks[30] = []
    with pytest.raises(ScheduleError, match="batch 30"):
        validate(table(*ticks, period=40))


RUNS = {
    "fdg": schedules.fdg(3),
    "ddg": schedules.ddg(3),
    "gpipe": schedules.gpipe(3, 3),
    "pipedream": schedules.pipedream(3),
    "dsp": schedules.dsp((2, 1, 0), (7, 3, 0)),
}
BATCHES = 5


def written_out(name):
    """A run over `BATCHES` batches, as a list of ticks of a table that may be tampered with."""
    return [list(ops) for _, ops in RUNS[name].run(BATCHES)]


def slots(ticks):
    return [(tick, index) for tick, ops in enumerate(ticks) for index in range(len(ops))]


@pytest.mark.parametrize("name", RUNS)
def test_every_operation_is_needed_once(name):
    ticks = written_out(name)
    validate(table(*ticks, num_stages=3), BATCHES)
    for tick, index in slots(ticks):
        without, twice = written_out(name), written_out(name)
        op = without[tick].pop(index)
        twice[-1].append(op)
        for broken in (without, twice):
            with pytest.raises(ScheduleError, match=f"batch {op.batch} at stage"):
                validate(table(*broken, num_stages=3), BATCHES)


def needs(op):
    """What must be dispatched before ``op`` in a run over three stages: its inputs, and the batch before it."""
    before = [op._replace(batch=op.batch - 1)] if op.batch else []
    if op.kind is FORWARD:
        return before + ([F(op.stage - 1, op.batch)] if op.stage else [])
    above = F(2, op.batch) if op.stage == 1 else B(op.stage + 1, op.batch)
    return [*before, F(op.stage, op.batch), above]


@pytest.mark.parametrize("name", RUNS)
def test_any_exchange_of_two_neighbours_is_refused_exactly_if_one_needs_the_other(name):
    ticks = written_out(name)
    refused = allowed = 0
    for tick, ops in enumerate(ticks):
        for index in range(len(ops) - 1):
            exchanged = written_out(name)
            exchanged[tick][index : index + 2] = ops[index + 1], ops[index]
            schedule = table(*exchanged, num_stages=3)
            if ops[index] in needs(ops[index + 1]):
                refused += 1
                with pytest.raises(ScheduleError, match=f"tick {tick}: "):
                    validate(schedule, BATCHES)
            else:
                allowed += 1
                validate(schedule, BATCHES)
    assert allowed
    assert bool(refused) == (name in ("ddg", "gpipe", "pipedream"))  # longer delays leave no dependence within a tick
    with pytest.raises(ScheduleError):
        validate(table(*reversed(ticks), num_stages=3), BATCHES)
