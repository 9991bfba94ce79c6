"""DSP, Table 2: how much longer training takes when each GPU is slowed down at random; ResNet164, CIFAR-10, K = 3.

"We randomly slow down each GPU by a certain percentage with a probability of 1/3": drawn anew for each device and tick.
The number is taken to be how much longer a batch takes, in percent.
"""

from experiments.dsp.strategy import FR, K3, stages
from experiments.reproduction.rows import Row, Table

# Method, and how much longer it takes where devices are slower by 20, 50, 100 and 150 %.
_SLOWDOWNS = (
    ("features_replay", FR | stages(3), 8.977, 28.52, 97.06, 359.2),
    ("dsp_110_420", K3["dsp_110_420"], 6.017, 16.14, 37.44, 70.99),
    ("dsp_220_630", K3["dsp_220_630"], 7.465, 16.01, 36.57, 54.57),
    ("dsp_330_1050", K3["dsp_330_1050"], 7.391, 18.15, 32.10, 53.42),
)

TABLE = Table(
    title="DSP, Table 2: slow-down by random stragglers, ResNet164, CIFAR-10, K = 3",
    kind="stragglers",
    measure="slowdown",
    settings={
        "model": "preact_resnet164",
        "image_size": 32,
        "batch_size": 128,
        "num_classes": 10,
        "probability": 1 / 3,
    },
    rows=tuple(
        Row(f"{name}/{percent}", {**method, "percent": percent}, slowdown)
        for name, method, *slowdowns in _SLOWDOWNS
        for percent, slowdown in zip((20, 50, 100, 150), slowdowns, strict=True)
    ),
)
