"""FDG, Table VII: images per second with K = 2, 3, 4 GPUs (RTX 1080 Ti, no high-speed interconnect).

The paper's number is the speed-up over BP on one GPU; ``also`` has images per second. For FDG on ResNet-101 with K = 2
the table prints 1.88, but 175.0 / 104.3 = 1.68 is also what the prose says: 1.68 is taken. Batches have 128 images for
CIFAR-10, as in all experiments; for ImageNet the size is not said: 32 here. FDG is run without shrinking, which costs
no time worth the name.
"""

from experiments.reproduction.rows import Row, Table

WRN = {"model": "wrn28_10", "image_size": 32, "batch_size": 128, "num_classes": 10}
R101 = {"model": "resnet101", "image_size": 224, "batch_size": 32, "num_classes": 1000}
BP, DDG, FR = {"method": "backprop"}, {"method": "ddg"}, {"method": "features_replay"}
DGL, FDG = {"method": "dgl"}, {"method": "fdg"}
K2, K3, K4 = {"num_stages": 2}, {"num_stages": 3}, {"num_stages": 4}

TABLE = Table(
    title="FDG, Table VII: speed with K = 2, 3, 4",
    kind="speed",
    measure="speedup",
    statistic="mean over 10 seconds",
    rows=(
        Row("wrn28_10/bp", WRN | BP | {"num_stages": 1}, 1.0, "188.16 images/s"),
        Row("wrn28_10/K2/ddg", WRN | DDG | K2, 1.49, "280.32 images/s"),
        Row("wrn28_10/K2/features_replay", WRN | FR | K2, 1.14, "215.04 images/s"),
        Row("wrn28_10/K2/dgl", WRN | DGL | K2, 1.86, "349.44 images/s"),
        Row("wrn28_10/K2/fdg", WRN | FDG | K2, 1.88, "354.56 images/s"),
        Row("wrn28_10/K3/ddg", WRN | DDG | K3, 1.66, "312.28 images/s"),
        Row("wrn28_10/K3/features_replay", WRN | FR | K3, 1.24, "232.96 images/s"),
        Row("wrn28_10/K3/dgl", WRN | DGL | K3, 2.73, "514.56 images/s"),
        Row("wrn28_10/K3/fdg", WRN | FDG | K3, 2.72, "512.00 images/s"),
        Row("wrn28_10/K4/ddg", WRN | DDG | K4, 1.99, "373.76 images/s"),
        Row("wrn28_10/K4/features_replay", WRN | FR | K4, 1.50, "281.60 images/s"),
        Row("wrn28_10/K4/dgl", WRN | DGL | K4, 3.25, "611.84 images/s"),
        Row("wrn28_10/K4/fdg", WRN | FDG | K4, 3.20, "601.60 images/s"),
        Row("resnet101/bp", R101 | BP | {"num_stages": 1}, 1.0, "104.3 images/s"),
        Row("resnet101/K2/ddg", R101 | DDG | K2, 1.49, "155.5 images/s"),
        Row("resnet101/K2/features_replay", R101 | FR | K2, 1.20, "125.0 images/s"),
        Row("resnet101/K2/dgl", R101 | DGL | K2, 1.89, "194.6 images/s"),
        Row("resnet101/K2/fdg", R101 | FDG | K2, 1.68, "175.0 images/s; printed as 1.88"),
        Row("resnet101/K3/ddg", R101 | DDG | K3, 1.70, "176.8 images/s"),
        Row("resnet101/K3/features_replay", R101 | FR | K3, 1.31, "136.2 images/s"),
        Row("resnet101/K3/dgl", R101 | DGL | K3, 2.62, "273.0 images/s"),
        Row("resnet101/K3/fdg", R101 | FDG | K3, 2.10, "217.0 images/s"),
        Row("resnet101/K4/ddg", R101 | DDG | K4, 1.81, "189.0 images/s"),
        Row("resnet101/K4/features_replay", R101 | FR | K4, 1.46, "152.3 images/s"),
        Row("resnet101/K4/dgl", R101 | DGL | K4, 3.19, "332.5 images/s"),
        Row("resnet101/K4/fdg", R101 | FDG | K4, 2.30, "234.3 images/s"),
    ),
)
