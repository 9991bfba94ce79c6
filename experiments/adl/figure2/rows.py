"""ADL, Figure 2: the mean level of staleness (eq. 19) of modules 1 and 6 against M, K = 8.

The figure has no printed numbers: the paper's are eq. 17, averaged. The text speaks of "from 16 to 4" with M = 4, where
eq. 17 gives from 14 to 3.5 for module 1, the same 75 % less.
"""

from experiments.reproduction.rows import Row, Table


def _row(module: int, steps: int) -> Row:
    return Row(f"module{module}/M{steps}", {"stage": module - 1, "accumulate": steps}, 2 * (8 - module) / steps)


TABLE = Table(
    title="ADL, Figure 2: mean staleness against M, K = 8",
    kind="staleness",
    measure="staleness",
    statistic="eq. 17, averaged over a group",
    settings={"method": "adl", "num_stages": 8},
    rows=tuple(_row(module, steps) for module in (1, 6) for steps in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)),
)
