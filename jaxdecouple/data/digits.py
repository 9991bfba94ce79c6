"""The digits: the 1797 grey 8x8 images of handwritten digits that come with scikit-learn."""

import numpy as np

from jaxdecouple.data.dataset import Dataset
from jaxdecouple.errors import DataError

_NUM_TRAIN = 1437


def load_digits() -> Dataset:
    """The digits as uint8 [N, 8, 8, 1], split 1437 / 360; nothing is downloaded.

    The values 0..16 are scaled to 0..255 and rounded. The split is fixed: the images are put in
    the order `np.random.default_rng(0).permutation(1797)`; the first 1437 are the training part.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled_digits
    except ImportError as error:
        raise DataError("'digits' needs scikit-learn: pip install scikit-learn") from error
    images, labels = bundled_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    return Dataset("digits", pixels[train], labels[train], pixels[test], labels[test])
