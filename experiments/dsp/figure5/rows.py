"""DSP, Figure 5: learning curves of ResNet18 and ResNet50 on ImageNet: the runs of Table 4."""

from experiments.dsp.table4.rows import TABLE as TABLE4
from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="DSP, Figure 5: learning curves on ImageNet, K = 3",
    measure="best_accuracy",
    statistic=TABLE4.statistic,
    settings=TABLE4.settings,
    plot=True,
    rows=tuple(Row(row.name, row.settings, row.paper, "number of Table 4") for row in TABLE4.rows),
)
