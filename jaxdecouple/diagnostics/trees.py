"""Comparisons of whole trees of arrays, each one dispatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdecouple.network.trees import PyTree


@jax.jit
def compare(true: PyTree, given: PyTree) -> tuple[jax.Array, ...]:
    """Norms of ``given``, of ``true`` and of their difference, their inner product, and how many elements they have."""
    pairs = [(_wide(t), _wide(g)) for t, g in zip(jax.tree.leaves(true), jax.tree.leaves(given), strict=True)]
    norm, true_norm, difference = (
        jnp.sqrt(sum(jnp.square(value).sum() for value in values))
        for values in ([g for _, g in pairs], [t for t, _ in pairs], [g - t for t, g in pairs])
    )
    product = jnp.asarray(sum((g * t).sum() for t, g in pairs))
    return norm, true_norm, difference, product, jnp.asarray(sum(t.size for t, _ in pairs), norm.dtype)


@jax.jit
def distance(now: PyTree, then: PyTree) -> jax.Array:
    """The distance of two trees, over the norm of the second."""
    pairs = [(_wide(a), _wide(b)) for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(then), strict=True)]
    square = sum(jnp.square(a - b).sum() for a, b in pairs)
    return jnp.sqrt(square / sum(jnp.square(b).sum() for _, b in pairs))


@jax.jit
def mean_of(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


@jax.jit
def copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
