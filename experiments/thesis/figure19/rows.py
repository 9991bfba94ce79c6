"""Thesis, Figure 19: ResNet-8 on CIFAR-10 with 2, 3 and 4 split points.

A figure without numbers. The claims: DDG does as well as BP with any of them; DNI is unstable with more of them. Where
the points are is not said. Between blocks, 4 points leave no choice; 2 and 3 are where stages have equal operations.
"""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import ADAM, BP, DDG, DNI, stages

TABLE = Table(
    title="Thesis, Figure 19: ResNet-8 on CIFAR-10, several split points",
    measure="best_accuracy",
    settings={**ADAM, "dataset": "cifar10", "model": "resnet8"},
    plot=True,
    rows=(
        Row("bp", BP),
        *(
            Row(f"points{points}/{name}", {**method, **stages(points + 1)})
            for points in (2, 3, 4)
            for name, method in (("dni", DNI), ("ddg", DDG))
        ),
    ),
)
