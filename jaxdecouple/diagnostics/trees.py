"""Comparisons of whole trees of arrays, each one dispatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdecouple.network.trees import PyTree


@jax.jit
def compare(true: PyTree, given: PyTree) -> tuple[jax.Array, ...]:
    """Norms of ``given``, ``true`` and their difference, their inner product, the mean of |difference| by element."""
    pairs = [(_wide(t), _wide(g)) for t, g in zip(jax.tree.leaves(true), jax.tree.leaves(given), strict=True)]
    norm, true_norm, difference = (
        jnp.sqrt(sum(jnp.square(value).sum() for value in values))
        for values in ([g for _, g in pairs], [t for t, _ in pairs], [g - t for t, g in pairs])
    )
    absolute = sum(jnp.abs(g - t).sum() for t, g in pairs) / sum(t.size for t, _ in pairs)
    return norm, true_norm, difference, inner_product(true, given), jnp.asarray(absolute)


@jax.jit
def distance(now: PyTree, then: PyTree) -> tuple[jax.Array, jax.Array]:
    """The distance of two trees, and the same over the norm of the second."""
    pairs = [(_wide(a), _wide(b)) for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(then), strict=True)]
    square = sum(jnp.square(a - b).sum() for a, b in pairs)
    return jnp.sqrt(square), jnp.sqrt(square / sum(jnp.square(b).sum() for _, b in pairs))


@jax.jit
def added(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.asarray(sum((_wide(x) * _wide(y)).sum() for x, y in pairs))


@jax.jit
def copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
