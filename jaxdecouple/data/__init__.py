"""Image-classification data held in memory: loading, batches and on-device preprocessing."""

from jaxdecouple.data.augment import Preprocess
from jaxdecouple.data.batches import epoch_batches, num_batches
from jaxdecouple.data.dataset import DataError, Dataset
from jaxdecouple.data.load import load

__all__ = ["DataError", "Dataset", "Preprocess", "epoch_batches", "load", "num_batches"]
