"""FDG, Figure 3(a)-(b): learning curves of WRN-28-10 on CIFAR-10 by all methods, K = 2, 3, 4.

The runs are those of Table VI. The caption does not say which beta is drawn for FDG: both are run.
"""

from experiments.fdg.table6.rows import TABLE as TABLE6
from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="FDG, Figure 3(a)-(b): learning curves of WRN-28-10 on CIFAR-10, K = 2, 3, 4",
    measure="final_error",
    statistic=TABLE6.statistic,
    settings=TABLE6.settings,
    plot=True,
    rows=tuple(
        Row(row.name.removeprefix("wrn28_10/"), row.settings, row.paper, "number of Table VI")
        for row in TABLE6.rows
        if row.name.startswith("wrn28_10/")
    ),
)
