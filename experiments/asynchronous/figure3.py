"""SGD, SVRG and SGD_SVRG on features of CIFAR-10 (thesis, Figure 3): loss and errors of a network against epochs.

    python -m experiments.asynchronous.figure3
    python -m experiments.asynchronous.figure3 --scale=thesis --data=npz:cifar10.npz
    python -m experiments.asynchronous.figure3 --features=npz:runs/features/features.npz

SVRG is Distributed-AsySVRG. The thesis: 384-50-10 with l2 = 1e-4, 20000 training and 4000 test images, whose 384
features come from a convolutional network (see features), mini-batches of 10, m = 2000, and 1 epoch of SGD before
SGD_SVRG.

The directory gets results.json, table.md, figure3.png, and features.npz unless --features is given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments import devices
from experiments.asynchronous import features, networks
from experiments.asynchronous.curves import Curve
from experiments.report.workdir import Workdir
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous.sources import load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure3(networks.Training):
    """What is trained, and how; each field is a flag."""

    data: str = option("digits", "images: npz:PATH or digits", thesis="npz:cifar10.npz")
    features: str = option("", "npz:PATH of features that are there already, in place of data")
    num_examples: int = option(0, "features of the first so many training images; 0: all", thesis=20_000, least=0)
    num_tests: int = option(0, "features of the first so many test images; 0: all", thesis=4_000, least=0)
    cnn_examples: int = option(1000, "training images for the convolutional network; 0: all", thesis=0, least=0)
    cnn_epochs: int = option(3, "its passes over them", thesis=20, least=1)
    filters: int = option(32, "of each of its convolutions", thesis=64, least=1)
    hidden: int = option(50, "units of the hidden layer", least=1)
    l2: float = option(1e-4, "C, weight of the regularisation", least=0)
    inner_steps: int = option(
        0, "m, updates of an outer iteration; 0: as many as read n examples", thesis=2_000, least=0
    )
    sgd_epochs: int = option(1, "epochs of SGD before SVRG, in SGD_SVRG", least=1)
    epochs: int = option(60, "gradients of single examples, by n, for each method", thesis=150, least=1)

    name = "figure3"
    claim = (
        "SGD is fastest in the first few iterations, and then SVRG and SGD_SVRG are better, SGD_SVRG before SVRG, in "
        "training loss and training error; the test errors of the three are comparable (section 2.5.2)."
    )
    interrupted = "config.json was written, and features.npz if that was done"

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        more = {}
        if self.features:
            source = load(self.features, dtype=np.dtype(self.dtype)).first(self.num_examples, self.num_tests)
        else:
            names = [field.name for field in dataclasses.fields(features.Extraction) if hasattr(self, field.name)]
            with devices.precision("float32"):
                source, error = features.extract(features.Extraction(**{name: getattr(self, name) for name in names}))
            features.save(source, output.file("features.npz"))
            more = {"error of the network of the features": round(error, 5)}
            parts = {name: getattr(source, name).astype(self.dtype) for name in ("x", "x_test")}
            source = dataclasses.replace(source, **parts)
        return networks.compare(networks.Study(self, source, asynchronous.distributed_asysvrg)), more


if __name__ == "__main__":
    Figure3.start()
