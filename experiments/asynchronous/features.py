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
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import linen as nn

from experiments import cli as command_line
from experiments.asynchronous.curves import described
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from jaxdecouple import data
from jaxdecouple.asynchronous.sources import Source

FLAGS = flags.FLAGS

_BATCH, _CHUNK = 64, 500


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


class ConvNet(nn.Module):
    """Two convolutions and three dense layers; `features` are what the first of these says."""

    filters: int
    num_classes: int

    def setup(self) -> None:
        self.convolutions = [nn.Conv(self.filters, (5, 5)) for _ in range(2)]
        self.wide, self.narrow, self.top = nn.Dense(384), nn.Dense(192), nn.Dense(self.num_classes)

    def features(self, images: jax.Array) -> jax.Array:
        """``[n, 384]``, none below 0."""
        x = images
        for convolution in self.convolutions:
            x = nn.max_pool(nn.relu(convolution(x)), (3, 3), strides=(2, 2), padding="SAME")
        return nn.relu(self.wide(x.reshape(len(x), -1)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits, ``[n, num_classes]``."""
        return self.top(nn.relu(self.narrow(self.features(images))))


def extract(setting: Extraction) -> tuple[Source, float]:
    """The features of training and test images, and the test error of the network itself.

    Raises:
      ValueError: the images cannot be had.
    """
    images = data.load(setting.data)
    x, x_test = (np.asarray(part, np.float32) for part in (images.x_train, images.x_test))
    mean, deviation = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    y, y_test = np.asarray(images.y_train, np.int32), np.asarray(images.y_test, np.int32)
    network = ConvNet(setting.filters, images.num_classes)
    count = setting.cnn_examples or len(x)
    params = _train(network, x[:count], y[:count], setting)
    parts = (x[: setting.num_examples or None], x_test[: setting.num_tests or None])
    features = [_apply(network, params, part, "features") for part in parts]
    wrong = _apply(network, params, parts[1], "__call__").argmax(axis=1) != y_test[: len(parts[1])]
    name = f"features of {images.name}"
    source = Source(name, features[0], y[: len(parts[0])], features[1], y_test[: len(parts[1])])
    return source, float(wrong.mean())


def _train(network: ConvNet, x: np.ndarray, y: np.ndarray, setting: Extraction) -> dict:
    params = network.init(jax.random.key(setting.seed), x[:1])
    optimizer = optax.adam(setting.learning_rate)

    def loss(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(network.apply(params, images), labels)
        return jnp.mean(losses)

    @jax.jit
    def step(params: dict, state: optax.OptState, images: jax.Array, labels: jax.Array) -> tuple:
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for epoch in range(setting.cnn_epochs):
        losses = []
        for rows in _batches(len(x), (setting.seed, epoch)):
            params, state, value = step(params, state, x[rows], y[rows])
            losses.append(value)
        print(f"network of the features, epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)
    return params


def _batches(count: int, seed: tuple[int, int]) -> Iterator[np.ndarray]:
    order, size = np.random.default_rng(seed).permutation(count), min(_BATCH, count)
    yield from order[: count // size * size].reshape(-1, size)


def _apply(network: ConvNet, params: dict, x: np.ndarray, method: str) -> np.ndarray:
    apply = jax.jit(lambda images: network.apply(params, images, method=method))
    return np.concatenate([np.asarray(apply(x[at : at + _CHUNK])) for at in range(0, len(x), _CHUNK)])


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
