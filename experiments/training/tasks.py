"""A task is what a network is trained for: to name the class of an image, or the token that comes next in a text."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxdecouple as jd
from experiments.settings import revived
from jaxdecouple.data import ImageData, Preprocess, TextData
from jaxdecouple.data.tokenizers import CharacterTokens
from jaxdecouple.engine.metrics import MetricFunctions
from jaxdecouple.errors import DataError, DataWarning

if TYPE_CHECKING:
    from experiments.training.config import Config


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """Of the text that a network was trained on.

    Attributes:
      data: its name.
      tokens: ``bytes``, ``characters``, or the tokenizer's file.
      characters: the vocabulary, where tokens are characters.
      vocab_size: how many tokens there are.
      context: tokens of a sequence.
    """

    data: str
    tokens: str
    characters: str
    vocab_size: int
    context: int

    @classmethod
    def of(cls, dataset: TextData, tokens: str) -> TextInputs:
        """Those of a network that is trained on this text."""
        found = dataset.tokenizer
        characters = found.characters if isinstance(found, CharacterTokens) else ""
        return cls(dataset.name, tokens, characters, dataset.vocab_size, dataset.context)

    def check(self, dataset: TextData) -> None:
        """Refuses a text that the network cannot be tested on; DataError for other tokens."""
        theirs = TextInputs.of(dataset, self.tokens)
        if (theirs.vocab_size, theirs.characters) != (self.vocab_size, self.characters):
            raise DataError(
                f"{dataset.name} has {theirs.vocab_size} tokens, but the model was trained on {self.data}, of "
                f"{self.vocab_size} others; write a text of the same tokens"
            )

    def __str__(self) -> str:
        return f"sequences of {self.context} tokens, as of {self.data} ({self.tokens})"


def inputs_of(saved: Mapping[str, Any]) -> Inputs | TextInputs:
    """The inverse of `dataclasses.asdict`."""
    return revived(TextInputs, saved, "what the model takes") if "vocab_size" in saved else Inputs.from_json(saved)


class ImageTask:
    """To name the class of an image.

    Attributes:
      inputs: what the network expects.
      outputs: how many it has.
      metrics: what is measured besides the loss.
      sample: an input, [1, ...].
      targets: the shape of an example's targets.
      unit, per_example: what speeds are counted in, and how many of them an example is.
    """

    metrics: MetricFunctions | None = None
    targets: tuple[int, ...] = ()
    unit, per_example = "images", 1

    def __init__(self, config: Config, dataset: ImageData, inputs: Inputs | None):
        if dataset.num_classes < 2:
            raise ValueError(f"{dataset.name} has one class alone, so there is nothing to learn; give two or more")
        self._preprocess = Preprocess.for_dataset(dataset, augment=config.augment, normalise=config.normalise)
        if inputs is not None:
            inputs.check(dataset)
            self._preprocess = inputs.preprocess(self._preprocess)
        self.inputs = inputs or Inputs.of(dataset, self._preprocess)
        self.outputs = len(self.inputs.class_names)
        self.sample = self._preprocess.eval(np.zeros((1, *dataset.image_shape), np.uint8))

    def train(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Inputs of the network for training, from what the data set gives."""
        return self._preprocess.train(key, x)

    def test(self, x: np.ndarray) -> jax.Array:
        """Inputs of the network for testing."""
        return self._preprocess.eval(x)

    def layers(self, config: Config) -> list[Any]:
        """The network."""
        return config.layers(self.outputs, self.sample.shape[1])


class LanguageTask:
    """To say which token comes next; attributes and methods as of `ImageTask`."""

    unit = "tokens"

    def __init__(self, config: Config, dataset: TextData, inputs: TextInputs | None):
        if inputs is not None:
            inputs.check(dataset)
        self.inputs = inputs or TextInputs.of(dataset, config.tokens)
        self.outputs = self.inputs.vocab_size
        self.metrics = {"accuracy": jd.accuracy, **jd.language_metrics(dataset.bytes_per_token)}
        self.sample = np.zeros((1, dataset.context), np.int32)
        self.targets, self.per_example = (dataset.context,), dataset.context

    def train(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Tokens, as they are."""
        return x

    def test(self, x: np.ndarray) -> np.ndarray:
        """Tokens, as they are."""
        return x

    def layers(self, config: Config) -> list[Any]:
        """The network."""
        return config.layers(self.outputs)


def task_of(
    config: Config, dataset: ImageData | TextData, inputs: Inputs | TextInputs | None
) -> ImageTask | LanguageTask:
    """The task that a data set sets.

    Args:
      config: the settings.
      dataset: the data.
      inputs: what the network expects, if it was trained before; by default, as the data are.

    Raises:
      ValueError: a network of images on a text, or of text on images; or data that it cannot be tested on.
    """
    if isinstance(dataset, TextData):
        if inputs is not None and not isinstance(inputs, TextInputs):
            raise DataError(f"{dataset.name} is a text, but the model was trained on images of {inputs.data}")
        return LanguageTask(config, dataset, inputs)
    if isinstance(inputs, TextInputs):
        raise DataError(f"{dataset.name} has images, but the model was trained on the text {inputs.data}")
    return ImageTask(config, dataset, inputs)


def in_words(loss: float, error: float, metrics: Mapping[str, float]) -> str:
    """What a test has found."""
    if "perplexity" not in metrics:
        return f"test error {100 * error:.2f} %, test loss {loss:.4f}"
    bits = f", {metrics['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in metrics else ""
    return f"test loss {loss:.4f}, perplexity {metrics['perplexity']:.3f}{bits}"


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
