"""An operation is what a stage does with a batch, dispatched as one."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Kind(enum.StrEnum):
    """What an operation does with its batch."""

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"


FORWARD, BACKWARD, WEIGHT = Kind


class Op(NamedTuple):
    """One asynchronous dispatch: ``kind`` of ``batch`` on the device of ``stage``."""

    kind: Kind
    stage: int
    batch: int

    def __str__(self) -> str:
        return f"{self.kind.name} of batch {self.batch} at stage {self.stage}"


def as_ops(rows: Iterable[Iterable[Sequence[Any]]]) -> tuple[tuple[Op, ...], ...]:
    """Rows of operations, from `Op` or from what JSON makes of it."""
    return tuple(tuple(Op(Kind(kind), *place) for kind, *place in row) for row in rows)
