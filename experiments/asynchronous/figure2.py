"""The speed-up of Shared-AsySVRG with 1 to 32 threads (thesis, Figure 2).

    python -m experiments.asynchronous.figure2
    python -m experiments.asynchronous.figure2 --engine=local --workers=1,2

Time is that of a virtual clock, or of real processes that share memory, with --engine=local. Speed-up is the time of
one thread to a training loss that all reach, by that of K threads (eq. 2.52). The network is that of figure1.

The directory gets results.json, table.md and figure2.png.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from experiments.asynchronous import speedups
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure2(speedups.Scaling):
    """What is trained, and how; each field is a flag."""

    coordinates: int = option(1000, "random coordinates of w that an update changes", least=1)
    example_seconds: float = option(1e-5, "virtual clock: a gradient of one example", least=0)
    message_seconds: float = option(1e-6, "virtual clock: reading the shared vector", least=0)
    update_seconds: float = option(1e-6, "virtual clock: the part of an update that threads do one by one", least=0)

    name = "figure2"
    claim = (
        "All numbers of threads reach a similar training loss; the speed-up is nearly linear, until their number "
        "exceeds a threshold (section 2.5.1)."
    )

    def solver(self) -> Callable[..., Result]:
        return functools.partial(asynchronous.shared_asysvrg, coordinates=self.coordinates)


if __name__ == "__main__":
    Figure2.start()
