"""Thesis, Figure 23: learning curves of ResNet-56 and ResNet-110 on CIFAR-100, K = 2: the runs of Table 5."""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.table5.rows import TABLE as TABLE5

TABLE = Table(
    title="Thesis, Figure 23: learning curves of ResNet-56 and ResNet-110 on CIFAR-100, K = 2",
    measure="best_accuracy",
    statistic=TABLE5.statistic,
    settings={**TABLE5.settings, "dataset": "cifar100"},
    plot=True,
    rows=tuple(
        Row(row.name.removeprefix("cifar100/"), row.settings, row.paper, "number of Table 5")
        for row in TABLE5.rows
        if row.name.startswith("cifar100/")
    ),
)
