"""Files in the text format of LIBSVM: a label and ``column:value`` pairs on each line, columns counted from 1."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pathlib
from typing import Any, BinaryIO

import numpy as np

_OPENERS = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
_LAST_COLUMN = 2**31 - 1  # columns are counted in 32 bits


def read_libsvm(
    path: str | pathlib.Path, *, num_columns: int | None = None, dtype: Any = np.float64
) -> tuple[Any, Any]:
    """Reads a file, plain or compressed (.bz2, .gz, .xz).

    Args:
      path: the file.
      num_columns: d; None: as many as occur. A test set needs that of its training set.
      dtype: of the values.

    Returns:
      A SciPy CSR matrix ``[n, d]`` and the labels, ``[n]`` float64.

    Raises:
      ValueError: scikit-learn is missing, the file is not there, is no such file, has a malformed line, whose number is
        given, or holds NaN or infinite numbers.
    """
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise ValueError(f"files in LIBSVM format need scikit-learn: pip install scikit-learn ({error})") from error

    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}; write the path of a file in LIBSVM format")
    try:
        with _open(path) as file:
            # Its type is taken from the default, "auto"; it may be a bool as well.
            x, y = load_svmlight_file(file, n_features=num_columns, dtype=dtype, zero_based=False)  # pyright: ignore[reportArgumentType]
    except (ValueError, OverflowError, OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(_complaint(path, error)) from error
    if not len(y):
        raise ValueError(f"{path} has no lines; write the path of a file in LIBSVM format")
    if not (np.isfinite(x.data).all() and np.isfinite(y).all()):
        raise ValueError(f"{path} holds NaN or infinite numbers; remove or replace them")
    return x, y


def _open(path: pathlib.Path) -> BinaryIO:
    return _OPENERS.get(path.suffix, open)(path, "rb")


def _complaint(path: pathlib.Path, error: Exception) -> str:
    """What is wrong with a file that scikit-learn could not read, and where."""
    if isinstance(error, ValueError) and "n_features" in str(error):
        return f"{path} has more columns than num_columns: {error}; write a larger num_columns"
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                fault = _fault(line.decode("utf-8", "replace"))
                if fault:
                    return f"{path}, line {number}: {fault}; write 'label column:value column:value ...'"
    except (OSError, EOFError, lzma.LZMAError) as broken:
        return f"{path} cannot be decompressed ({broken}); fetch it again"
    return f"{path} cannot be read: {error}"


def _fault(line: str) -> str | None:
    """What is wrong with a line, or None."""
    entries = line.split("#", 1)[0].split()
    if not entries:
        return None
    if not _is_number(entries[0]):
        return f"the label is {entries[0]!r}, which is no number"
    last = 0
    for entry in entries[1:]:
        column, colon, value = entry.partition(":")
        if column == "qid":
            continue
        if not colon or not column.isdigit() or not _is_number(value):
            return f"{entry!r} is not column:value"
        if int(column) <= last:
            return f"column {column} comes after column {last}, and columns count up from 1"
        if int(column) > _LAST_COLUMN:
            return f"column {column} is beyond {_LAST_COLUMN}, the last that is read"
        last = int(column)
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
