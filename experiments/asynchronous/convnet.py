"""The convolutional network whose units are the features of images, and its training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

if TYPE_CHECKING:
    from experiments.asynchronous.features import Extraction

_BATCH, _CHUNK = 64, 500


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


def train(network: ConvNet, x: np.ndarray, y: np.ndarray, setting: Extraction) -> dict:
    """Its parameters, trained by Adam to tell the classes ``y`` of images ``x``, [n, height, width, channels]."""
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


def apply(network: ConvNet, params: dict, x: np.ndarray, method: str) -> np.ndarray:
    """What a method says of images, a chunk of them after the other."""
    compiled = jax.jit(lambda images: network.apply(params, images, method=method))
    return np.concatenate([np.asarray(compiled(x[at : at + _CHUNK])) for at in range(0, len(x), _CHUNK)])
