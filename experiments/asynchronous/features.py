"""Features of images: what the 384 units of a convolutional network's dense layer say, for figures 3 and 4.

    python -m experiments.asynchronous.features --data=npz:cifar10.npz --workdir=runs/features

The thesis takes them from a pre-trained network of TensorFlow's tutorial on CIFAR-10, which has two convolutions of 64
filters and dense layers of 384 and 192. It says that they are those of the second dense layer, and that they are 384:
here it is the layer of 384. The network is trained here, without the tutorial's distortions of images and its
normalisation of responses. The directory gets features.npz, with the arrays that npz:PATH has.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from experiments import cli as command_line
from experiments.asynchronous.curves import described
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from jaxdecouple import data

if TYPE_CHECKING:
    from jaxdecouple.asynchronous.sources import Source

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction(Settings):
    """The network and its training; each field is a flag."""

    data: str = option("digits", "images: npz:PATH, digits, or what experiments.train has", thesis="npz:cifar10.npz")
    num_examples: int = option(0, "features of the first so many training images; 0: all", thesis=20_000, least=0)
    num_tests: int = option(0, "features of the first so many test images; 0: all", thesis=4_000, least=0)
    cnn_examples: int = option(2000, "training images for the network itself; 0: all", thesis=0, least=0)
    cnn_epochs: int = option(3, "passes over them", thesis=20, least=1)
    filters: int = option(32, "of each convolution", thesis=64, least=1)
    learning_rate: float = option(1e-3, "of Adam")
    seed: int = option(0, "of the network and the order of images", least=0)


def extract(setting: Extraction) -> tuple[Source, float]:
    """The features of training and test images, and the test error of the network itself.

    Raises:
      ValueError: the images cannot be had.
    """
    from experiments.asynchronous import convnet  # --help need not wait for JAX
    from jaxdecouple.asynchronous.sources import Source

    images = data.load(setting.data)
    x, x_test = (np.asarray(part, np.float32) for part in (images.x_train, images.x_test))
    mean, deviation = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    y, y_test = np.asarray(images.y_train, np.int32), np.asarray(images.y_test, np.int32)
    network = convnet.ConvNet(setting.filters, images.num_classes)
    count = setting.cnn_examples or len(x)
    params = convnet.train(network, x[:count], y[:count], setting)
    parts = (x[: setting.num_examples or None], x_test[: setting.num_tests or None])
    features = [convnet.apply(network, params, part, "features") for part in parts]
    wrong = convnet.apply(network, params, parts[1], "__call__").argmax(axis=1) != y_test[: len(parts[1])]
    name = f"features of {images.name}"
    source = Source(name, features[0], y[: len(parts[0])], features[1], y_test[: len(parts[1])])
    return source, float(wrong.mean())


def save(source: Source, path: pathlib.Path) -> None:
    """Writes features as npz:PATH reads them."""
    np.savez_compressed(path, x_train=source.x, y_train=source.y, x_test=source.x_test, y_test=source.y_test)


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing but config.json was written"):
        setting, workdir = read(Extraction, scaled=True), command_line.workdir("features")
        output = Workdir(workdir, described(setting), overwrite=FLAGS.overwrite)
        source, error = extract(setting)
        save(source, output.file("features.npz"))
        output.write_json("summary.json", {"test_error": error, "n": len(source.x), "num_tests": len(source.x_test)})
    print(
        f"{len(source.x)} features; the network's test error is {100 * error:.2f} %; written to {workdir}/features.npz"
    )


if __name__ == "__main__":
    define(Extraction, scaled=True)
    command_line.define_workdir()
    command_line.start(main)
