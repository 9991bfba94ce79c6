"""Joining finds operations of a tick that one dispatch can do: a stage's backward and the forward that follows it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxdecouple.schedules.schedule import BACKWARD, FORWARD, Op


def join(ops: Sequence[Op]) -> list[tuple[Op, ...]]:
    """The tick's dispatches, in order: pairs ``(BACKWARD, FORWARD)`` of one stage, and single operations.

    Two operations are joined where nobody is kept waiting by it: the forward directly follows the backward in its
    stage's queue, its input was there before the tick, and the backward's gradient is not used within the tick. One
    program then turns the memory of the old activations into that of the new, and the host dispatches half as often.
    """
    present = set(ops)
    joined: set[Op] = set()
    dispatches: list[tuple[Op, ...]] = []
    for index, op in enumerate(ops):
        if op in joined:
            continue
        following = next((other for other in ops[index + 1 :] if other.stage == op.stage), None)
        if (
            op.kind is BACKWARD
            and following is not None
            and following.kind is FORWARD
            and following._replace(stage=op.stage - 1) not in present
            and op._replace(stage=op.stage - 1) not in present
        ):
            joined.add(following)
            dispatches.append((op, following))
        else:
            dispatches.append((op,))
    return dispatches
