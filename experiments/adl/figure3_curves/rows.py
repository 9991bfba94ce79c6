"""ADL, Figure 3, learning curves: ResNet-34 with K = 12 and ResNet-56 with K = 16 on CIFAR-10.

The runs are those of Table 2(b). DSP is left out in the paper, too.
"""

from experiments.adl.table2b.rows import TABLE as TABLE2B
from experiments.reproduction.rows import Row, Table

SHOWN = ("resnet34/bp", "resnet34/K12/", "resnet56/bp", "resnet56/K16/")

TABLE = Table(
    title="ADL, Figure 3: learning curves on CIFAR-10",
    measure="final_error",
    statistic=TABLE2B.statistic,
    settings=TABLE2B.settings,
    plot=True,
    rows=tuple(
        Row(row.name, row.settings, row.paper, "number of Table 2(b)")
        for row in TABLE2B.rows
        if row.name.startswith(SHOWN)
    ),
)
