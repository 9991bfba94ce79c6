"""FDG, Table VI: the Top 1 errors of ResNet-56 and WRN-28-10 on CIFAR-10, K = 2, 3, 4.

Networks with K = 3, 4 are warmed up. Back-propagation has one row for each network: the paper repeats its number.
DDG's ResNet-56 with K = 2 is 6.60 here and 6.63 in Table III.
"""

from experiments.fdg.strategy import BP, CIFAR, DDG, DGL, FR, MEDIAN, WARMUP, fdg
from experiments.reproduction.rows import Row, Table

R56, WRN = {"model": "resnet56"}, {"model": "wrn28_10"}
K2, K3, K4 = {"num_stages": 2}, {"num_stages": 3, **WARMUP}, {"num_stages": 4, **WARMUP}

TABLE = Table(
    title="FDG, Table VI: test error on CIFAR-10, K = 2, 3, 4",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "dataset": "cifar10"},
    rows=(
        Row("resnet56/bp", R56 | BP, 6.19),
        Row("resnet56/K2/ddg", R56 | DDG | K2, 6.60),
        Row("resnet56/K2/dgl", R56 | DGL | K2, 6.77),
        Row("resnet56/K2/features_replay", R56 | FR | K2, 6.07),
        Row("resnet56/K2/fdg_beta1", R56 | fdg(1.0) | K2, 6.20),
        Row("resnet56/K2/fdg_beta0.5", R56 | fdg(0.5) | K2, 5.90),
        Row("resnet56/K3/ddg", R56 | DDG | K3, 6.50),
        Row("resnet56/K3/dgl", R56 | DGL | K3, 8.88),
        Row("resnet56/K3/features_replay", R56 | FR | K3, 6.33),
        Row("resnet56/K3/fdg_beta1", R56 | fdg(1.0) | K3, 6.40),
        Row("resnet56/K3/fdg_beta0.2", R56 | fdg(0.2) | K3, 6.08),
        Row("resnet56/K4/ddg", R56 | DDG | K4, 6.61),
        Row("resnet56/K4/dgl", R56 | DGL | K4, 9.65),
        Row("resnet56/K4/features_replay", R56 | FR | K4, 6.48),
        Row("resnet56/K4/fdg_beta1", R56 | fdg(1.0) | K4, 6.83),
        Row("resnet56/K4/fdg_beta0.3", R56 | fdg(0.3) | K4, 6.14),
        Row("wrn28_10/bp", WRN | BP, 4.01),
        Row("wrn28_10/K2/ddg", WRN | DDG | K2, 4.05),
        Row("wrn28_10/K2/dgl", WRN | DGL | K2, 4.12),
        Row("wrn28_10/K2/features_replay", WRN | FR | K2, 3.87),
        Row("wrn28_10/K2/fdg_beta1", WRN | fdg(1.0) | K2, 4.13),
        Row("wrn28_10/K2/fdg_beta0.7", WRN | fdg(0.7) | K2, 3.85),
        Row("wrn28_10/K3/ddg", WRN | DDG | K3, 4.12),
        Row("wrn28_10/K3/dgl", WRN | DGL | K3, 4.91),
        Row("wrn28_10/K3/features_replay", WRN | FR | K3, 6.16),
        Row("wrn28_10/K3/fdg_beta1", WRN | fdg(1.0) | K3, 4.19),
        Row("wrn28_10/K3/fdg_beta0.5", WRN | fdg(0.5) | K3, 4.07),
        Row("wrn28_10/K4/ddg", WRN | DDG | K4, 6.61),
        Row("wrn28_10/K4/dgl", WRN | DGL | K4, 5.64),
        Row("wrn28_10/K4/features_replay", WRN | FR | K4, 5.39),
        Row("wrn28_10/K4/fdg_beta1", WRN | fdg(1.0) | K4, 6.50),
        Row("wrn28_10/K4/fdg_beta0.5", WRN | fdg(0.5) | K4, 4.42),
    ),
)
