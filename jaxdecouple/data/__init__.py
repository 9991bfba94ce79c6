"""Data: labelled images, in memory or streamed, and texts as tokens; batches and on-device preprocessing."""

from jaxdecouple.data.augment import NORMALISATIONS, Preprocess
from jaxdecouple.data.batches import epoch_batches, num_batches
from jaxdecouple.data.dataset import Dataset
from jaxdecouple.data.interface import ImageData
from jaxdecouple.data.load import load
from jaxdecouple.data.streamed import StreamedDataset
from jaxdecouple.data.text import TextData, is_text, load_text
from jaxdecouple.data.tokenizers import ByteTokens, CharacterTokens, FileTokens, Tokenizer
from jaxdecouple.errors import DataError

__all__ = [
    "NORMALISATIONS",
    "ByteTokens",
    "CharacterTokens",
    "DataError",
    "Dataset",
    "FileTokens",
    "ImageData",
    "Preprocess",
    "StreamedDataset",
    "TextData",
    "Tokenizer",
    "epoch_batches",
    "is_text",
    "load",
    "load_text",
    "num_batches",
]
