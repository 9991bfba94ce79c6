"""Thesis, Table 5: the best Top 1 accuracy of ResNet-56 and ResNet-110, K = 2, cut at the center."""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import BEST, BP, DDG, SGD, stages

R56, R110 = {"model": "resnet56"}, {"model": "resnet110"}
C10, C100 = {"dataset": "cifar10"}, {"dataset": "cifar100"}
DDG2 = DDG | stages(2)

TABLE = Table(
    title="Thesis, Table 5: best accuracy on CIFAR, K = 2",
    measure="best_accuracy",
    statistic=BEST,
    settings=SGD,
    rows=(
        Row("cifar10/resnet56/bp", C10 | R56 | BP, 93.12),
        Row("cifar10/resnet56/ddg", C10 | R56 | DDG2, 93.11),
        Row("cifar10/resnet110/bp", C10 | R110 | BP, 93.53),
        Row("cifar10/resnet110/ddg", C10 | R110 | DDG2, 93.41),
        Row("cifar100/resnet56/bp", C100 | R56 | BP, 69.79),
        Row("cifar100/resnet56/ddg", C100 | R56 | DDG2, 70.17),
        Row("cifar100/resnet110/bp", C100 | R110 | BP, 71.90),
        Row("cifar100/resnet110/ddg", C100 | R110 | DDG2, 71.39),
    ),
)
