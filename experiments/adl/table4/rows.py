"""ADL, Table 4: memory of training ResNet-18 with K = 4 and batches of 128, "the average GPU memory".

The paper's numbers are in GB: ``also``; beside ours stand their ratios to BP. The data set is not said: CIFAR-10 here.
Nor is it said how the memory of BP, on one GPU or on four, is averaged: here, all methods use K devices.
"""

from experiments.reproduction.rows import Row, Table

BP = 1.14  # GB

TABLE = Table(
    title="ADL, Table 4: memory of ResNet-18, K = 4",
    kind="memory",
    measure="ratio",
    settings={"model": "resnet18", "image_size": 32, "batch_size": 128, "num_classes": 10, "num_stages": 4},
    rows=(
        Row("bp", {"method": "backprop"}, 1.0, "1.14 GB"),
        Row("ddg", {"method": "ddg"}, 1.69 / BP, "1.69 GB"),
        Row("features_replay", {"method": "features_replay"}, 1.46 / BP, "1.46 GB"),
        Row("dgl", {"method": "dgl"}, 1.49 / BP, "1.49 GB"),
        Row("gpipe", {"method": "gpipe", "accumulate": 4}, 1.52 / BP, "1.52 GB"),
        Row("adl", {"method": "adl", "accumulate": 4}, 1.84 / BP, "1.84 GB"),
    ),
)
