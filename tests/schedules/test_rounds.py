"""Synchronous rounds: the published orders, their bubbles by the timeline, and orders that cannot be."""

import pytest

from jaxdecouple import schedules
from jaxdecouple.planning import Times, timeline
from jaxdecouple.schedules import BACKWARD, FORWARD, WEIGHT, Op, RoundSchedule, ScheduleError


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


def test_zero_bubble_as_drawn():
    """Qi et al. (2024), Figure 3, top, for four stages and eight micro-batches.

    There, the last stage's forward and backward are two boxes.
    """
    schedule = schedules.zero_bubble(4, 8)
    drawn = [line.split("F8")[0].split()[2:] for line in schedules.draw(schedule, num_batches=16).splitlines()[1:]]
    assert " ".join(drawn[0]) == "F0 F1 F2 F3 B0 W0 F4 B1 W1 F5 B2 W2 F6 B3 W3 F7 B4 W4 B5 W5 B6 W6 B7 W7"
    assert " ".join(drawn[1]) == "F0 F1 F2 B0 F3 B1 W0 F4 B2 W1 F5 B3 W2 F6 B4 W3 F7 B5 W4 B6 W5 B7 W6 W7"
    assert " ".join(drawn[2]) == "F0 F1 B0 F2 B1 F3 B2 W0 F4 B3 W1 F5 B4 W2 F6 B5 W3 F7 B6 W4 B7 W5 W6 W7"
    assert " ".join(drawn[3]) == "F0 F1 F2 F3 W0 F4 W1 F5 W2 F6 W3 F7 W4 W5 W6 W7"


@pytest.mark.parametrize(("num_stages", "chunks"), [(1, 2), (2, 2), (3, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("times", [(1, 1, 1), (2, 3, 1), (3, 1, 2)], ids=str)
def test_the_bubble_of_zero_bubble(num_stages, chunks, times):
    """(K-1)(T_F + T_B - T_W) a round, for equal stages; 1F1B's is (K-1)(T_F + T_B + T_W): Table 2 of the paper."""
    (forward, backward, weight), edges = times, num_stages - 1
    seconds = Times(
        forward=[forward] * num_stages, backward=[backward + weight] * num_stages, weight=[weight] * num_stages
    )
    run = timeline(schedules.zero_bubble(num_stages, chunks), seconds)
    assert [chunks * idle for idle in run.idle] == pytest.approx([edges * (forward + backward - weight)] * num_stages)
    plain = timeline(schedules.one_forward_one_backward(num_stages, chunks), seconds)
    assert [chunks * idle for idle in plain.idle] == pytest.approx([edges * sum(times)] * num_stages)


@pytest.mark.parametrize("preset", [schedules.one_forward_one_backward, schedules.zero_bubble])
def test_a_short_run_is_not_taken_for_one_without_bubbles(preset):
    """The busy middle of a round looks steady, if one does not know how long a round is."""
    times = Times(forward=[1] * 4, backward=[2] * 4)
    assert (
        timeline(preset(4, 8), times, num_batches=48).seconds_per_batch
        == timeline(preset(4, 8), times).seconds_per_batch
    )


def test_a_long_gradient_of_weights_leaves_zero_bubble_its_backwards():
    run = timeline(schedules.zero_bubble(4, 8), Times(forward=[1] * 4, backward=[5] * 4, weight=[3] * 4))
    assert [8 * idle for idle in run.idle] == pytest.approx([3 * 2] * 4)  # (K-1) T_B


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
    [
        schedules.one_forward_one_backward(4, 6),
        schedules.interleaved(2, 6, loops=2),
        schedules.zero_bubble(4, 6),
        schedules.zero_bubble(4, 3),
    ],
    ids=lambda schedule: f"{schedule.name}-{schedule.chunks}",
)
def test_rounds_are_synchronous_and_bring_one_loss_a_tick(schedule):
    schedules.validate(schedule)
    assert all(not level for levels in schedules.staleness(schedule, schedule.chunks) for level in levels)
    assert schedules.is_synchronous(schedule, schedule.chunks)
    loss = FORWARD, schedule.loss_stage
    losses = [[op.batch for op in ops if op[:2] == loss] for _, ops in schedule.run(13)]
    assert [batch for batches in losses for batch in batches] == list(range(13)) and max(map(len, losses)) == 1


def test_the_gradient_of_the_weights_updates():
    """With an update of each micro-batch, one of them comes between a forward and its own: F0 F1 W0 F2 W1 F3 W2 W3."""
    assert schedules.staleness(schedules.zero_bubble(2, 4)) == ((1,), (1,))
    ages = [age for age in schedules.gradient_ages(schedules.zero_bubble(2, 4), 4) if age.stage == 1]
    assert [(age.forward_version, age.update_version) for age in ages] == [(0, 0), (0, 1), (1, 2), (2, 3)]


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
        (lambda: schedules.zero_bubble(2, 0), "chunks is 0; write an integer of at least 1"),
        (lambda: schedules.interleaved(2, 4, loops=1.5), "loops is 1.5; write an integer"),
        (lambda: rounds([Op(FORWARD, 0, 0), Op(BACKWARD, 0, 0)], []), "FORWARD of batch 0 at stage 1 is in no order"),
        (
            lambda: rounds([Op(BACKWARD, 0, 0), Op(FORWARD, 0, 0)], [Op(FORWARD, 1, 0)]),
            "waits for itself",
        ),
        (
            lambda: rounds([Op(FORWARD, 0, 0), Op(WEIGHT, 0, 0), Op(BACKWARD, 0, 0)], [Op(FORWARD, 1, 0)]),
            "BACKWARD of batch 0 at stage 0 waits for itself",
        ),
    ],
)
def test_orders_that_cannot_be_are_refused(make, message):
    with pytest.raises(ScheduleError, match=message):
        make()


def rounds(*orders):
    return RoundSchedule(name="mine", num_stages=2, chunks=1, orders=orders)
