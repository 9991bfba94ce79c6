"""An operation is what a stage does with a batch, dispatched as one."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
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
