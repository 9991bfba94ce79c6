"""Image-classification data, in memory or streamed: loading, batches and on-device preprocessing."""

from jaxdecouple.data.augment import NORMALISATIONS, Preprocess
from jaxdecouple.data.batches import epoch_batches, num_batches
from jaxdecouple.data.dataset import Dataset
from jaxdecouple.data.interface import ImageData
from jaxdecouple.data.load import load
from jaxdecouple.data.streamed import StreamedDataset
from jaxdecouple.errors import DataError

__all__ = [
    "NORMALISATIONS",
    "DataError",
    "Dataset",
    "ImageData",
    "Preprocess",
    "StreamedDataset",
    "epoch_batches",
    "load",
    "num_batches",
]
