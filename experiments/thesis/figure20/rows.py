"""Thesis, Figures 20 and 21: loss curves and best accuracy of ResNet-110 on CIFAR-10, on K GPUs.

Figures without numbers, but for Table 5, whose ResNet-110 has K = 2. The claim (section 5.5.3): several GPUs do not
change the convergence, up to K = 4.
"""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import BEST, BP, DDG, SGD, stages

TABLE = Table(
    title="Thesis, Figures 20 and 21: ResNet-110 on CIFAR-10, DDG on K devices",
    measure="best_accuracy",
    statistic=BEST,
    settings={**SGD, "dataset": "cifar10", "model": "resnet110"},
    plot=True,
    rows=(
        Row("bp", BP, 93.53, "number of Table 5"),
        Row("K2/ddg", DDG | stages(2), 93.41, "number of Table 5"),
        Row("K3/ddg", DDG | stages(3)),
        Row("K4/ddg", DDG | stages(4)),
    ),
)
