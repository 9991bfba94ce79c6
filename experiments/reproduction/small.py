"""The small scale: what each setting of a paper becomes where there are two processor cores and no download.

`of_training` and the constants here are all of it. Never touched: the method, K, beta, M, p, m, order and weights; the
optimizer, learning rate, momentum and weight decay; the parts of a run after which the rate drops. A warm-up takes its
part too, but at least an epoch: its updates have to be many beside those that a gradient is late. Gradients are as late
as in the paper, in updates, while a run has 264 updates, or with many stages 66, where the paper's have 117 000:
lateness weighs more here. A test error says something about methods beside the others of its table and K, and nothing
beside the paper's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.training.methods import METHODS

DATASET = "digits"  # scikit-learn's: 1437 images of 8x8 to train on, 360 to test


@dataclasses.dataclass(frozen=True)
class Network:
    """What stands for every network of so many stages; those of other families need larger images than 8x8.

    Attributes:
      stages: the largest K.
      model: the smallest CIFAR ResNet that can be cut into as many.
      split: whether blocks are cut inside for it.
      epochs: of a run.
      batch: the largest batch of an update.
    """

    stages: int
    model: str
    split: bool
    epochs: int
    batch: int


# 150, 225 and 275 of 300 epochs become 6, 9 and 11.
NETWORKS = (
    Network(5, "resnet8", False, 12, 64),
    Network(8, "resnet8", True, 3, 64),
    Network(14, "resnet14", True, 3, 64),
    Network(20, "resnet20", True, 3, 64),
)
# Two arrays leave the inside of a block, and auxiliary networks take one: for methods that have them, deeper networks.
NETWORKS_WITH_AUXILIARIES = (
    Network(5, "resnet8", False, 12, 64),
    Network(8, "resnet14", False, 3, 64),
    Network(11, "resnet20", False, 3, 64),
    Network(14, "resnet26", False, 3, 64),
    Network(17, "resnet32", False, 3, 64),
)


def network(method: str, num_stages: int) -> Network:
    """The small network of a method with K stages.

    Raises:
      ValueError: K is larger than any row's.
    """
    known = NETWORKS_WITH_AUXILIARIES if METHODS[method].auxiliary else NETWORKS
    for found in known:
        if num_stages <= found.stages:
            return found
    raise ValueError(
        f"num_stages is {num_stages}, and the largest small network has {known[-1].stages} modules; add one to "
        "experiments.reproduction.small"
    )


def of_training(settings: Mapping[str, Any], dataset: str = DATASET, epochs: int = 0) -> dict[str, Any]:
    """The settings of a small run for those of the paper's.

    Args:
      settings: of the paper, for `RowConfig`.
      dataset: what takes the place of the paper's, as of `experiments.train`.
      epochs: of the small run; 0: as the networks have it.

    Raises:
      ValueError: no small network has as many modules as there are stages, or boundaries are those of another network.
    """
    found = network(settings["method"], settings.get("num_stages", 1))
    epochs = epochs or found.epochs
    shorter = epochs / settings["epochs"]
    small = {
        **settings,
        "model": found.model,
        "split_blocks": found.split,
        "dataset": dataset,
        "epochs": epochs,
        "batch_size": min(settings["batch_size"], found.batch // (settings.get("accumulate") or 1)),
        "drop_last": True,  # a smaller last batch would double the compilations
    }
    if "decay_epochs" in settings:
        small["decay_epochs"] = tuple(round(epoch * shorter, 6) for epoch in settings["decay_epochs"])
    if settings.get("warmup_epochs"):
        small["warmup_epochs"] = max(1.0, settings["warmup_epochs"] * shorter)
    if "boundaries" in settings and small["model"] != settings["model"]:
        raise ValueError(
            f"boundaries is {settings['boundaries']}, layers of {settings['model']}, in whose place {small['model']} "
            "is trained; leave them out"
        )
    return small
