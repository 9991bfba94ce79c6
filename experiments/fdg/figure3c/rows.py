"""FDG, Figure 3(c): the error of ResNet-20 on CIFAR-10 by FDG with various beta, K = 2.

A bar chart without numbers. The text gives three: back-propagation, beta = 1 and beta = 0.2 (Table III). Which other
beta it shows is not said: here, every tenth.
"""

from experiments.fdg.strategy import BP, CIFAR, MEDIAN, fdg
from experiments.reproduction.rows import Row, Table

R20 = {"model": "resnet20"}

TABLE = Table(
    title="FDG, Figure 3(c): test error of ResNet-20 on CIFAR-10 against beta, K = 2",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "dataset": "cifar10"},
    rows=(
        Row("bp", R20 | BP, 7.78),
        Row("beta1", R20 | fdg(1.0), 7.92),
        Row("beta0.9", R20 | fdg(0.9)),
        Row("beta0.8", R20 | fdg(0.8)),
        Row("beta0.7", R20 | fdg(0.7)),
        Row("beta0.6", R20 | fdg(0.6)),
        Row("beta0.5", R20 | fdg(0.5)),
        Row("beta0.4", R20 | fdg(0.4)),
        Row("beta0.3", R20 | fdg(0.3)),
        Row("beta0.2", R20 | fdg(0.2), 7.23),
        Row("beta0.1", R20 | fdg(0.1)),
    ),
)
