"""A data set: labelled images of one common size, in a training and a test part, in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from jaxdecouple.data.batches import epoch_batches
from jaxdecouple.errors import DataError, DataWarning

_MOST_CLASSES = 2**20  # beyond this a label is taken for an identifier, not a class number
_MOST_RATIO = 50  # of the largest values of the parts' images: 0..1 beside 0..255 is more
_CHANNELS = (1, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels as NumPy arrays, checked once when the record is made; an `ImageData`.

    Shapes: N images of the part, H rows, W columns, C channels (the same H, W, C in both parts).

    Attributes:
        name: what results on these data are reported under.
        x_train: [N, H, W, C], uint8 in 0..255, or any floating-point type, kept as given. Images
            without a channel axis, [N, H, W], get C = 1.
        y_train: [N] int32 class numbers, 0 <= y < num_classes. Any integer type is accepted.
        x_test, y_test: the same for the test part, which must not be empty either.
        class_names: one name per class. Left out, the classes are 0..max(y_train), named by digits.

    Raises:
        DataError: an array has another type or shape than stated, a label is outside the classes,
            a part is empty, the parts' images differ in type, size or range, a float image holds NaN or infinity,
            or there are more classes than training images.

    Warns:
        DataWarning: a class has no training images.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = ()
    crops_itself = False  # not a field: a fact about the class

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images = _check_images(f"{self.name}: x_{part}", getattr(self, f"x_{part}"))
            labels = getattr(self, f"y_{part}")
            object.__setattr__(self, f"x_{part}", images)
            labels = _check_labels(f"{self.name}: y_{part}", labels, len(images))
            object.__setattr__(self, f"y_{part}", labels)
        self._check_same_images()
        names = self.class_names or map(str, range(_count_classes(self.name, self.y_train)))
        object.__setattr__(self, "class_names", tuple(names))
        for part in ("train", "test"):
            self._check_classes(f"{self.name}: y_{part}", getattr(self, f"y_{part}"))
        self._warn_of_empty_classes()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.x_train.shape[1:]

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.y_train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.y_test)

    def fingerprint(self) -> str:
        """Changes with any image, label or class."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        digest.update("\n".join(self.class_names).encode())
        return digest.hexdigest()

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = False, start: int = 0, augment: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch's batches as they are stored, by `epoch_batches`; random crops are left to `Preprocess`."""
        return epoch_batches(
            self.x_train, self.y_train, batch_size, seed=seed, epoch=epoch, drop_last=drop_last, start=start
        )

    def test_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All test images in their order, the last batch perhaps with fewer."""
        return epoch_batches(self.x_test, self.y_test, batch_size, seed=0, epoch=0, shuffle=False)

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel of the training images, by `channel_statistics`."""
        return channel_statistics(self.x_train)

    def _check_same_images(self) -> None:
        train, test = self.x_train, self.x_test
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(
                f"{self.name}: training and test images differ: {train.dtype}"
                f"{list(train.shape[1:])} against {test.dtype}{list(test.shape[1:])}; "
                "give both one size and one type"
            )

        tops = [float(np.abs(images).max()) for images in (train, test)]
        if min(tops) > 0 and max(tops) > _MOST_RATIO * min(tops):
            raise DataError(
                f"{self.name}: training images reach {tops[0]:g}, test images {tops[1]:g}, as if on two scales; give "
                "both parts in 0..1, or both in 0..255"
            )

    def _warn_of_empty_classes(self) -> None:
        empty = np.flatnonzero(np.bincount(self.y_train, minlength=self.num_classes) == 0)
        if len(empty):
            some = ", ".join(self.class_names[k] for k in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            warnings.warn(f"{self.name} has no training images of class {some}{more}", DataWarning, stacklevel=4)

    def _check_classes(self, what: str, labels: np.ndarray) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(
                f"{what} has labels from {low} to {high}, but there are {self.num_classes} "
                f"classes, 0 to {self.num_classes - 1}; number the classes from 0, and give "
                "class_names when the training labels do not reach the last class"
            )


def _check_images(what: str, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"{what} has type {images.dtype}; images are uint8 (0 to 255) or floating point: "
            "convert them, with .astype(np.uint8) if the values fit"
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{what} has shape {list(images.shape)}; expected [N, H, W, C], or [N, H, W] for grey "
            "images, and no axis of length 0"
        )
    if images.ndim == 4 and images.shape[1] in _CHANNELS and images.shape[3] not in (*_CHANNELS, images.shape[1]):
        if images.shape[2] == images.shape[3]:
            raise DataError(
                f"{what} has shape {list(images.shape)}, channels first, it seems; expected [N, H, W, C]: give "
                "np.moveaxis(images, 1, -1)"
            )
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise DataError(f"{what} holds NaN or infinite values; remove or replace them")
    images = images.astype(images.dtype.newbyteorder("="), copy=False)  # another machine's order of bytes
    return images if images.ndim == 4 else images[..., None]


def _count_classes(name: str, labels: np.ndarray) -> int:
    """As many as the labels say, if they are class numbers and not something else."""
    count = int(labels.max()) + 1
    if count > max(len(labels), 2):
        raise DataError(
            f"{name}: y_train has labels up to {count - 1}, but there are {len(labels)} training images; number the "
            "classes from 0, or give class_names"
        )
    return count


def _check_labels(what: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what} has type {labels.dtype}; labels are integer class numbers, counted from 0")
    if labels.shape != (num_images,):
        raise DataError(f"{what} has shape {list(labels.shape)}; expected one label per image, [{num_images}]")
    if labels.max() >= _MOST_CLASSES:
        raise DataError(f"{what} has labels up to {labels.max()}; number the classes from 0")
    return labels.astype(np.int32)


_CHUNK = 256


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of images [N, H, W, C] in float64, of uint8 images as fractions of 255.

    A channel that is constant gets deviation 1, so that it can be divided by.
    """
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
