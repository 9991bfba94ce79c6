"""Thesis, Table 7: the best test errors of BP, DDG and FR on CIFAR-10 and CIFAR-100.

K is not said: 2 here, since DDG has a number for ResNet152, with which it does not converge for K = 4 (section 6.5.3).
ResNet164 has basic blocks, ResNet101 and ResNet152 have bottlenecks.
"""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import BEST, BP, DDG, FR, SGD, stages

# Network, data set, and the errors of BP, DDG and FR.
_ERRORS = (
    ("resnet164", "cifar10", 6.40, 6.45, 6.03),
    ("resnet164", "cifar100", 28.53, 28.51, 27.34),
    ("resnet101", "cifar10", 5.25, 5.35, 4.97),
    ("resnet101", "cifar100", 23.48, 24.25, 23.10),
    ("resnet152", "cifar10", 5.26, 5.72, 4.91),
    ("resnet152", "cifar100", 25.20, 26.39, 23.61),
)
_METHODS = {"bp": BP, "ddg": DDG | stages(2), "features_replay": FR | stages(2)}

TABLE = Table(
    title="Thesis, Table 7: best test error on CIFAR",
    measure="best_error",
    statistic=BEST,
    settings=SGD,
    rows=tuple(
        Row(f"{model}/{dataset}/{name}", {"model": model, "dataset": dataset, **_METHODS[name]}, error)
        for model, dataset, *errors in _ERRORS
        for name, error in zip(_METHODS, errors, strict=True)
    ),
)
