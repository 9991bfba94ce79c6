"""Preprocessing: from stored images to network inputs, compiled and run on the images' device."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxdecouple.data.dataset import DataError, Dataset

# Colour photographs may be mirrored; these colour sets show digits, whose class is lost by it.
_COLOUR_DIGITS = ("svhn",)
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Flip, pad, crop and normalise images; a value, so that equal ones share compiled code.

    Attributes:
        pad: rows and columns of zeros (black) put around an image in training, of which a window
            of the image's own size is cut at random; 0 for none.
        flip: whether a training image is mirrored left to right with probability 1/2. Digits and
            letters must not be.
        mean, std: one number per channel, on the scale where uint8 images lie in [0, 1]; images
            leave as (image - mean) / std. Floating-point images are not rescaled before.
        dtype: floating-point type of the result. float64 needs `jax_enable_x64`.
    """

    pad: int
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        if self.pad < 0:
            raise DataError(f"pad is {self.pad}; give 0 or more pixels")
        if not self.std or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise DataError(
                f"mean is {self.mean} and std {self.std}; give one number per channel in both, and every std above 0"
            )
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise DataError(f"dtype is {self.dtype}; give a floating-point type")

    @classmethod
    def for_dataset(cls, dataset: Dataset, *, augment: bool, dtype: DTypeLike = jnp.float32) -> "Preprocess":
        """Preprocessing with the training images' channel means and deviations.

        With augment=True, colour images are padded by an eighth of their height (4 for 32x32) and
        flipped, except SVHN's digits, which are not flipped. Grey images are padded by a sixteenth
        (1 for 8x8 and 28x28) and not flipped, since most grey sets are digits or letters. With
        augment=False nothing is random. `dataclasses.replace(preprocess, flip=False)` changes it.
        A channel that is constant over the training images gets std 1.
        """
        mean, std = _channel_statistics(dataset.x_train)
        height, _, channels = dataset.image_shape
        colour = channels > 1
        digits = any(name in dataset.name.lower() for name in _COLOUR_DIGITS)
        pad = max(1, height // (8 if colour else 16)) if augment else 0
        return cls(pad, augment and colour and not digits, mean, std, dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def train(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Randomly cropped and flipped, normalised images [B, H, W, C] of type `dtype`.

        Every image has a crop and a flip of its own, determined by the key. The result is on the
        images' device; keep the key uncommitted, as `jax.random.key` and `fold_in` make it.

        Args:
            key: a JAX random key.
            images: [B, H, W, C], uint8 or floating point.

        Raises:
            DataError: images of another type or shape, or float64 asked for without x64.
        """
        self._check(images)
        corners, mirrored = draw(key, images.shape[0], pad=self.pad, flip=self.flip)
        # Mirroring first: XLA joins it with the padding, a quarter faster than the other order.
        if self.flip:
            images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.pad:
            images = _crop(images, corners, self.pad)
        return self._normalise(images)

    @functools.partial(jax.jit, static_argnums=0)
    def eval(self, images: jax.Array) -> jax.Array:
        """Normalised images [B, H, W, C] of type `dtype`; nothing is random. Raises as `train`."""
        self._check(images)
        return self._normalise(images)

    def _normalise(self, images: jax.Array) -> jax.Array:
        # Half precision is only the result's: 255 levels minus a mean need more bits than it has.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scale = 255 if images.dtype == jnp.uint8 else 1
        mean, std = jnp.asarray(self.mean, wide), jnp.asarray(self.std, wide)
        return ((images.astype(wide) / scale - mean) / std).astype(self.dtype)

    def _check(self, images: jax.Array) -> None:
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[-1] != channels:
            raise DataError(
                f"images have shape {list(images.shape)}; expected [B, H, W, {channels}], with "
                "the channels that mean and std were given for"
            )
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise DataError(f"images have type {images.dtype}; give uint8 or floating point")
        if self.dtype == jnp.float64 and not jax.config.jax_enable_x64:
            raise DataError("dtype float64 needs jax.config.update('jax_enable_x64', True)")


def draw(key: jax.Array, num_images: int, *, pad: int, flip: bool) -> tuple[jax.Array, jax.Array]:
    """The random part of `Preprocess.train`.

    Returns:
        corners: [num_images, 2] int32, uniform in 0..2 pad: row and column, in the padded image,
            of each window's upper left corner. (pad, pad) is the image itself. Images are mirrored
            before they are padded.
        mirrored: [num_images] bool, true with probability 1/2, or all false without flip.
    """
    corner_key, mirror_key = jax.random.split(key)
    corners = jax.random.randint(corner_key, (num_images, 2), 0, 2 * pad + 1, jnp.int32)
    mirrored = jax.random.bernoulli(mirror_key, 0.5, (num_images,)) & flip
    return corners, mirrored


def _crop(images: jax.Array, corners: jax.Array, pad: int) -> jax.Array:
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), images.shape[1:])

    return jax.vmap(window)(padded, corners)


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel in float64, of uint8 images as fractions of 255."""
    scale = 255 if images.dtype == np.uint8 else 1
    # Adding up whole images first is ten times as fast as adding a few channels at a time; and in
    # chunks, because the whole training set in float64 is eight times its uint8 size.
    rows = images.reshape(len(images), -1)

    def channel_mean(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        chunks = (rows[i : i + _CHUNK].astype(np.float64) for i in range(0, len(rows), _CHUNK))
        total = sum(function(chunk).sum(0) for chunk in chunks)
        return np.reshape(total, (-1, images.shape[-1])).mean(0) / len(rows)

    mean = channel_mean(lambda chunk: chunk)
    everywhere = np.tile(mean, rows.shape[1] // len(mean))
    std = np.sqrt(channel_mean(lambda chunk: (chunk - everywhere) ** 2))
    std[std == 0] = scale
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())
