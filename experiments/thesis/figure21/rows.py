"""Thesis, Figure 21: the computation time of ResNet-110 on CIFAR-10 on K GPUs (Titan X); its accuracies: figure20.

A bar chart without numbers. Section 5.5.3: "when we increase the number of GPUs from 2 to 4, our method reduces about
30% to 50% of the total computation time", that is, speed-ups of 1.43 with K = 2, and of "about 2 times" with K = 4.
"""

from experiments.reproduction.rows import Row, Table

TABLE = Table(
    title="Thesis, Figure 21: speed of ResNet-110 on CIFAR-10, K = 2, 3, 4",
    kind="speed",
    measure="speedup",
    statistic="a statement in the text",
    settings={"model": "resnet110", "image_size": 32, "batch_size": 128, "num_classes": 10, "method": "ddg"},
    rows=(
        Row("K2/ddg", {"num_stages": 2}, 1.43, "30 % less time"),
        Row("K3/ddg", {"num_stages": 3}),
        Row("K4/ddg", {"num_stages": 4}, 2.0, "50 % less time"),
    ),
)
