"""Preprocessing: from stored images to network inputs, compiled and run on the images' device.

What the papers do, and how to have it. *Crop* is a window of the image's own size out of the image with zeros around
it, at random; *flip* mirrors left to right with probability 1/2. Tests are only normalised, ImageNet's also cropped.

| data | paper | in training | here |
|---|---|---|---|
| CIFAR-10, -100 | FDG; ADL 6; thesis 5.5.1, 6.5.1 | crop, flip, normalised | `for_dataset(augment=True)`: pad 4 |
| | FDG's code | deviations 0.2023, 0.1994, 0.2010 | `normalise="fdg"` |
| | ADL's code | deviations 0.2470, 0.2435, 0.2616 | `normalise="channels"`, computed from the images |
| | DSP 5 | crop, flip, "standardization" | `normalise="image"` |
| MNIST | thesis 4.4.1, 4.4.3 | nothing is said | `augment=False`; with True, crop (pad 1), no flip |
| Tiny-ImageNet | FDG | as CIFAR | `augment=True`: pad 8, flip; `dataclasses.replace(..., pad=4)` |
| ImageNet | ADL 6; DSP 5 | crop, flip, normalised | `StreamedDataset`: random window resized to 224, flip |
| | thesis 4.4.4 | nothing is said | the same |
| | in testing | nothing is said | `StreamedDataset`: shorter side to 256, centre 224 |

No paper gives the padding or the size of ImageNet's windows; here both are the usual ones. DSP does not say whether
it standardises each image, as TensorFlow's function of that name does, or each channel, which is `channels`. In
`experiments` the options are `--noaugment`, `--normalise` and `--image_size`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxdecouple.data.interface import ImageData
from jaxdecouple.errors import DataError

# Colour photographs may be mirrored; these colour sets show digits, whose class is lost by it.
_COLOUR_DIGITS = ("svhn",)
# FDG's published code writes these down for CIFAR-10. The deviation is not that of all pixels (0.2470, 0.2435, 0.2616).
_FDG = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
NORMALISATIONS = ("channels", "fdg", "image")


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
        per_image: make each image, after its crop, of mean 0 and deviation 1 over all its pixels and channels before
            that, as `tf.image.per_image_standardization` does (an almost constant image is only scaled so far).
        dtype: floating-point type of the result. float64 needs `jax_enable_x64`.
    """

    pad: int
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: DTypeLike = jnp.float32
    per_image: bool = False

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
    def for_dataset(
        cls, dataset: ImageData, *, augment: bool, normalise: str = "channels", dtype: DTypeLike = jnp.float32
    ) -> "Preprocess":
        """The usual preprocessing of this data set.

        With augment=True, colour images are padded by an eighth of their height (4 for 32x32) and
        flipped, except SVHN's digits, which are not flipped. Grey images are padded by a sixteenth
        (1 for 8x8 and 28x28) and not flipped, since most grey sets are digits or letters. With
        augment=False, or for a data set that crops and flips by itself, nothing is random.
        `dataclasses.replace(preprocess, flip=False)` changes it.

        Args:
            dataset: the data.
            augment: whether training images are cropped and flipped at random.
            normalise: `channels`, with the data set's own means and deviations of the channels; `fdg`, with the
                constants in FDG's code; `image`, each image by its own mean and deviation.
            dtype: floating-point type of the result.

        Raises:
            DataError: another `normalise`, or `fdg` for grey images.
        """
        height, _, channels = dataset.image_shape
        if normalise not in NORMALISATIONS:
            raise DataError(f"normalise is {normalise!r}; write one of {', '.join(NORMALISATIONS)}")
        if normalise == "fdg" and channels != 3:
            raise DataError(f"normalise is 'fdg', for colour images, but {dataset.name} has {channels} channels")
        if normalise == "channels":
            mean, std = dataset.channel_statistics()
        else:
            mean, std = _FDG if normalise == "fdg" else ((0.0,) * channels, (1.0,) * channels)
        colour, here = channels > 1, augment and not dataset.crops_itself
        digits = any(name in dataset.name.lower() for name in _COLOUR_DIGITS)
        pad = max(1, height // (8 if colour else 16)) if here else 0
        return cls(pad, here and colour and not digits, mean, std, dtype, per_image=normalise == "image")

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
        images = images.astype(wide)
        if self.per_image:
            images, scale = _standardised(images), 1
        mean, std = jnp.asarray(self.mean, wide), jnp.asarray(self.std, wide)
        return ((images / scale - mean) / std).astype(self.dtype)

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


def _standardised(images: jax.Array) -> jax.Array:
    centred = images - images.mean((1, 2, 3), keepdims=True)
    deviation = jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True))
    return centred / jnp.maximum(deviation, images[0].size ** -0.5)  # TensorFlow's bound
