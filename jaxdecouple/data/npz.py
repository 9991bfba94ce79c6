"""An npz data set: four NumPy arrays in one file, under the names that Keras uses."""

import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from jaxdecouple.data.dataset import Dataset
from jaxdecouple.errors import DataError

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_WRITE = "write one with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"


def load_npz(path: pathlib.Path) -> Dataset:
    """The data set in the file `path`, named by the file's stem.

    The file holds x_train and x_test, [N, H, W, C] or [N, H, W]; y_train and y_test, [N] or, as
    Keras stores CIFAR, [N, 1]; and, if wanted, class_names, an array of one string per class.
    Types and ranges are those of `Dataset`. Nothing in the file is ever unpickled.

    Raises:
        DataError: there is no such file, it is not an npz file, an array is missing or holds
            Python objects, or the arrays do not make a `Dataset`.
    """
    arrays, held = read_npz(path, (*_ARRAYS, "class_names"), _WRITE)
    names = arrays.pop("class_names", np.array([])).tolist()
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise DataError(f"npz: {path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}; {_WRITE}")
    for part in ("y_train", "y_test"):
        if arrays[part].ndim == 2 and arrays[part].shape[1] == 1:
            arrays[part] = arrays[part][:, 0]
    return Dataset(path.stem, **arrays, class_names=tuple(map(str, names)))


def read_npz(path: pathlib.Path, names: Sequence[str], advice: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names that an npz file has, and the names of all that it has. Nothing is unpickled.

    Args:
        path: of the file.
        names: of the arrays to read, those that are there.
        advice: what to write, for messages.

    Raises:
        DataError: there is no such file, it is not an npz file, or an array holds Python objects.
    """
    if not path.is_file():
        raise DataError(f"npz: there is no file {path}; {advice}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in archive}, list(archive)
    except PermissionError as error:
        raise DataError(f"npz: {path} cannot be read ({error.strerror}); allow this user to read it") from error
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # np.load answers a lone array (.npy) with an ndarray, which is no context manager.
        raise DataError(f"npz: {path} is not a readable npz file ({error}); {advice}") from error
