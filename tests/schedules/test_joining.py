"""Joining changes how operations are dispatched, never which, and keeps nobody waiting."""

import pytest

from jaxdecouple import schedules
from jaxdecouple.schedules import BACKWARD, FORWARD, Op


def test_fdg_dispatches_each_stage_once_per_tick():
    joined = schedules.join(schedules.fdg(3).ops(6))
    assert joined == [
        (Op(BACKWARD, 1, 3), Op(FORWARD, 1, 5)),
        (Op(BACKWARD, 0, 2), Op(FORWARD, 0, 6)),
        (Op(FORWARD, 2, 4),),
    ]


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.fdg(3, order="forward_first"),  # the forward comes before the backward
        schedules.ddg(3),
        schedules.delays((1, 1), (0, 1), order="backward_first").with_weights("replay"),
        schedules.delays((0, 0), (1, 1), order="backward_first"),
    ],
    ids=["forward first", "ddg", "gradient used within the tick", "input made within the tick"],
)
def test_nothing_is_joined_that_would_keep_a_neighbour_waiting(schedule):
    for tick in range(20):
        pairs = [pair for pair in schedules.join(schedule.ops(tick)) if len(pair) == 2]
        # In the last two, stage 0 has no neighbour below, and stage 1 hands its gradient, or gets its input, at once.
        assert all(pair[0].stage == 0 for pair in pairs)
        assert schedule.order == "backward_first" or not pairs


@pytest.mark.parametrize("schedule", [schedules.fdg(5), schedules.dsp((2, 2, 0), (6, 3, 0)), schedules.gpipe(3, 4)])
def test_every_operation_is_dispatched_once_and_in_the_order_of_its_stage(schedule):
    for tick in range(30):
        ops = schedule.ops(tick)
        dispatched = [op for dispatch in schedules.join(ops) for op in dispatch]
        assert sorted(dispatched, key=str) == sorted(ops, key=str)
        for stage in range(schedule.num_stages):
            assert [op for op in dispatched if op.stage == stage] == [op for op in ops if op.stage == stage]
