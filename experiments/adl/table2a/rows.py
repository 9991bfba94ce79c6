"""ADL, Table 2(a): validation error of ResNet-56 on CIFAR-10, K = 16, against M."""

from experiments.adl.strategy import CIFAR, MEDIAN, adl
from experiments.reproduction.rows import DIVERGES, Row, Table

TABLE = Table(
    title="ADL, Table 2(a): error of ResNet-56 on CIFAR-10 against M, K = 16",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "model": "resnet56", "num_stages": 16},
    rows=(
        Row("M1", adl(1), DIVERGES),
        Row("M2", adl(2), DIVERGES),
        Row("M3", adl(3), DIVERGES),
        Row("M4", adl(4), 6.38),
        Row("M5", adl(5), 6.90),
        Row("M6", adl(6), 6.92),
        Row("M7", adl(7), 6.79),
        Row("M8", adl(8), 6.49),
        Row("M9", adl(9), 6.78),
        Row("M10", adl(10), 6.44),
        Row("M11", adl(11), 6.65),
        Row("M12", adl(12), 6.86),
    ),
)
