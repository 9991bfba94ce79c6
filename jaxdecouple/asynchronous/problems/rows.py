"""Rows are the examples of a linear problem: a data matrix, dense or sparse, read a few rows at a time.

A sparse matrix stays as SciPy's CSR has it, three flat arrays; of the rows in use, equally many entries are read at
first, and then what longer rows have left. So one long row costs what it holds, and does not slow the others. A sparse
matrix that is small, and full enough that this would be slower, is made dense.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array  # numbers of rows are either: NumPy's on the host, JAX's in what is compiled

# A total, and some entries of rows: which of the rows each is of, its value and its column, to be added to it.
AddEntries = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

_CHUNK = 4096  # rows of a sparse matrix that are padded at once, when all are read
# A sparse matrix of so many numbers, zeros among them, is held dense if this share of them are no zeros.
_FULL_FROM, _FULL_TO, _FULL = 1 << 16, 1 << 25, 0.05
_LEFT_COST = 4  # what an entry takes that is left, by one of those that are read at first
_NARROW = 1024  # columns up to which some rows of a sparse matrix may be made dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """Rows of a dense matrix.

    Attributes:
      matrix: examples, ``[n, d]``.
    """

    matrix: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        return cast(tuple[int, int], self.matrix.shape)

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        return self.matrix.dtype

    @property
    def is_narrow(self) -> bool:
        """Whether some rows, as a dense matrix, take little room: so that matrix products serve for vector ones."""
        return True

    def block(self, rows: Array) -> jax.Array:
        """These rows as a dense matrix, ``[h, d]``."""
        return self.matrix[rows]

    def added(self, w: jax.Array, row: Array, weight: jax.Array) -> jax.Array:
        """``w + weight x_i``."""
        return w + weight * self.matrix[row]

    def dot(self, rows: Array, w: jax.Array) -> jax.Array:
        """``x_i . w`` of these rows, ``[h]``."""
        return self.matrix[rows] @ w

    def combine(self, rows: Array, weights: jax.Array) -> jax.Array:
        """The sum of ``weights_i x_i`` over these rows, ``[d]``."""
        return weights @ self.matrix[rows]

    def dot_all(self, w: jax.Array) -> jax.Array:
        """``x_i . w`` of all rows, ``[n]``."""
        return self.matrix @ w

    def combine_all(self, weights: jax.Array) -> jax.Array:
        """The sum of ``weights_i x_i`` over all rows, ``[d]``."""
        return weights @ self.matrix

    def squared_norms(self, rows: Array) -> jax.Array:
        """``|x_i|^2`` of these rows, ``[h]``."""
        return jnp.sum(self.matrix[rows] ** 2, axis=1)

    def all_squared_norms(self) -> jax.Array:
        """``|x_i|^2`` of all rows, ``[n]``."""
        return jnp.einsum("nd,nd->n", self.matrix, self.matrix)

    def take(self, rows: np.ndarray) -> Dense:
        """These rows alone."""
        return Dense(self.matrix[rows])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse:
    """Rows of a sparse matrix; ``width`` entries from where a row begins can be read without reading past the end.

    Attributes:
      values: entries, row after row, and ``width`` zeros, ``[nnz + width]``.
      columns: the column of each entry, and zeros, ``[nnz + width]``.
      starts: where each row begins in them, and where the last ends, ``[n + 1]``.
      width: entries of each row that are read at first.
      has_longer: whether some row has more.
      num_columns: d.
    """

    values: jax.Array
    columns: jax.Array
    starts: jax.Array
    width: int = dataclasses.field(metadata={"static": True})
    has_longer: bool = dataclasses.field(metadata={"static": True})
    num_columns: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``."""
        return len(self.starts) - 1, self.num_columns

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        return self.values.dtype

    def _first(self, rows: Array) -> tuple[jax.Array, jax.Array]:
        """Values and columns of the first entries, ``[h, width]``; a value beyond the end of its row is 0."""
        first, last = self.starts[rows, None], self.starts[rows + 1, None]
        at = first + jnp.arange(self.width, dtype=first.dtype)
        return jnp.where(at < last, self.values[at], 0), self.columns[at]

    def _left(self, rows: Array, total: jax.Array, add: AddEntries) -> jax.Array:
        """``total`` with what these rows hold beyond their first entries, some of it at a time."""
        if not self.has_longer:
            return total
        h, size = len(rows), max(64, len(rows) * self.width // _LEFT_COST)
        counts = jnp.maximum(self.starts[rows + 1] - self.starts[rows] - self.width, 0)
        ends, rows = jnp.cumsum(counts), jnp.asarray(rows)

        def add_some(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            done, total = state
            which = done + jnp.arange(size, dtype=ends.dtype)
            i = jnp.minimum(jnp.searchsorted(ends, which, side="right"), h - 1) if h > 1 else jnp.zeros_like(which)
            real = which < ends[-1]
            at = jnp.where(real, self.starts[rows[i]] + self.width + which - (ends - counts)[i], 0)
            return done + size, add(total, i, jnp.where(real, self.values[at], 0), self.columns[at])

        return jax.lax.while_loop(lambda state: state[0] < ends[-1], add_some, (jnp.zeros_like(ends[-1]), total))[1]

    @property
    def is_narrow(self) -> bool:
        return self.num_columns <= _NARROW

    def block(self, rows: Array) -> jax.Array:
        values, columns = self._first(rows)
        start = jnp.zeros((len(rows), self.num_columns), self.dtype)
        start = start.at[jnp.arange(len(rows))[:, None], columns].add(values)
        return self._left(rows, start, lambda block, i, values, columns: block.at[i, columns].add(values))

    def added(self, w: jax.Array, row: Array, weight: jax.Array) -> jax.Array:
        return self._add(w, row[None], weight[None])

    def dot(self, rows: Array, w: jax.Array) -> jax.Array:
        (values, columns), w = self._first(rows), jnp.asarray(w)
        start = jnp.sum(values * w[columns], axis=1)
        return self._left(rows, start, lambda z, i, values, columns: z.at[i].add(values * w[columns]))

    def combine(self, rows: Array, weights: jax.Array) -> jax.Array:
        return self._add(jnp.zeros(self.num_columns, jnp.result_type(self.dtype, weights)), rows, weights)

    def _add(self, total: jax.Array, rows: Array, weights: jax.Array) -> jax.Array:
        values, columns = self._first(rows)
        start = total.at[columns].add(values * weights[:, None])
        return self._left(rows, start, lambda total, i, values, columns: total.at[columns].add(values * weights[i]))

    @jax.jit
    def dot_all(self, w: jax.Array) -> jax.Array:
        return self._per_row(lambda rows: self.dot(rows, w))

    @jax.jit
    def combine_all(self, weights: jax.Array) -> jax.Array:
        blocks, inside = _blocks(self.shape[0])
        total = jnp.zeros(self.num_columns, jnp.result_type(self.dtype, weights))

        def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            rows, real = block
            return self._add(total, rows, jnp.where(real, weights[rows], 0)), None

        return jax.lax.scan(add, total, (blocks, inside))[0]

    def squared_norms(self, rows: Array) -> jax.Array:
        start = jnp.sum(self._first(rows)[0] ** 2, axis=1)
        return self._left(rows, start, lambda squares, i, values, columns: squares.at[i].add(values**2))

    @jax.jit
    def all_squared_norms(self) -> jax.Array:
        return self._per_row(self.squared_norms)

    def take(self, rows: np.ndarray) -> Sparse:
        return sparse(self.as_csr()[np.asarray(rows)], self.dtype)

    def as_csr(self) -> Any:
        """The matrix as a SciPy CSR matrix."""
        import scipy.sparse

        nnz = int(self.starts[-1])
        arrays = (np.asarray(self.values)[:nnz], np.asarray(self.columns)[:nnz], np.asarray(self.starts))
        return scipy.sparse.csr_matrix(arrays, shape=self.shape)

    def _per_row(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        blocks, _ = _blocks(self.shape[0])
        return jax.lax.map(function, blocks).reshape(-1)[: self.shape[0]]


def _blocks(n: int) -> tuple[jax.Array, jax.Array]:
    """Row numbers in blocks of equal length, the last one filled up with the last row; and which are no filling."""
    count = -(-n // _CHUNK)
    rows = jnp.arange(count * -(-n // count)).reshape(count, -1)
    return jnp.minimum(rows, n - 1), rows < n


def sparse(matrix: Any, dtype: Any) -> Sparse:
    """Rows of a SciPy sparse matrix."""
    matrix = matrix.tocsr().copy()
    matrix.sum_duplicates()
    lengths = np.diff(matrix.indptr)
    width = _first_width(lengths)
    if matrix.nnz + width > np.iinfo(np.int32).max:
        raise ValueError(f"X has {matrix.nnz} entries, and at most {np.iinfo(np.int32).max - width} can be held")
    return Sparse(
        values=jnp.asarray(np.pad(matrix.data, (0, width)), dtype),
        columns=jnp.asarray(np.pad(matrix.indices, (0, width)), jnp.int32),
        starts=jnp.asarray(matrix.indptr, jnp.int32),
        width=width,
        has_longer=bool(lengths.max(initial=0) > width),
        num_columns=matrix.shape[1],
    )


def _first_width(lengths: np.ndarray) -> int:
    """How many entries of each row to read at first: those of the longest, unless rows differ much in length."""
    longest = max(int(lengths.max(initial=0)), 1)
    # Where the time is least: one more entry of each row takes as long as one less that is left of so many rows.
    width = max(int(np.quantile(lengths, 1 - 1 / _LEFT_COST)), 1)
    time = len(lengths) * width + _LEFT_COST * np.maximum(lengths - width, 0).sum()
    return width if 2 * time < len(lengths) * longest else longest


def as_rows(x: Any) -> Dense | Sparse:
    """Rows of a matrix: an array, or a SciPy sparse matrix.

    Raises:
      ValueError: it is no matrix, has no rows, or numbers that are not finite; or float64 where JAX is set to 32 bits.
    """
    is_sparse = hasattr(x, "tocsr")
    if not is_sparse:
        x = np.asarray(x)
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"X has shape {tuple(x.shape)}; write a matrix of n examples by d features")
    if is_sparse:
        x = x.tocsr()
    check_real(x.dtype, "X", "real numbers")
    dtype = inexact(x.dtype, "X")
    if not np.isfinite(x.data if is_sparse else x).all():
        raise ValueError("X holds numbers that are not finite; leave such rows out, or fill them")
    return (
        sparse(x, dtype)
        if is_sparse and not _is_full(x)
        else Dense(jnp.asarray(x.toarray() if is_sparse else x, dtype))
    )


def check_real(dtype: Any, name: str, wanted: str) -> None:
    """Refuses texts, objects, dates and complex numbers.

    Raises:
      ValueError: ``dtype`` is of such.
    """
    if np.dtype(dtype).kind in "SUTOMmc":
        raise ValueError(f"{name} is {dtype}; write {wanted}")


def _is_full(x: Any) -> bool:
    """Whether a sparse matrix has so many entries, and is so small, that it is read much faster if it is dense."""
    size = x.shape[0] * x.shape[1]
    return _FULL_FROM <= size <= _FULL_TO and x.nnz >= size * _FULL


def inexact(dtype: Any, name: str) -> Any:
    """The dtype that numbers of ``dtype`` are held in: as they are, if they are inexact.

    Raises:
      ValueError: it is float64, and JAX would make it float32.
    """
    if not np.issubdtype(dtype, np.inexact):
        return jnp.result_type(float)
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError(
            f"{name} is float64, which JAX would make float32; write jax.config.update('jax_enable_x64', True) first, "
            f"or {name}.astype(numpy.float32)"
        )
    return np.dtype(dtype)


@functools.partial(jax.jit, static_argnames="steps")
def largest_eigenvalue(rows: Dense | Sparse, *, steps: int = 30) -> jax.Array:
    """The largest eigenvalue of ``(1/n) X^T X``, by power iteration; never more than it is."""
    n, d = rows.shape
    start = jnp.ones(d, rows.dtype) + jnp.arange(d, dtype=rows.dtype) / d  # orthogonal to hardly anything

    def step(_: int, v: jax.Array) -> jax.Array:
        v = v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)
        return rows.combine_all(rows.dot_all(v)) / n

    return jnp.linalg.norm(jax.lax.fori_loop(0, steps, step, start))
