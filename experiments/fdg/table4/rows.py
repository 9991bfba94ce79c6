"""FDG, Table IV: the Top 1 errors of various networks on CIFAR-100, K = 2.

As in Table III: a row is the paper's own run (its number with a star), ``also`` what the original authors report.
"""

from experiments.fdg.strategy import BP, CIFAR, DDG, DGL, FR, MEDIAN, WARMUP, fdg
from experiments.reproduction.rows import Row, Table

R56, R110 = {"model": "resnet56"}, {"model": "resnet110", **WARMUP}
R18, WRN = {"model": "resnet18"}, {"model": "wrn28_10"}

TABLE = Table(
    title="FDG, Table IV: test error on CIFAR-100, K = 2",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "dataset": "cifar100"},
    rows=(
        Row("resnet56/bp", R56 | BP, 27.68, "30.21 by its authors"),
        Row("resnet56/ddg", R56 | DDG, 28.44, "29.83 by its authors"),
        Row("resnet56/dgl", R56 | DGL, 29.51),
        Row("resnet56/features_replay", R56 | FR, 28.39),
        Row("resnet56/fdg_beta1", R56 | fdg(1.0), 27.87),
        Row("resnet56/fdg_beta0.4", R56 | fdg(0.4), 27.49),
        Row("resnet110/bp", R110 | BP, 25.82, "28.10 by its authors"),
        Row("resnet110/ddg", R110 | DDG, 27.16, "28.61 by its authors"),
        Row("resnet110/dgl", R110 | DGL, 26.80),
        Row("resnet110/features_replay", R110 | FR, 26.31),
        Row("resnet110/fdg_beta1", R110 | fdg(1.0), 25.73),
        Row("resnet110/fdg_beta0.5", R110 | fdg(0.5), 25.43),
        Row("resnet18/bp", R18 | BP, 22.35),
        Row("resnet18/ddg", R18 | DDG, 22.74),
        Row("resnet18/dgl", R18 | DGL, 22.24),
        Row("resnet18/features_replay", R18 | FR, 22.88),
        Row("resnet18/fdg_beta1", R18 | fdg(1.0), 22.78),
        Row("resnet18/fdg_beta0.5", R18 | fdg(0.5), 22.18),
        Row("wrn28_10/bp", WRN | BP, 19.6, "19.2 by its authors"),
        Row("wrn28_10/fdg_beta1", WRN | fdg(1.0), 20.28),
        Row("wrn28_10/fdg_beta0.6", WRN | fdg(0.6), 19.08),
    ),
)
