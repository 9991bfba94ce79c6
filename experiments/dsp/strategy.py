"""How DSP trains (section 5, "Experiment Settings").

SGD with momentum 0.9; random crops, flips, and "standardization", taken as TensorFlow's, of each image by itself.
CIFAR: batches of 128. ResNet98 and ResNet164: 300 epochs, weight decay 5e-4, rate 0.01, times 0.1 at 150 and 225.
ResNet1001: 250 epochs, 2e-4, 0.1, times 0.1 at 100, 150, 200. VGG-19 and ResNeXt-29: 200 epochs, 5e-4, 0.01, times 0.1
at 100, 150. ImageNet: batches of 256, 90 epochs, 1e-4, 0.1, times 0.1 at 30, 60, 80. No warm-up is spoken of, and
Nesterov's momentum only in the theory (SUM, eq. 3), so: none. ResNet164 and ResNet1001 are taken to be those of
He et al. (2016, Identity Mappings), pre-activated bottlenecks: that paper's 24.33 % on CIFAR-100 is this one's 24.34 %.
"""

from __future__ import annotations

from typing import Any

_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "decay": "step",
    "decay_factor": 0.1,
    "augment": True,
    "normalise": "image",
}
CIFAR: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "epochs": 300,
    "decay_epochs": (150, 225),
}
RESNET1001: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 2e-4,
    "epochs": 250,
    "decay_epochs": (100, 150, 200),
}
VGG_AND_RESNEXT: dict[str, Any] = {
    **_SGD,
    "batch_size": 128,
    "learning_rate": 0.01,
    "weight_decay": 5e-4,
    "epochs": 200,
    "decay_epochs": (100, 150),
}
# Where the images lie is not known here: write --dataset=imagenet:PATH. Standardisation of whole images is for CIFAR.
IMAGENET: dict[str, Any] = {
    **_SGD,
    "normalise": "channels",
    "dataset": "imagenet:imagenet",
    "batch_size": 256,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "epochs": 90,
    "decay_epochs": (30, 60, 80),
}

BP: dict[str, Any] = {"method": "backprop", "num_stages": 1}
FR: dict[str, Any] = {"method": "features_replay"}
DNI: dict[str, Any] = {"method": "dni"}


def dsp(p: tuple[int, ...], m: tuple[int, ...]) -> dict[str, Any]:
    """DSP(p; m), in the paper's notation."""
    return {"method": "dsp", "num_stages": len(p), "p": p, "m": m}


def stages(count: int) -> dict[str, Any]:
    """K."""
    return {"num_stages": count}


BEST = "best of all epochs"
K3 = {
    "dsp_110_420": dsp((1, 1, 0), (4, 2, 0)),
    "dsp_220_630": dsp((2, 2, 0), (6, 3, 0)),
    "dsp_330_1050": dsp((3, 3, 0), (10, 5, 0)),
}
K4 = {
    "dsp_1110_6420": dsp((1, 1, 1, 0), (6, 4, 2, 0)),
    "dsp_2220_9630": dsp((2, 2, 2, 0), (9, 6, 3, 0)),
    "dsp_3330_151050": dsp((3, 3, 3, 0), (15, 10, 5, 0)),
}
