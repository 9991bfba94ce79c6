"""Synchronous rounds: the published orders, their bubbles by the timeline, and orders that cannot be."""

import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Times, timeline
from jaxdecouple.schedules import BACKWARD, FORWARD, Op, RoundSchedule, ScheduleError


def test_one_forward_one_backward_as_drawn():
    schedule = schedules.one_forward_one_backward(3, 4)
    assert " ".join(order_of(schedule, 0, 8)[:8]) == "F0@0 F1@0 F2@0 B0@0 F3@0 B1@0 B2@0 B3@0"
    drawn = schedules.draw(schedule, num_batches=8)
    assert drawn.splitlines()[1].split("F4")[0].split() == "stage 0 F0 F1 F2 B0 F3 B1 B2 B3".split()
    assert drawn.splitlines()[2].split("F4")[0].split() == "stage 1 F0 F1 B0 F2 B1 F3 B2 B3".split()
    assert drawn.splitlines()[3].split() == ["stage", "2", *(f"F{n}" for n in range(8))]


def order_of(schedule, device, num_batches):
    """What a device does in a run, as ``F0@4``: batch 0 at stage 4."""
    ops = [op for _, ops in schedule.run(num_batches) for op in ops]
    return [f"{op.kind.value}{op.batch}@{op.stage}" for op in ops if schedule.devices[op.stage] == device]


def test_interleaved_is_the_published_order():
    """Narayanan et al. (2021), Figure 4, for two devices with two stages each and four micro-batches.

    Device 1's last stage does a batch's backward with its forward.
    """
    schedule = schedules.interleaved(2, 4, loops=2)
    assert schedule.devices == (0, 1, 0, 1)
    first, second = (" ".join(order_of(schedule, device, 4)) for device in (0, 1))
    assert first == ("F0@0 F1@0 F0@2 F1@2 F2@0 B0@2 F3@0 B1@2 F2@2 B0@0 F3@2 B1@0 B2@2 B3@2 B2@0 B3@0")
    assert second == "F0@1 F1@1 F0@3 F1@3 F2@1 B0@1 F3@1 B1@1 F2@3 F3@3 B2@1 B3@1"


@pytest.mark.parametrize(("num_stages", "chunks"), [(1, 2), (2, 4), (4, 8), (4, 3), (8, 16)])
def test_the_bubble_of_one_forward_one_backward(num_stages, chunks):
    """(K-1)/(M+K-1) of the time, for equal stages; and never more than K-k batches in flight at stage k."""
    schedule = schedules.one_forward_one_backward(num_stages, chunks)
    run = timeline(schedule, Times(forward=[1.0] * num_stages, backward=[2.0] * num_stages))
    bubble = (num_stages - 1) / (chunks + num_stages - 1)
    assert [1 - busy for busy in run.busy] == pytest.approx([bubble] * num_stages)
    for k in range(num_stages - 1):
        flying, most = 0, 0
        for op in (op for _, ops in schedule.run(2 * chunks) for op in ops if op.stage == k):
            flying += 1 if op.kind is FORWARD else -1
            most = max(most, flying)
        assert most == min(num_stages - k, chunks)


@pytest.mark.parametrize(("num_devices", "chunks", "loops"), [(2, 4, 2), (4, 8, 2), (4, 8, 3), (4, 16, 4), (2, 2, 3)])
def test_the_bubble_of_interleaved(num_devices, chunks, loops):
    """A v-th of 1F1B's: (D-1)/(v M + D-1) of the time."""
    schedule = schedules.interleaved(num_devices, chunks, loops=loops)
    stages = num_devices * loops
    run = timeline(schedule, Times(forward=[1.0] * stages, backward=[2.0] * stages), devices=schedule.devices)
    bubble = (num_devices - 1) / (loops * chunks + num_devices - 1)
    assert [1 - busy for busy in run.busy] == pytest.approx([bubble] * num_devices)


@pytest.mark.parametrize(
    "schedule",
    [schedules.one_forward_one_backward(4, 6), schedules.interleaved(2, 6, loops=2)],
    ids=lambda schedule: schedule.name,
)
def test_rounds_are_synchronous_and_bring_one_loss_a_tick(schedule):
    schedules.validate(schedule)
    assert all(not level for levels in schedules.staleness(schedule, schedule.chunks) for level in levels)
    losses = [[op.batch for op in ops if op.stage == schedule.loss_stage] for _, ops in schedule.run(13)]
    assert [batch for batches in losses for batch in batches] == list(range(13)) and max(map(len, losses)) == 1


def test_paci_crosses_few_updates():
    for num_stages in (2, 4, 8):
        for accumulate in (1, 2, 3, 8):
            levels = schedules.staleness(schedules.paci(num_stages), accumulate)
            assert max(max(level) for level in levels) == -(-(num_stages - 1) // accumulate)
    assert schedules.paci(4).weights == "latest"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.interleaved(4, 6, loops=2), "chunks is 6, but 4 devices .* groups of 4; write 4 or 8"),
        (lambda: schedules.interleaved(4, 2, loops=2), "chunks is 2, .* write 4 or 8"),
        (lambda: schedules.one_forward_one_backward(0, 4), "num_devices is 0; write an integer of at least 1"),
        (lambda: schedules.interleaved(2, 4, loops=1.5), "loops is 1.5; write an integer"),
        (lambda: rounds([Op(FORWARD, 0, 0), Op(BACKWARD, 0, 0)], []), "FORWARD of batch 0 at stage 1 is in no order"),
        (
            lambda: rounds([Op(BACKWARD, 0, 0), Op(FORWARD, 0, 0)], [Op(FORWARD, 1, 0)]),
            "waits for itself",
        ),
    ],
)
def test_orders_that_cannot_be_are_refused(make, message):
    with pytest.raises(ScheduleError, match=message):
        make()


def rounds(*orders):
    return RoundSchedule(name="mine", num_stages=2, chunks=1, orders=orders)
