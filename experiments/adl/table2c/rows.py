"""ADL, Table 2(c): validation errors on ImageNet, Top 1 (the row's number) and Top 5 (``also``).

"max." in the paper: each module is one layer or one residual block, K = 10 for networks with 18 layers. The baseline
has one row for each network. The SENet is taken to be ResNet-18 with squeeze-and-excitation blocks, as its name says.
Top 5 is not measured here.
"""

from experiments.adl.strategy import BP, IMAGENET, MEDIAN, adl, stages
from experiments.reproduction.rows import Row, Table

R18, R50, SE18 = {"model": "resnet18"}, {"model": "resnet50"}, {"model": "se_resnet18"}

TABLE = Table(
    title="ADL, Table 2(c): Top 1 error on ImageNet",
    measure="final_error",
    statistic=MEDIAN,
    settings=IMAGENET,
    rows=(
        Row("resnet18/bp", R18 | BP, 29.79, "Top 5: 10.92"),
        Row("resnet18/K3/adl", R18 | adl() | stages(3), 29.52, "Top 5: 10.42"),
        Row("resnet18/K4/adl", R18 | adl() | stages(4), 29.64, "Top 5: 10.56"),
        Row("resnet18/K8/adl", R18 | adl() | stages(8), 29.75, "Top 5: 10.55"),
        Row("resnet18/K10/adl", R18 | adl() | stages(10), 29.84, "Top 5: 10.76"),
        Row("resnet50/bp", R50 | BP, 23.65, "Top 5: 7.13"),
        Row("resnet50/K4/adl", R50 | adl() | stages(4), 23.43, "Top 5: 7.45"),
        Row("se_resnet18/bp", SE18 | BP, 29.09, "Top 5: 9.89"),
        Row("se_resnet18/K8/adl", SE18 | adl() | stages(8), 29.01, "Top 5: 10.14"),
        Row("se_resnet18/K10/adl", SE18 | adl() | stages(10), 29.07, "Top 5: 10.32"),
    ),
)
