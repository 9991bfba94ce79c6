"""The small scale: what each setting of a paper becomes where there are two processor cores and no download.

Never touched are the method, K, beta, M, p, m, order and weights, nor the optimizer, learning rate, momentum and weight
decay, nor the parts of a run after which the rate drops. A warm-up takes its part of the run too, but at least an
epoch: its updates have to be many beside those that a gradient is late. Gradients are as late as in the paper, counted
in updates. But a run has 2000 updates where the paper's have 117 000: lateness weighs more here. So a test error says
something about methods beside the others of its table and K, and nothing beside the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.training.methods import METHODS

DATASET = "digits"  # scikit-learn's: 1437 images of 8x8 to train on, 360 to test
NUM_TRAIN = 1437
BATCH = 64  # the largest batch of an update
LARGEST = 256  # images of an update that have a small counterpart
UPDATES = 2000  # of a run
SPEED = {"model": "resnet20", "image_size": 16, "batch_size": 64, "num_classes": 10}  # for speed and memory

# The largest K, and the settings of what stands for every network then: the smallest CIFAR ResNet that can be cut into
# as many. Other families need larger images than 8x8.
NETWORKS: tuple[tuple[int, dict[str, Any]], ...] = (
    (5, {"model": "resnet8", "split_blocks": False}),
    (8, {"model": "resnet8", "split_blocks": True}),
    (14, {"model": "resnet14", "split_blocks": True}),
    (20, {"model": "resnet20", "split_blocks": True}),
)
# Two arrays leave the inside of a block, and auxiliary networks take one: for methods that have them, deeper networks.
NETWORKS_WITH_AUXILIARIES: tuple[tuple[int, dict[str, Any]], ...] = (
    (5, {"model": "resnet8", "split_blocks": False}),
    (8, {"model": "resnet14", "split_blocks": False}),
    (11, {"model": "resnet20", "split_blocks": False}),
    (14, {"model": "resnet26", "split_blocks": False}),
    (17, {"model": "resnet32", "split_blocks": False}),
)


def network(method: str, num_stages: int) -> dict[str, Any]:
    """The settings of the small network of a method with K stages.

    Raises:
      ValueError: K is larger than any row's.
    """
    known = NETWORKS_WITH_AUXILIARIES if METHODS[method].auxiliary else NETWORKS
    for most, settings in known:
        if num_stages <= most:
            return settings
    raise ValueError(
        f"num_stages is {num_stages}, and the largest small network has {known[-1][0]} modules; add one to "
        "experiments.papers.small"
    )


def of_training(
    settings: Mapping[str, Any], dataset: str = "", num_train: int = NUM_TRAIN, epochs: int = 0
) -> dict[str, Any]:
    """The settings of a small run for those of the paper's.

    Args:
      settings: of the paper, for `Config`.
      dataset: what takes the place of the paper's, as of `experiments.train`; empty: the digits.
      num_train: its training images.
      epochs: of the small run; 0: as many as make `UPDATES`.

    Raises:
      ValueError: no small network has as many modules as there are stages, boundaries are those of another network, or
        large batches are the point of the row.
    """
    images = settings["batch_size"] * (settings.get("accumulate") or 1)
    if images > LARGEST:
        raise ValueError(
            f"an update takes {images} images, and those of the small scale at most {LARGEST} of a paper's; write "
            "--scale=medium, or see experiments.large_batch"
        )
    found = network(settings["method"], settings.get("num_stages", 1))
    accumulate = settings.get("accumulate") or 1
    batch = min(settings["batch_size"], BATCH // accumulate)
    updates = max(1, num_train // batch) / accumulate  # of an epoch
    small = {
        **of_length(settings, epochs or math.ceil(UPDATES / updates)),
        **found,
        "dataset": dataset or DATASET,
        "batch_size": batch,
        "drop_last": True,  # a smaller last batch would double the compilations
    }
    if small.get("warmup_epochs"):
        small["warmup_epochs"] = max(1.0, small["warmup_epochs"])
    if "boundaries" in settings and small["model"] != settings["model"]:
        raise ValueError(
            f"boundaries is {settings['boundaries']}, layers of {settings['model']}, in whose place {small['model']} "
            "is trained; leave them out"
        )
    return small


def of_length(settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The settings for a run of so many epochs, in the same parts of which the rate drops, and warms up."""
    part = epochs / settings["epochs"]
    scaled = {**settings, "epochs": epochs}
    if "decay_epochs" in settings:
        scaled["decay_epochs"] = tuple(round(epoch * part, 6) for epoch in settings["decay_epochs"])
    if settings.get("warmup_epochs"):
        scaled["warmup_epochs"] = settings["warmup_epochs"] * part
    return scaled
