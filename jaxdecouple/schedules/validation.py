"""Validation executes a schedule on paper, and says what is wrong with it before a device would."""

from __future__ import annotations

from collections import defaultdict

from jaxdecouple.schedules.schedule import BACKWARD, FORWARD, WEIGHT, Kind, Op, Schedule, ScheduleError


def validate(schedule: Schedule, num_batches: int | None = None) -> None:
    """Checks that a run over ``num_batches`` batches, flush included, can be executed.

    Args:
      schedule: the schedule.
      num_batches: how many batches to follow; by default enough to fill, repeat and flush.

    Raises:
      ScheduleError: an operation whose input does not exist yet, one done twice, one at a stage that does not exist,
        batches that cross an edge out of order, a batch that is never finished. The message names tick, stage, batch.
    """
    num_batches = 2 * schedule.repeats + 8 if num_batches is None else num_batches
    done: dict[tuple[Kind, int], dict[int, int]] = defaultdict(dict)  # (kind, stage) -> {batch: tick}
    for tick in range(num_batches + schedule.drain if num_batches else 0):
        for op in schedule.window(tick, 0, num_batches):
            try:
                _check_op(schedule, op, tick, done)
            except ScheduleError as error:
                raise ScheduleError(f"schedule {schedule.name!r}, tick {tick}: {op}: {error}") from None
            done[op.kind, op.stage][op.batch] = tick
    _check_finished(schedule, num_batches, done)


def _check_op(schedule: Schedule, op: Op, tick: int, done: dict[tuple[Kind, int], dict[int, int]]) -> None:
    kind, stage, batch = op
    if not 0 <= stage < schedule.num_stages:
        raise ScheduleError(f"there are {schedule.num_stages} stages; write a stage of 0..{schedule.num_stages - 1}")
    if kind is BACKWARD and not schedule.has_backward(stage):
        which = "the last stage's" if stage == schedule.loss_stage else "a greedy stage's"
        raise ScheduleError(f"{which} FORWARD includes its backward; leave this operation out")
    if kind is WEIGHT and not schedule.splits_backward:
        raise ScheduleError(
            f"the {schedule.updates_in(stage).name} at stage {stage} includes the gradient of its weights; leave this "
            "operation out, or write a schedule whose splits_backward is True"
        )
    if batch in done[kind, stage]:
        raise ScheduleError(f"was already done in tick {done[kind, stage][batch]}; write it once")
    latest = max(done[kind, stage], default=-1)
    if batch < latest:
        raise ScheduleError(f"comes after batch {latest}: batches must cross an edge in order")
    if kind is FORWARD and stage == 0 and batch > tick:
        raise ScheduleError(f"batch {batch} is only fed in tick {batch}")
    if kind is FORWARD and stage > 0 and batch not in done[FORWARD, stage - 1]:
        raise ScheduleError(f"its input does not exist yet: stage {stage - 1} has not forwarded batch {batch}")
    if kind is BACKWARD:
        if batch not in done[FORWARD, stage]:
            raise ScheduleError("it has not been forwarded at this stage yet")
        above = schedule.gradient_source(stage, batch)
        if batch not in done[above.kind, above.stage]:
            raise ScheduleError(f"its gradient does not exist yet: it comes from the {above}, which has not happened")
    if kind is WEIGHT:
        before = schedule.kinds(stage)[-2]
        if batch not in done[before, stage]:
            raise ScheduleError(f"it takes what the {Op(before, stage, batch)} leaves, which has not happened yet")


def _check_finished(schedule: Schedule, num_batches: int, done: dict[tuple[Kind, int], dict[int, int]]) -> None:
    for stage in range(schedule.num_stages):
        for kind in schedule.kinds(stage):
            missing = sorted(set(range(num_batches)) - set(done[kind, stage]))
            if missing:
                raise ScheduleError(
                    f"schedule {schedule.name!r}: the {Op(kind, stage, missing[0])} never happens within "
                    f"{schedule.drain} ticks of its feeding; add it, or give the schedule a longer drain"
                )
