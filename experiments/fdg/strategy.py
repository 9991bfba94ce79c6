"""How FDG trains (section V-A, "Implementation Details"): the same for all its methods, data sets and networks.

SGD, momentum 0.9, weight decay 5e-4, batches of 128, 300 epochs, rate 0.1, divided by 10 at 150, 225 and 275; random
crops and flips. Nesterov's momentum is not spoken of. "For ResNet-110, ResNet-1202 and networks trained with K = 3, 4",
3 epochs with rate 0.01 come first: a constant rate, within the 300 epochs as we read it. "Networks" we take to be those
of every method; the baseline by back-propagation in Table VI is the number of Table III, so it has no warm-up there.
With K = 2 networks are cut "at the center": here, so that both stages have the same number of operations.
Errors are those after the last epoch, "by the median of 3 runs".
"""

from __future__ import annotations

from typing import Any

CIFAR: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 300,
    "decay": "step",
    "decay_epochs": (150, 225, 275),
    "decay_factor": 0.1,
    "augment": True,
}
WARMUP: dict[str, Any] = {"warmup_epochs": 3.0, "warmup_rate": 0.01}

BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}  # one GPU
DDG: dict[str, Any] = {"method": "ddg", "num_stages": 2}
DGL: dict[str, Any] = {"method": "dgl", "num_stages": 2}  # MLP-SR-aux as the auxiliary network
FR: dict[str, Any] = {"method": "features_replay", "num_stages": 2}


def fdg(beta: float) -> dict[str, Any]:
    """FDG with gradient shrinking (eq. 15), backward first, as in all its experiments (section III-B)."""
    return {"method": "fdg", "num_stages": 2, "order": "backward_first", "beta": beta}


MEDIAN = "median of 3 runs, after the last epoch"
