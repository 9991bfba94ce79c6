"""Inputs: what a trained network expects of an image, saved with it, and used whatever data it is tested on."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from experiments.settings import revived
from jaxdecouple.data import ImageData, Preprocess
from jaxdecouple.errors import DataError, DataWarning

_OTHER_SCALE = 20  # times the deviation: far from what other images of one kind have, near to 255
LAYOUT = "[N, H, W, C], uint8 divided by 255 or floating point as it is, then (image - mean) / std"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Of the data that a network was trained on.

    Attributes:
      data: their name.
      image_shape: (H, W, C).
      mean, std: one number per channel, on the scale where uint8 images lie in [0, 1].
      per_image: whether each image is first given mean 0 and deviation 1.
      class_names: one for each output.
      layout: what becomes of an image, in words.
    """

    data: str
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_image: bool
    class_names: tuple[str, ...]
    layout: str = LAYOUT

    @classmethod
    def of(cls, dataset: ImageData, preprocess: Preprocess) -> Inputs:
        """Those of a network that is trained on these data, with this preprocessing."""
        names, shape = tuple(dataset.class_names), tuple(dataset.image_shape)
        return cls(dataset.name, shape, preprocess.mean, preprocess.std, preprocess.per_image, names)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Inputs:
        """The inverse of `dataclasses.asdict`."""
        return revived(cls, saved, "what the model takes")

    def preprocess(self, preprocess: Preprocess) -> Preprocess:
        """``preprocess`` with these means and deviations."""
        return dataclasses.replace(preprocess, mean=self.mean, std=self.std, per_image=self.per_image)

    def check(self, dataset: ImageData) -> None:
        """Refuses data that the network cannot be tested on.

        Where its pixels spread far more, or less, than those trained on, as 0..255 beside 0..1 do, a warning says so.

        Raises:
          DataError: images of another shape, or other classes.
        """
        if tuple(dataset.image_shape) != self.image_shape:
            raise DataError(
                f"images of {dataset.name} are {_size(dataset.image_shape)}, but the model was trained on {self.data}, "
                f"of {_size(self.image_shape)}; write data of that size"
            )
        names, known = tuple(dataset.class_names), self.class_names
        numbered = [tuple(map(str, range(len(each)))) for each in (names, known)]
        same = names == known[: len(names)] or names == numbered[0] or known == numbered[1]
        if len(names) > len(known) or not same:
            raise DataError(
                f"classes of {dataset.name} are {_some(names)}, but the model was trained on those of {self.data}, "
                f"{_some(known)}; write data of the same classes, in the same order"
            )
        spread, usual = max(dataset.channel_statistics()[1]), max(self.std)
        if not self.per_image and not usual / _OTHER_SCALE < spread < usual * _OTHER_SCALE:
            warnings.warn(
                f"pixels of {dataset.name} deviate by {spread:.3g} from their mean, but the model was trained on "
                f"{self.data}, divided by {usual:.3g}; are both on the same scale, 0..1 or 0..255?",
                DataWarning,
                stacklevel=2,
            )

    def __str__(self) -> str:
        numbers = ["(" + ", ".join(f"{value:.4g}" for value in each) + ")" for each in (self.mean, self.std)]
        each = "each image by its own mean and deviation, then " if self.per_image else ""
        return f"images normalised {each}by the mean {numbers[0]} and deviation {numbers[1]} of {self.data}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
