"""ADL, Table 3: acceleration of ResNet-101 on ImageNet over BP (V100 GPUs).

The batch size was "adjusted to maximize the training speed" and is not said: 32 here. M = 4. DSP's number is quoted
from its paper.
"""

from experiments.reproduction.rows import Row, Table

# K, and the speed-up of each method.
_METHODS = {
    "ddg": {"method": "ddg"},
    "features_replay": {"method": "features_replay"},
    "dgl": {"method": "dgl"},
    "gpipe": {"method": "gpipe", "accumulate": 4},
    "adl": {"method": "adl", "accumulate": 4},
}
_SPEEDUPS = (
    (2, 1.32, 1.19, 1.82, 1.41, 1.92),
    (3, 1.57, 1.29, 2.61, 1.87, 2.69),
    (4, 1.68, 1.45, 3.39, 2.23, 3.32),
)

TABLE = Table(
    title="ADL, Table 3: speed of ResNet-101 on ImageNet, K = 2, 3, 4",
    kind="speed",
    measure="speedup",
    settings={"model": "resnet101", "image_size": 224, "batch_size": 32, "num_classes": 1000},
    rows=(
        *(
            Row(f"K{count}/{name}", {**_METHODS[name], "num_stages": count}, speedup)
            for count, *speedups in _SPEEDUPS
            for name, speedup in zip(_METHODS, speedups, strict=True)
        ),
        Row(
            "K4/dsp",
            {"method": "dsp", "num_stages": 4, "p": (1, 1, 1, 0), "m": (6, 4, 2, 0)},
            2.70,
            "quoted from DSP",
        ),
    ),
)
