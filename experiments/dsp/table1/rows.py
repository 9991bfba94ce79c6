"""DSP, Table 1: the best Top 1 test accuracy of ResNet164 and ResNet98 on CIFAR-10 and CIFAR-100, K = 3 and 4."""

from experiments.dsp.strategy import BEST, BP, CIFAR, FR, K3, K4, stages
from experiments.reproduction.rows import Row, Table

# Method, and its accuracy with ResNet164 on CIFAR-10, on CIFAR-100, with ResNet98 on CIFAR-10, on CIFAR-100.
_COLUMNS = (
    ("resnet164/cifar10", {"model": "preact_resnet164", "dataset": "cifar10"}),
    ("resnet164/cifar100", {"model": "preact_resnet164", "dataset": "cifar100"}),
    ("resnet98/cifar10", {"model": "resnet98", "dataset": "cifar10"}),
    ("resnet98/cifar100", {"model": "resnet98", "dataset": "cifar100"}),
)
_ACCURACIES = (
    ("bp", BP, 94.41, 75.66, 93.38, 72.66),
    ("K3/features_replay", FR | stages(3), 94.55, 76.25, 93.60, 73.27),
    ("K3/dsp_110_420", K3["dsp_110_420"], 94.68, 76.05, 93.36, 72.99),
    ("K3/dsp_220_630", K3["dsp_220_630"], 93.98, 76.00, 93.68, 73.70),
    ("K3/dsp_330_1050", K3["dsp_330_1050"], 93.37, 76.29, 93.27, 73.38),
    ("K4/features_replay", FR | stages(4), 94.44, 75.84, 93.26, 72.41),
    ("K4/dsp_1110_6420", K4["dsp_1110_6420"], 94.32, 76.22, 93.41, 73.14),
    ("K4/dsp_2220_9630", K4["dsp_2220_9630"], 94.87, 75.59, 93.06, 72.89),
    ("K4/dsp_3330_151050", K4["dsp_3330_151050"], 93.34, 75.15, 93.45, 72.96),
)

TABLE = Table(
    title="DSP, Table 1: best test accuracy on CIFAR",
    measure="best_accuracy",
    statistic=BEST,
    settings=CIFAR,
    rows=tuple(
        Row(f"{column}/{name}", {**network, **method}, accuracies[index])
        for index, (column, network) in enumerate(_COLUMNS)
        for name, method, *accuracies in _ACCURACIES
    ),
)
