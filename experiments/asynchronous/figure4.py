"""The speed-up of Distributed-AsySVRG with 1 to 10 workers (thesis, Figure 4).

    python -m experiments.asynchronous.figure4
    python -m experiments.asynchronous.figure4 --scale=thesis --data=npz:runs/features/features.npz
    python -m experiments.asynchronous.figure4 --engine=local --workers=1,2

Time is that of a virtual clock, or of real workers, with --engine=local or --engine=ray. Speed-up is the time of one
worker to a training loss that all reach, by that of K workers (eq. 2.52). The network is that of figure3; the features
of the thesis's CIFAR-10 are made by experiments.asynchronous.features.

The directory gets results.json, table.md and figure4.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.asynchronous import speedups
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure4(speedups.Scaling):
    """What is trained, and how; each field is a flag."""

    data: str = option("digits", "features: npz:PATH, or digits", thesis="npz:features.npz")
    num_examples: int = option(0, "the first so many training examples; 0: all", thesis=20_000, least=0)
    hidden: int = option(50, "units of the hidden layer", least=1)
    l2: float = option(1e-4, "C, weight of the regularisation", least=0)
    inner_steps: int = option(1_000, "m, updates of an outer iteration", thesis=2_000, least=0)
    workers: tuple[int, ...] = option((1, 2, 4, 6, 8, 10), "numbers of workers", thesis=tuple(range(1, 11)), least=1)
    example_seconds: float = option(1e-5, "virtual clock: a gradient of one example", least=0)
    message_seconds: float = option(1e-4, "virtual clock: the way to the server and back", least=0)
    update_seconds: float = option(1e-5, "virtual clock: an update by the server", least=0)

    name = "figure4"
    claim = "The speed-up is nearly linear in the number of workers (section 2.5.2)."

    def solver(self) -> Callable[..., Result]:
        return asynchronous.distributed_asysvrg


if __name__ == "__main__":
    Figure4.start()
