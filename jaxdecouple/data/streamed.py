"""Streamed data: image files too many for memory, decoded, cropped and resized on the host as batches are asked for."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxdecouple.data import image_files
from jaxdecouple.data.batches import check_epoch, num_batches
from jaxdecouple.data.crops import centre_crop, random_crop
from jaxdecouple.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGE_SIZE = 224
_AHEAD = 2  # batches decoded before they are asked for


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """The files of one part, ROOT/CLASS/NAME, in order. A million of them are a million short strings.

    Attributes:
        root: the part's directory.
        classes: names of the class directories, in the order of the labels.
        names: [N] file names.
        labels: [N] int32.
    """

    root: pathlib.Path
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Where image `index` is."""
        return os.path.join(self.root, self.classes[self.labels[index]], self.names[index])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StreamedDataset:
    """Image files of any sizes as batches of RGB images of one size; an `ImageData`.

    Grain's threads decode at most two batches ahead of the one asked for, so memory is bounded by the batch size. In
    training the order is that of `epoch_batches`, and each image is the window of `random_crop`, drawn from
    `np.random.default_rng([seed, epoch, index, 1])`, index being its place in `train`; in testing, `centre_crop`.

    Attributes:
        name: what results on these data are reported under.
        train, test: the files; both have the same classes.
        class_names: one name per class.
        image_size: height and width in pixels of the images in a batch.
        resize: what the shorter side of a test image is resized to before its centre is cut out; 0: 8/7 of image_size,
            which makes 256 of 224.
        scale, ratio, flip: see `random_crop`.
        mean, std: per channel, to normalise with; by default ImageNet's, which are not computed again.
        num_threads: that decode; 0: one per core that this process may use. They change the speed, never the batches.

    Raises:
        DataError: a size or number of threads that cannot be.
    """

    name: str
    train: ImageFiles
    test: ImageFiles
    class_names: tuple[str, ...]
    image_size: int = _IMAGE_SIZE
    resize: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_threads: int = 0
    crops_itself = True  # not a field: a fact about the class

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise DataError(f"image_size is {self.image_size}; write at least 1 pixel, such as {_IMAGE_SIZE}")
        object.__setattr__(self, "resize", self.resize or round(self.image_size * 8 / 7))
        if self.resize < self.image_size:
            raise DataError(f"resize is {self.resize}; write at least image_size, {self.image_size}, or 0")
        if self.num_threads < 0:
            raise DataError(f"num_threads is {self.num_threads}; write at least 1, or 0 for one per core")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(
                f"scale is {self.scale} and ratio {self.ratio}; write (least, greatest), both above 0, and scales "
                "of at most 1"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image in a batch."""
        return self.image_size, self.image_size, 3

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test)

    def fingerprint(self) -> str:
        """Changes with any file's name or class, and with every setting that a batch depends on; files are not read."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.test):
            digest.update("\n".join((*part.classes, *part.names)).encode())
            digest.update(np.ascontiguousarray(part.labels))
        settings = (self.image_size, self.resize, self.scale, self.ratio, self.flip, self.mean, self.std)
        digest.update(repr((settings, self.class_names)).encode())
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`mean` and `std`."""
        return self.mean, self.std

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = False, start: int = 0, augment: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of uint8 [B, H, W, 3] and int32 [B], as `ImageData.train_batches` says.

        Raises:
            DataError: at the call, as `epoch_batches`; and from the iterator, when a file cannot be decoded. All
                batches before the damaged file's have been given out by then.
        """
        count = check_epoch(self.num_train, batch_size, seed, epoch, drop_last, start)
        order = np.random.default_rng([seed, epoch]).permutation(self.num_train)
        rows = order[start * batch_size : count * batch_size]

        def pixels(index: int) -> np.ndarray:
            image = image_files.decode(self.name, self.train.path(index))
            if not augment:
                return centre_crop(image, self.image_size, self.resize)
            # The last number keeps this apart from the order's generator: trailing zeros change nothing.
            rng = np.random.default_rng([seed, epoch, index, 1])
            return random_crop(image, self.image_size, rng, scale=self.scale, ratio=self.ratio, flip=self.flip)

        return self._batches(rows, self.train.labels, pixels, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All test images, sorted by class, then by file name; uint8 [B, H, W, 3] and int32 [B]. Raises as training."""
        num_batches(self.num_test, batch_size)

        def pixels(index: int) -> np.ndarray:
            image = image_files.decode(self.name, self.test.path(index))
            return centre_crop(image, self.image_size, self.resize)

        return self._batches(np.arange(self.num_test), self.test.labels, pixels, batch_size)

    def _batches(
        self, rows: np.ndarray, labels: np.ndarray, pixels: Callable[[int], np.ndarray], batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The images `rows`, in that order, by Grain's threads."""
        grain = import_grain(self.name)
        threads = self.num_threads or _cores()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, _AHEAD * batch_size))
        examples = grain.MapDataset.source(rows).map(lambda index: (pixels(int(index)), labels[index]))
        stream = iter(examples.to_iter_dataset(options).batch(batch_size))
        try:
            yield from stream
        finally:
            stream.close()  # what is decoded ahead is dropped, also when the consumer stops early

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("x_train", "y_train", "x_test", "y_test"):
            raise DataError(
                f"{self.name} is streamed and has no {name}; use train_batches and test_batches, or give a data set in "
                "memory"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def load_streamed(
    root: pathlib.Path, *, kind: str = "streamed", image_size: int = 0, num_threads: int = 0
) -> StreamedDataset:
    """The data set under `root`, whose directories train/CLASS/ and test/CLASS/, or val/CLASS/, hold PNG or JPEG files.

    `test` is taken where both are there, except for `kind` imagenet: the files of ImageNet's test part have no labels.
    Classes are numbered by sorted name. Files are listed, and one of each part is decoded, but no more.

    Args:
        root: the directory.
        kind: `imagenet` or `streamed`; ImageNet is named by it, other data by their directory.
        image_size: height and width of the images in a batch; 0: 224.
        num_threads: see `StreamedDataset`.

    Raises:
        DataError: Grain or Pillow is missing, or a directory, or the first file of a part cannot be decoded, or a
            class has no images, or only one part has it.
    """
    image_files.need_pillow(kind)
    import_grain(kind)
    test = "test" if kind != "imagenet" and (root / "test").is_dir() else "val"
    parts = {part: image_files.class_files(kind, root / part) for part in ("train", test)}
    classes = tuple(image_files.common_classes(kind, root, parts))
    lists = {}
    for part, files in parts.items():
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files[name]) for name in classes])
        lists[part] = ImageFiles(root / part, classes, [file for name in classes for file in files[name]], labels)
        image_files.decode(kind, lists[part].path(0))
    return StreamedDataset(
        name=kind if kind == "imagenet" else root.resolve().name,
        train=lists["train"],
        test=lists[test],
        class_names=classes,
        image_size=image_size or _IMAGE_SIZE,
        num_threads=num_threads,
    )


def import_grain(kind: str) -> Any:
    """Grain; DataError, naming what to install, where it is missing."""
    try:
        import grain
    except ImportError as error:
        raise DataError(f"{kind!r} is streamed, which needs Grain: pip install grain pillow ({error})") from error
    return grain


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
