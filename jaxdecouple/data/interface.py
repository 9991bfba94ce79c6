"""Image data: what any data set offers to whoever trains on it, wherever its images are."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class ImageData(Protocol):
    """Labelled images of one size in a training and a test part, given out in batches.

    `Dataset` holds them in memory, `StreamedDataset` decodes them as they are needed; whatever else has these
    attributes can be trained on as well. Shapes: B images, H rows, W columns, C channels.

    Attributes:
        name: what results on these data are reported under.
        class_names: one name per class.
        num_classes: number of classes.
        image_shape: (H, W, C) of every image in a batch.
        num_train, num_test: number of images in each part.
        crops_itself: whether training batches come cropped and mirrored, so that `Preprocess` only normalises.
    """

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_train(self) -> int: ...
    @property
    def num_test(self) -> int: ...
    @property
    def crops_itself(self) -> bool: ...

    def fingerprint(self) -> str:
        """Tells these data from others: the same whenever they are loaded, on any machine."""
        ...

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = False, start: int = 0, augment: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch's batches of images [B, H, W, C] and labels [B] int32, the last perhaps with fewer than B.

        They are a function of the arguments alone: the same again whenever asked for, with any number of threads.

        Args:
            batch_size: B.
            seed, epoch: non-negative integers that choose the order, and what else is random.
            drop_last: leave out the last batch if it has fewer than B images.
            start: batches to skip, without reading them: what follows is the rest of the epoch.
            augment: whether data that crop themselves do so at random; no other data read it.
        """
        ...

    def test_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All test images in a fixed order, the last batch perhaps with fewer than B."""
        ...

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel to normalise with, where uint8 images lie in [0, 1]."""
        ...
