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
import pathlib

import numpy as np

from experiments.asynchronous import figures, networks, scales
from experiments.asynchronous.scales import option
from experiments.report.workdir import Workdir
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.data.sources import load

CLAIM = (
    "SGD is faster than SVRG in the first 20 iterations and slower after them; SGD_SVRG, which begins with 10 epochs "
    "of SGD, is best. On training and test error SVRG and SGD_SVRG are better in the long run (section 2.5.1)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(networks.Setting):
    """What is trained, and how; each field is a flag."""

    coordinates: int = option(1000, "random coordinates of w that an update of SVRG changes; 0: all", least=0)


def run(setting: Setting, workdir: pathlib.Path, *, overwrite: bool = False) -> str:
    """Measures, writes everything, and returns table.md.

    Raises:
      ValueError: settings that cannot be used.
    """
    setting.check()
    with scales.precision(setting.dtype):
        source = load(setting.data, dtype=np.dtype(setting.dtype), seed=setting.seed)
        source = source.first(setting.num_examples, setting.num_tests)
        solver = asynchronous.distributed_asysvrg
        if setting.coordinates:
            solver = functools.partial(asynchronous.shared_asysvrg, coordinates=setting.coordinates)
        study = networks.Study(setting, source, solver)
        output = Workdir(workdir, scales.described(setting), overwrite=overwrite)
        runs = networks.compare(study)
    shape = f"{source.x.shape[1]}-{setting.hidden}-{study.problem.phi.num_classes}"
    title = f"{shape} on {source.x.shape[0]} images of {source.name}, l2 = {setting.l2:g}"
    chosen = f"{setting.coordinates or 'all'} of {study.problem.d} coordinates in an update of SVRG"
    return networks.finish(output, setting, runs, CLAIM, "figure1.png", f"{title}, {chosen}")


if __name__ == "__main__":
    figures.start("figure1", Setting, run)
