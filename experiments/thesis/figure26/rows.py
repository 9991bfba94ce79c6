"""Thesis, Figure 26: the sufficient-direction constant of Features Replay; ResNet164 and ResNet101, K = 4, CIFAR-10.

A figure without numbers. The claims (section 6.5.2): sigma is above 0 all the time; that of lower modules is relatively
small in the first half of the epochs, and close to 1 afterwards.
"""

from experiments.reproduction.rows import Row, Table
from experiments.thesis.strategy import FR, SGD, stages

TABLE = Table(
    title="Thesis, Figure 26: sufficient-direction constant, CIFAR-10, K = 4",
    kind="diagnostics",
    measure="sigma",
    settings={**SGD, "dataset": "cifar10", **FR, **stages(4)},
    rows=(
        Row("resnet164", {"model": "resnet164"}),
        Row("resnet101", {"model": "resnet101"}),
    ),
)
