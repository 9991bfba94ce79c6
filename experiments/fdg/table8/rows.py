"""FDG, Table VIII (appendix A): forward first or backward first within an iteration, on CIFAR-10, K = 2."""

from experiments.fdg.strategy import CIFAR, MEDIAN, fdg
from experiments.reproduction.rows import Row, Table

R20, R56 = {"model": "resnet20"}, {"model": "resnet56"}
FORWARD, BACKWARD = {"order": "forward_first"}, {"order": "backward_first"}

TABLE = Table(
    title="FDG, Table VIII: forward first or backward first, test error on CIFAR-10, K = 2",
    measure="final_error",
    statistic=MEDIAN,
    settings={**CIFAR, "dataset": "cifar10"},
    rows=(
        Row("resnet20/forward_beta1", R20 | fdg(1.0) | FORWARD, 8.03),
        Row("resnet20/forward_beta0.2", R20 | fdg(0.2) | FORWARD, 7.57),
        Row("resnet20/backward_beta1", R20 | fdg(1.0) | BACKWARD, 7.92),
        Row("resnet20/backward_beta0.2", R20 | fdg(0.2) | BACKWARD, 7.23),
        Row("resnet56/forward_beta1", R56 | fdg(1.0) | FORWARD, 6.20),
        Row("resnet56/forward_beta0.5", R56 | fdg(0.5) | FORWARD, 5.94),
        Row("resnet56/backward_beta1", R56 | fdg(1.0) | BACKWARD, 6.20),
        Row("resnet56/backward_beta0.5", R56 | fdg(0.5) | BACKWARD, 5.90),
    ),
)
