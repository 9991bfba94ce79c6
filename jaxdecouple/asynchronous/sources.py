"""A source is data by a short name, as arrays that problems are made of: a matrix of examples, and labels.

    digits                      the 1797 8x8 digits that come with scikit-learn, 64 features from 0 to 1
    libsvm:PATH                 a file in LIBSVM's text format, sparse
    npz:PATH                    x_train, y_train and perhaps x_test, y_test, as Keras names them
    made:NxD, made:NxD:DENSITY  drawn at random, with a planted w; sparse where DENSITY is below 1

Labels come as they are stored; `signs` and `classes` make of them what a loss needs.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any, cast

import numpy as np

from jaxdecouple.asynchronous.libsvm import read_libsvm
from jaxdecouple.data.npz import read_npz
from jaxdecouple.errors import did_you_mean

FORMS = "'digits', 'libsvm:PATH', 'npz:PATH', 'made:NxD' or 'made:NxD:DENSITY', such as 'made:1000x500:0.02'"

_WRITE = "write npz:PATH of a file that numpy.savez wrote, with x_train and y_train"
_MADE = re.compile(r"(\d+)x(\d+)(?::([^:]+))?")
_NOISE = 0.1  # standard deviation of what `made` adds to x . w
_CHUNK = 1 << 22  # entries that are drawn at once


@dataclasses.dataclass(frozen=True)
class Source:
    """Data, and what they are called.

    Attributes:
      name: without the folder a file lies in.
      x: examples, ``[n, d]``, an array or a SciPy CSR matrix.
      y: labels as they are stored, ``[n]``.
      x_test, y_test: likewise, or None.
    """

    name: str
    x: Any
    y: np.ndarray
    x_test: Any = None
    y_test: np.ndarray | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether ``x`` is a sparse matrix."""
        return hasattr(self.x, "tocsr")

    def first(self, num_examples: int = 0, num_tests: int = 0) -> Source:
        """The first so many examples; 0: all.

        Raises:
          ValueError: there are fewer.
        """
        _check_count("num_examples", num_examples, self.x.shape[0], self.name)
        x, y = (self.x[:num_examples], self.y[:num_examples]) if num_examples else (self.x, self.y)
        if not num_tests:
            return dataclasses.replace(self, x=x, y=y)
        if self.x_test is None:
            raise ValueError(f"num_tests is {num_tests}, and {self.name} has no test part; write 0")
        assert self.y_test is not None  # as x_test
        _check_count("num_tests", num_tests, self.x_test.shape[0], self.name)
        return dataclasses.replace(self, x=x, y=y, x_test=self.x_test[:num_tests], y_test=self.y_test[:num_tests])


def load(name: str, *, test: str = "", dtype: Any = np.float64, seed: int = 0) -> Source:
    """The data that ``name`` names.

    Args:
      name: one of
        - ``digits``: 1437 training and 360 test examples, which the seed does not change;
        - ``libsvm:PATH``: read by `read_libsvm`, plain or compressed; without a test part unless ``test`` is given;
        - ``npz:PATH``: images are flattened; unsigned bytes are scaled to numbers from 0 to 1;
        - ``made:NxD``: N examples with D standard normal features, scaled to Euclidean norm 1, and labels
          ``y = sqrt(D) x . w + noise`` with a w of standard normal numbers by sqrt(D) and noise of deviation 0.1;
        - ``made:NxD:DENSITY``: the same with about ``DENSITY * D`` features in each example that are not 0, held as a
          sparse matrix from the start if DENSITY is below 1.
      test: another ``libsvm:PATH``, the test part of the first.
      dtype: of the examples.
      seed: of what is made.

    Raises:
      ValueError: there is no such source, or it cannot be read; says what to write.
    """
    kind, _, rest = name.partition(":")
    if test and kind != "libsvm":
        raise ValueError(f"a test file {test!r} is given with {name!r}; leave it out: only libsvm:PATH needs one")
    if kind == "digits" and not rest:
        return _digits(dtype)
    if kind in ("libsvm", "npz") and not rest:
        raise ValueError(f"the source is {name!r}, without a path; write {kind}:PATH")
    if kind == "libsvm":
        return _libsvm(rest, test, dtype)
    if kind == "npz":
        return _npz(pathlib.Path(rest).expanduser(), dtype)
    if kind == "made":
        return _made(name, rest, dtype, seed)
    hint = did_you_mean(kind, ("digits", "libsvm", "npz", "made"))
    raise ValueError(f"unknown source {name!r}; {hint}write {FORMS}")


def signs(y: np.ndarray, positive: float | None = None) -> np.ndarray:
    """Labels -1 and 1, for binary problems.

    Args:
      y: labels of any kind, ``[n]``.
      positive: the label that becomes 1, all the others -1. None: of two labels the larger one, so that 0 and 1 become
        -1 and 1; of more than two whole numbers the odd ones; of other numbers those above 0.

    Raises:
      ValueError: no label is ``positive``, or all labels come out the same.
    """
    y = np.asarray(y)
    found = np.unique(y)
    if positive is not None:
        chosen = y == positive
        if not chosen.any():
            raise ValueError(f"no label is {positive:g}; write one of {_shown(found)}")
    elif len(found) == 2:
        chosen = y == found[1]
    elif np.array_equal(found, np.rint(found)):
        chosen = np.rint(y).astype(np.int64) % 2 == 1
    else:
        chosen = y > 0
    if chosen.all() or not chosen.any():
        raise ValueError(
            f"the labels are {_shown(found)}, of which all become {1 if chosen.all() else -1}; write others"
        )
    return np.where(chosen, 1.0, -1.0)


def classes(y: np.ndarray) -> np.ndarray:
    """Classes counted from 0, for networks: labels that are such already, or two labels of any kind, such as -1 and 1.

    Raises:
      ValueError: they are neither.
    """
    y = np.asarray(y)
    found = np.unique(y)
    if np.array_equal(found, np.rint(found)) and found[0] >= 0:
        return np.rint(y).astype(np.int32)
    if len(found) == 2:
        return (y == found[1]).astype(np.int32)
    raise ValueError(
        f"the labels are {_shown(found)}, and classes are whole numbers from 0; write data that have classes"
    )


def _shown(found: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in found[:10]) + (", ..." if len(found) > 10 else "")


def _check_count(what: str, wanted: int, there: int, name: str) -> None:
    if not 0 <= wanted <= there:
        raise ValueError(f"{what} is {wanted}, and {name} has {there} examples; write {there} or less, or 0 for all")


def _digits(dtype: Any) -> Source:
    from jaxdecouple.data import load

    digits = load("digits")
    x, x_test = (_flat(images, dtype) for images in (digits.x_train, digits.x_test))
    return Source("digits", x, np.asarray(digits.y_train), x_test, np.asarray(digits.y_test))


def _flat(x: np.ndarray, dtype: Any) -> np.ndarray:
    """A row for each example; bytes become numbers from 0 to 1."""
    scale = 255 if x.dtype == np.uint8 else 1
    return x.reshape(len(x), -1).astype(dtype) / np.asarray(scale, dtype)


def _libsvm(path: str, test: str, dtype: Any) -> Source:
    x, y = read_libsvm(path, dtype=dtype)
    name = f"libsvm:{pathlib.Path(path).name}"
    if not test:
        return Source(name, x, y)
    kind, _, test_path = test.partition(":")
    if kind != "libsvm" or not test_path:
        raise ValueError(f"the test part is {test!r}; write libsvm:PATH")
    x_test, y_test = read_libsvm(test_path, num_columns=x.shape[1], dtype=dtype)
    return Source(name, x, y, x_test, y_test)


def _npz(path: pathlib.Path, dtype: Any) -> Source:
    arrays, held = read_npz(path, [f"{letter}_{part}" for part in ("train", "test") for letter in "xy"], _WRITE)
    others = ", ".join(held) or "nothing"
    parts = []
    for part in ("train", "test"):
        pair = [arrays.get(f"{letter}_{part}") for letter in "xy"]
        if (part == "train" and None in map(_kind, pair)) or len({_kind(array) for array in pair}) > 1:
            raise ValueError(f"{path} holds {others}; write a file with x_{part} and y_{part}")
        parts += pair
    for x, y, part in ((*parts[:2], "train"), (*parts[2:], "test")):
        if x is None:
            continue
        if x.ndim < 2 or y.size != len(x) or not all(array.dtype.kind in "iuf" for array in (x, y)):
            raise ValueError(
                f"{path}: x_{part} has shape {x.shape} and dtype {x.dtype}, y_{part} shape {y.shape} and dtype "
                f"{y.dtype}; write numbers, one row and one label for each example"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"{path}: x_{part} or y_{part} holds NaN or infinite numbers; remove or replace them")
    x, y, x_test, y_test = parts
    name = f"npz:{path.name}"
    if x_test is None:
        return Source(name, _flat(x, dtype), y.ravel())
    return Source(name, _flat(x, dtype), y.ravel(), _flat(x_test, dtype), y_test.ravel())


def _kind(array: np.ndarray | None) -> str | None:
    return None if array is None else "array"


def _made(name: str, rest: str, dtype: Any, seed: int) -> Source:
    match = cast(re.Match[str], _MADE.fullmatch(rest))  # or None, which has no groups: a TypeError
    try:
        n, d, density = int(match[1]), int(match[2]), float(match[3] or 1)
    except (TypeError, ValueError):
        raise ValueError(
            f"the source is {name!r}; write made:NxD or made:NxD:DENSITY, such as made:1000x500:0.02"
        ) from None
    if not (n >= 1 and d >= 1 and 0 < density <= 1):
        raise ValueError(f"the source is {name!r}; write N and D of at least 1, and a DENSITY above 0, at most 1")
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(d) / np.sqrt(d)
    if density < 1:
        x = _sparse(rng, n, d, max(1, round(density * d)), dtype)
    else:
        x = rng.standard_normal((n, d)).astype(dtype)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sqrt(d) * (x @ w.astype(dtype)) + _NOISE * rng.standard_normal(n)
    return Source(name, x, np.asarray(y, np.float64))


def _sparse(rng: np.random.Generator, n: int, d: int, per_row: int, dtype: Any) -> Any:
    """Rows with ``per_row`` entries in random columns, a few less where a column is drawn twice; of norm 1."""
    import scipy.sparse

    data, columns = np.empty((n, per_row), dtype), np.empty((n, per_row), np.int32)
    step = max(1, _CHUNK // per_row)
    for at in range(0, n, step):
        size = (min(step, n - at), per_row)
        columns[at : at + step] = np.sort(rng.integers(0, d, size, dtype=np.int32), axis=1)
        data[at : at + step] = rng.standard_normal(size)
    starts = np.arange(n + 1, dtype=np.int64 if n * per_row > np.iinfo(np.int32).max else np.int32) * per_row
    x = scipy.sparse.csr_matrix((data.ravel(), columns.ravel(), starts), shape=(n, d))
    x.sum_duplicates()
    norms = np.sqrt(np.add.reduceat(x.data**2, x.indptr[:-1]))
    x.data /= np.repeat(norms, np.diff(x.indptr))
    return x
