"""How chapters 5 and 6 of the thesis train.

Section 5.5.1, ResNet-8: Adam, rate 1e-3, batches of 128, 300 epochs. Neither drops of the rate nor a weight decay are
spoken of: none here. Sections 5.5.2, 5.5.3 and 6.5: SGD with momentum 0.9, rate 0.01, times 0.1 at 150 and 225, 300
epochs, weight decay 5e-4; batches of 128 (section 6.5; 5.5.2 is silent). Whether the momentum is Nesterov's is not
said; the published codes of both chapters have it so, and so have we. Random crops and flips, images normalised by mean
and standard deviation. Networks are cut "at the center": here, so that stages have equal numbers of operations.
"""

from __future__ import annotations

from typing import Any

ADAM: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 300,
    "decay": "constant",
    "augment": True,
}
SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 300,
    "decay": "step",
    "decay_epochs": (150, 225),
    "decay_factor": 0.1,
    "augment": True,
}
BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}  # one GPU
DNI: dict[str, Any] = {"method": "dni"}
DDG: dict[str, Any] = {"method": "ddg"}
FR: dict[str, Any] = {"method": "features_replay"}
BEST = "best of all epochs"


def stages(count: int) -> dict[str, Any]:
    """K."""
    return {"num_stages": count}
