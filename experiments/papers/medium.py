"""The medium scale: a row's own kind of network, smaller, on data that are given (``--dataset=npz:PATH``).

MNIST and images of CIFAR-10's size are meant. What is never touched is as at the small scale
(`experiments.papers.small`); besides, batches have the paper's size. Rows that differ in their network differ here too.
A run has 4000 updates, and its learning rate drops after the same parts of them as the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jaxdecouple as jd
from experiments.papers.small import of_length
from experiments.training.methods import METHODS

UPDATES = 4000

# Of the same blocks, in the same order of size. ImageNet's forms have 64 channels and more: of basic blocks, wide CIFAR
# networks take their place; of bottlenecks, CIFAR networks. VGG-11, DenseNet, MobileNet and SE-ResNet have no smaller
# form.
NETWORKS = {
    **{"resnet8": "resnet8", "resnet20": "resnet8", "resnet56": "resnet20", "resnet98": "resnet26"},
    **{"resnet110": "resnet32", "resnet164": "resnet38", "resnet1202": "resnet44"},
    **{"resnet18": "wrn16_2", "resnet34": "wrn22_2", "wrn28_10": "wrn10_4"},
    **{"resnet50": "resnet20_bottleneck", "resnet101": "resnet29_bottleneck", "resnet152": "resnet38_bottleneck"},
    **{"preact_resnet164": "preact_resnet20", "preact_resnet1001": "preact_resnet29"},
    **{"resnext29": "resnext20_4x16d", "vgg19": "vgg11"},
    **{name: name for name in ("mobilenet_v2", "se_resnet18", "vgg11", "densenet121")},
}


def of_training(settings: Mapping[str, Any], dataset: str, num_train: int, epochs: int = 0) -> dict[str, Any]:
    """The settings of a medium run for those of the paper's.

    Args:
      settings: of the paper, for `Config`.
      dataset: in place of the paper's.
      num_train: its training images.
      epochs: of the run; 0: as many as make `UPDATES`.

    Raises:
      ValueError: the network has too few modules for the stages, or boundaries are those of another network.
    """
    model, batch = NETWORKS[settings["model"]], settings["batch_size"]
    updates = max(1, num_train // batch) / (settings.get("accumulate") or 1)  # of an epoch
    scaled = of_length(settings, epochs or math.ceil(UPDATES / updates))
    if scaled.get("warmup_epochs"):
        scaled["warmup_epochs"] = max(1.0, scaled["warmup_epochs"])
    if "boundaries" in settings and model != settings["model"]:
        raise ValueError(
            f"boundaries is {settings['boundaries']}, layers of {settings['model']}, in whose place {model} is "
            "trained; leave them out"
        )
    split = not _has_modules(model, settings)
    if split and (METHODS[settings["method"]].auxiliary or not _has_modules(model, settings, split_blocks=True)):
        raise ValueError(
            f"num_stages is {settings['num_stages']}, and {model}, which takes the place of {settings['model']}, has "
            "fewer modules; take a larger one in experiments.papers.medium, or --set model=NAME"
        )
    return {**scaled, "model": model, "split_blocks": split, "dataset": dataset, "drop_last": True}


def _has_modules(model: str, settings: Mapping[str, Any], *, split_blocks: bool = False) -> bool:
    modules = jd.models.by_name(model, 10, small_images=True, split_blocks=split_blocks)
    return len(modules) >= settings.get("num_stages", 1)
