"""DSP, Table 4: the best Top 1 test accuracy of ResNet18 and ResNet50 on ImageNet, K = 3."""

from experiments.dsp.strategy import BEST, BP, FR, IMAGENET, K3, stages
from experiments.reproduction.rows import Row, Table

R18, R50 = {"model": "resnet18"}, {"model": "resnet50"}

TABLE = Table(
    title="DSP, Table 4: best test accuracy on ImageNet, K = 3",
    measure="best_accuracy",
    statistic=BEST,
    settings=IMAGENET,
    rows=(
        Row("resnet18/bp", R18 | BP, 69.89),
        Row("resnet18/features_replay", R18 | FR | stages(3), 68.94),
        Row("resnet18/dsp_110_420", R18 | K3["dsp_110_420"], 68.95),
        Row("resnet50/bp", R50 | BP, 75.35),
        Row("resnet50/features_replay", R50 | FR | stages(3), 74.47),
        Row("resnet50/dsp_110_420", R50 | K3["dsp_110_420"], 74.91),
    ),
)
