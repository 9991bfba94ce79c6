"""Thesis, Figure 22: learning curves of ResNet-56 and ResNet-110 on CIFAR-10, K = 2: the runs of Table 5."""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.table5.rows import TABLE as TABLE5

TABLE = Table(
    title="Thesis, Figure 22: learning curves of ResNet-56 and ResNet-110 on CIFAR-10, K = 2",
    measure="best_accuracy",
    statistic=TABLE5.statistic,
    settings={**TABLE5.settings, "dataset": "cifar10"},
    plot=True,
    rows=tuple(
        Row(row.name.removeprefix("cifar10/"), row.settings, row.paper, "number of Table 5")
        for row in TABLE5.rows
        if row.name.startswith("cifar10/")
    ),
)
