"""SGD, SVRG and SGD_SVRG on images of digits (thesis, Figure 1): loss and errors of a network against epochs.

    python -m experiments.asynchronous.figure1
    python -m experiments.asynchronous.figure1 --scale=thesis --data=npz:mnist.npz

SVRG is Shared-AsySVRG. The thesis: 784-100-10 with l2 = 1e-3, 10000 training and 2000 test images of MNIST,
mini-batches of 10, m = 1000, of each update 1000 random coordinates, the best step sizes of a grid.

The directory gets results.json, table.md and figure1.png.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.asynchronous import networks
from experiments.asynchronous.curves import Curve
from experiments.report.workdir import Workdir
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.sources import load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure1(networks.Training):
    """What is trained, and how; each field is a flag."""

    coordinates: int = option(1000, "random coordinates of w that an update of each method changes; 0: all", least=0)

    name = "figure1"
    claim = (
        "SGD is faster than SVRG in the first 20 iterations and slower after them; SGD_SVRG, which begins with 10 "
        "epochs of SGD, is best. On training and test error SVRG and SGD_SVRG are better in the long run (section "
        "2.5.1)."
    )

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        source = load(self.data, dtype=np.dtype(self.dtype), seed=self.seed)
        source = source.first(self.num_examples, self.num_tests)
        if not self.coordinates:
            return networks.compare(networks.Study(self, source, asynchronous.distributed_asysvrg)), {}
        both = asynchronous.shared_asysvrg, asynchronous.sgd
        solvers = [functools.partial(solver, coordinates=self.coordinates) for solver in both]
        return networks.compare(networks.Study(self, source, *solvers)), {}

    def title(self, about: Any) -> str:
        chosen = f"{self.coordinates or 'all'} of {about['d']} coordinates in an update"
        return f"{super().title(about)}, {chosen}"


if __name__ == "__main__":
    Figure1.start()
