"""How ADL trains (section 6, "Implementation details"): the same for all its methods but DSP, whose numbers it quotes.

SGD with momentum 0.9; "an overall batch size of 128 for all methods", so batches of floor(128 / M) for ADL and GPipe;
gradual warm-up for 3 epochs: linear, from 1 % of the rate, where the paper is silent and its code does so. CIFAR-10:
weight decay 5e-4, rate 0.1, 300 epochs, divided by 10 at 150, 225 and 275. ImageNet: 224 x 224 crops, weight decay
1e-4, rate 0.05, 90 epochs, divided by 10 at 30, 60 and 80. Gradients of a group are averaged (eq. 16). Nesterov's
momentum is not spoken of. M is 4 unless a table varies it (section 6.1); for GPipe it is taken to be the same.
"""

from __future__ import annotations

from typing import Any

_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "batch_size": 128,
    "decay": "step",
    "decay_factor": 0.1,
    "warmup_epochs": 3.0,
    "augment": True,
}
CIFAR: dict[str, Any] = {
    **_SGD,
    "dataset": "cifar10",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "epochs": 300,
    "decay_epochs": (150, 225, 275),
}
# Where the images lie is not known here: write --dataset=imagenet:PATH.
IMAGENET: dict[str, Any] = {
    **_SGD,
    "dataset": "imagenet:imagenet",
    "learning_rate": 0.05,
    "weight_decay": 1e-4,
    "epochs": 90,
    "decay_epochs": (30, 60, 80),
}
BATCH = 128  # of an update
MEDIAN = "median of 3 runs, after the last epoch"

BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}  # one GPU
DDG: dict[str, Any] = {"method": "ddg"}
DGL: dict[str, Any] = {"method": "dgl"}
FR: dict[str, Any] = {"method": "features_replay"}


def adl(steps: int = 4) -> dict[str, Any]:
    """ADL with M accumulation steps, forward first (Algorithm 1)."""
    return {"method": "adl", "order": "forward_first", "accumulate": steps, "batch_size": BATCH // steps}


GPIPE: dict[str, Any] = {"method": "gpipe", "accumulate": 4, "batch_size": BATCH // 4}


def stages(count: int) -> dict[str, Any]:
    """K."""
    return {"num_stages": count}
