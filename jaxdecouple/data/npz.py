"""An npz data set: four NumPy arrays in one file, under the names that Keras uses."""

import pathlib
import zipfile

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
    if not path.is_file():
        raise DataError(f"npz: there is no file {path}; {_WRITE}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive]
            if missing:
                raise DataError(
                    f"npz: {path} lacks {', '.join(missing)}; it holds {', '.join(archive) or 'nothing'}; {_WRITE}"
                )
            arrays = {name: archive[name] for name in _ARRAYS}
            names = archive["class_names"].tolist() if "class_names" in archive else []
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"npz: {path} cannot be read ({error.strerror}); allow this user to read it") from error
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # np.load answers a lone array (.npy) with an ndarray, which is no context manager.
        raise DataError(f"npz: {path} is not a readable npz file ({error}); {_WRITE}") from error
    for part in ("y_train", "y_test"):
        if arrays[part].ndim == 2 and arrays[part].shape[1] == 1:
            arrays[part] = arrays[part][:, 0]
    return Dataset(path.stem, **arrays, class_names=tuple(map(str, names)))
