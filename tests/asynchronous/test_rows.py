"""Rows of a sparse matrix are those of the dense one, whatever their lengths; and a long one costs what it holds."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxdecouple.asynchronous.problems import rows as of_rows


def matrix(lengths, d=300, seed=0):
    """Rows with so many entries each."""
    rng = np.random.default_rng(seed)
    indices = np.concatenate([np.sort(rng.choice(d, length, replace=False)) for length in lengths] or [[]])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return scipy.sparse.csr_matrix((rng.normal(size=len(indices)), indices, starts), shape=(len(lengths), d))


LENGTHS = {  # and how many of them are read at first
    "equal": ([3] * 9, 3),
    "one long": ([2, 3, 3, 300, 3, 2, 3, 3, 3, 3, 2, 3], 3),
    "several long, some empty": ([0, 4, 4, 0, 4, 299, 1, 2, 4, 4, 4, 4, 4, 3, 3, 4, 4, 3, 4, 300], 4),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_what_is_computed_of_rows(name, x64, monkeypatch):
    monkeypatch.setattr(of_rows, "_CHUNK", 4)  # all rows are several blocks
    lengths, width = LENGTHS[name]
    csr = matrix(lengths)
    dense, sparse = csr.toarray(), of_rows.sparse(csr, np.float64)
    assert sparse.width == width
    n, d = dense.shape
    rng = np.random.default_rng(1)
    w, every = jnp.asarray(rng.normal(size=d)), jnp.asarray(rng.normal(size=n))

    @jax.jit
    def of_some(sparse, some, weights):
        return (
            sparse.dot(some, w),
            sparse.combine(some, weights),
            sparse.squared_norms(some),
            sparse.block(some),
            sparse.added(w, some[0], weights[0]),
            jax.vmap(sparse.dot, (None, 0))(some, jnp.stack([w, every[0] * w])),
        )

    for some in ([n - 1], rng.integers(n, size=7), [3, 5, 3, 0]):
        some, weights = np.asarray(some), rng.normal(size=len(some))
        x = dense[some]
        z = x @ w
        close(
            of_some(sparse, some, weights),
            (z, weights @ x, (x**2).sum(1), x, w + weights[0] * x[0], np.stack([z, every[0] * z])),
        )
    close(
        jax.jit(lambda sparse: (sparse.dot_all(w), sparse.combine_all(every), sparse.all_squared_norms()))(sparse),
        (dense @ w, every @ dense, (dense**2).sum(1)),
    )
    close(sparse.take(np.array([3, 1, 3])).as_csr().toarray(), dense[[3, 1, 3]])


def close(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_long_row_makes_no_room_for_the_others(x64):
    """1000 rows of 3 entries take 24 kB, padded to 20 000 entries 160 MB."""
    sparse = of_rows.sparse(matrix([3] * 999 + [20_000], d=20_000), np.float64)
    for function, argument in ((sparse.dot_all, jnp.ones(20_000)), (sparse.combine_all, jnp.ones(1000))):
        compiled = jax.jit(function).lower(argument).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2e6


@pytest.mark.parametrize("kind", ["lil", "dok", "coo"])
def test_any_sparse_matrix_is_taken(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    found = of_rows.as_rows(scipy.sparse.csr_matrix(x).asformat(kind))
    np.testing.assert_allclose(found.dot_all(jnp.ones(4)), x.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("x", [np.array([["a"]]), np.array([[1j]]), np.array([[None]])])
def test_what_are_no_real_numbers_is_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="X is .*; write real numbers"):
        of_rows.as_rows(x)
