"""A scale is how much of a paper's setting is run: ``paper``, exactly as printed, or ``small``, or ``medium``.

Never touched are the method, K, beta, M, p, m, order and weights, nor the optimizer, learning rate, momentum and weight
decay, nor the parts of a run after which the rate drops. A warm-up takes its part of the run too, but at least an
epoch: its updates have to be many beside those that a gradient is late. Gradients are as late as in the paper, counted
in updates.

The small scale is what each setting becomes where there are two processor cores and no download. A run has 2000 updates
where the paper's have 117 000: lateness weighs more here. So a test error says something about methods beside the
others of its table and K, and nothing beside the paper's.

The medium scale is a row's own kind of network, smaller, on data that are given (``--dataset=npz:PATH``): MNIST and
images of CIFAR-10's size are meant. Batches have the paper's size, and rows that differ in their network differ here
too. A run has 4000 updates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jaxdecouple as jd
from experiments.settings import Settings, parse
from experiments.training.methods import METHODS
from jaxdecouple.errors import did_you_mean

SCALES = ("small", "medium", "paper")
DATASET = "digits"  # scikit-learn's: 1437 images of 8x8 to train on, 360 to test
NUM_TRAIN = 1437
BATCH = 64  # the largest batch of an update
LARGEST = 256  # images of an update that have a small counterpart
UPDATES = {"small": 2000, "medium": 4000}  # of a run
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


# Of the same blocks, in the same order of size. ImageNet's forms have 64 channels and more: of basic blocks, wide CIFAR
# networks take their place; of bottlenecks, CIFAR networks. VGG-11, DenseNet, MobileNet and SE-ResNet have no smaller
# form.
MEDIUM_NETWORKS = {
    **{"resnet8": "resnet8", "resnet20": "resnet8", "resnet56": "resnet20", "resnet98": "resnet26"},
    **{"resnet110": "resnet32", "resnet164": "resnet38", "resnet1202": "resnet44"},
    **{"resnet18": "wrn16_2", "resnet34": "wrn22_2", "wrn28_10": "wrn10_4"},
    **{"resnet50": "resnet20_bottleneck", "resnet101": "resnet29_bottleneck", "resnet152": "resnet38_bottleneck"},
    **{"preact_resnet164": "preact_resnet20", "preact_resnet1001": "preact_resnet29"},
    **{"resnext29": "resnext20_4x16d", "vgg19": "vgg11"},
    **{name: name for name in ("mobilenet_v2", "se_resnet18", "vgg11", "densenet121")},
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of the paper's setting is run.

    Attributes:
      name: one of `SCALES`.
      dataset: in place of the paper's, or of the digits; empty: no other.
      epochs: of a small or medium run; 0: as many as make its usual updates.
      data_dir: as for `experiments.train`.
      changes: settings that have other values than the rows give them, name -> text.
    """

    name: str
    dataset: str = ""
    epochs: int = 0
    data_dir: str = ""
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
        "experiments.papers.scales"
    )


def small(
    settings: Mapping[str, Any], dataset: str = "", num_train: int = NUM_TRAIN, epochs: int = 0
) -> dict[str, Any]:
    """The settings of a small run for those of the paper's.

    Args:
      settings: of the paper, for `Config`.
      dataset: what takes the place of the paper's, as of `experiments.train`; empty: the digits.
      num_train: its training images.
      epochs: of the small run; 0: as many as make its `UPDATES`.

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
    _check_boundaries(settings, found["model"])
    accumulate = settings.get("accumulate") or 1
    batch = min(settings["batch_size"], BATCH // accumulate)
    updates = max(1, num_train // batch) / accumulate  # of an epoch
    return {
        **of_length(settings, epochs or math.ceil(UPDATES["small"] / updates), least_warmup=1.0),
        **found,
        "dataset": dataset or DATASET,
        "batch_size": batch,
        "drop_last": True,  # a smaller last batch would double the compilations
    }


def medium(settings: Mapping[str, Any], dataset: str, num_train: int, epochs: int = 0) -> dict[str, Any]:
    """The settings of a medium run for those of the paper's.

    Args:
      settings: of the paper, for `Config`.
      dataset: in place of the paper's.
      num_train: its training images.
      epochs: of the run; 0: as many as make its `UPDATES`.

    Raises:
      ValueError: the network has too few modules for the stages, or boundaries are those of another network.
    """
    model, batch = MEDIUM_NETWORKS[settings["model"]], settings["batch_size"]
    _check_boundaries(settings, model)
    updates = max(1, num_train // batch) / (settings.get("accumulate") or 1)  # of an epoch
    scaled = of_length(settings, epochs or math.ceil(UPDATES["medium"] / updates), least_warmup=1.0)
    split = not _has_modules(model, settings)
    if split and (METHODS[settings["method"]].auxiliary or not _has_modules(model, settings, split_blocks=True)):
        raise ValueError(
            f"num_stages is {settings['num_stages']}, and {model}, which takes the place of {settings['model']}, has "
            "fewer modules; take a larger one in experiments.papers.scales, or --set model=NAME"
        )
    return {**scaled, "model": model, "split_blocks": split, "dataset": dataset, "drop_last": True}


def _check_boundaries(settings: Mapping[str, Any], model: str) -> None:
    if "boundaries" in settings and model != settings["model"]:
        raise ValueError(
            f"boundaries is {settings['boundaries']}, layers of {settings['model']}, in whose place {model} is "
            "trained; leave them out"
        )


def _has_modules(model: str, settings: Mapping[str, Any], *, split_blocks: bool = False) -> bool:
    modules = jd.models.by_name(model, 10, small_images=True, split_blocks=split_blocks)
    return len(modules) >= settings.get("num_stages", 1)


def of_length(settings: Mapping[str, Any], epochs: int, least_warmup: float = 0.0) -> dict[str, Any]:
    """The settings for a run of so many epochs, in the same parts of which the rate drops, and warms up."""
    part = epochs / settings["epochs"]
    scaled = {**settings, "epochs": epochs}
    if "decay_epochs" in settings:
        scaled["decay_epochs"] = tuple(round(epoch * part, 6) for epoch in settings["decay_epochs"])
    if settings.get("warmup_epochs"):
        scaled["warmup_epochs"] = max(least_warmup, settings["warmup_epochs"] * part)
    return scaled


_OTHERWISE = {"seed": "write --seeds", "data_dir": "write --data_dir"}  # what else says it


def parsed_changes(given: Sequence[str]) -> dict[str, str]:
    """Name -> value, as texts.

    Raises:
      ValueError: one is not of the form name=value, or a name comes twice.
    """
    changes: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"set is {text!r}; write a setting and its value, such as --set beta=0.2")
        if name in changes:
            raise ValueError(f"set names {name} twice, {changes[name]} and {value}; write it once")
        changes[name] = value
    return changes


def changed_values(changes: Mapping[str, str], known: type[Settings] | Mapping[str, type]) -> dict[str, Any]:
    """The values of the changes, of the types that the settings have.

    Args:
      changes: name -> text.
      known: the settings that rows of a kind have: a class of `Settings`, or the type of each.

    Raises:
      ValueError: there is no such setting, or it cannot have such a value.
    """
    names = set(known if isinstance(known, Mapping) else known.__dataclass_fields__) - set(_OTHERWISE)
    found = {}
    for name, text in changes.items():
        if name not in names:
            told = _OTHERWISE.get(name) or did_you_mean(name, names, cutoff=0.5).strip()
            told = told or f"write one of: {', '.join(sorted(names))}"
            raise ValueError(f"there is no setting {name!r}; {told}")
        found[name] = parse(known, name, text) if isinstance(known, type) else _of_type(known[name], name, text)
    return found


def changes_in_words(changes: Mapping[str, str]) -> str:
    """For a page of results: what was changed."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _of_type(kind: type, name: str, given: str) -> Any:
    try:
        return tuple(int(part) for part in given.split(",")) if kind is tuple else kind(given)
    except ValueError:
        what = {int: "an integer", float: "a number", tuple: "integers with commas between"}.get(kind, "a text")
        raise ValueError(f"{name} is {given!r}; write {what}") from None
