"""Trees of arrays: their shapes, dtypes and structure, to compare, to look up by, and to show in messages."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

PyTree = Any
Signature = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]  # structure; shape and dtype of each leaf
_LEAF = jax.tree.structure(0)


def shape_of(tree: PyTree) -> PyTree:
    """``tree`` with every array replaced by its ``jax.ShapeDtypeStruct``."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(_dtype(leaf), allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return jax.tree.map(shape, tree)


def signature_of(tree: PyTree) -> Signature:
    """Structure, shapes and dtypes of a tree, to compare and to look up by."""
    if isinstance(tree, jax.Array):  # the usual case, and often asked for
        return _LEAF, ((tree.shape, tree.dtype),)
    leaves, structure = jax.tree.flatten(shape_of(tree))
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def shapes_of(signature: Signature) -> PyTree:
    """The tree of this signature, of ``jax.ShapeDtypeStruct``."""
    structure, leaves = signature
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def gradient_shapes(signature: Signature) -> PyTree:
    """The same, of a gradient with respect to that tree, as it is sent: integers have none."""
    return jax.tree.map(
        lambda leaf: leaf if jax.numpy.issubdtype(leaf.dtype, np.inexact) else None, shapes_of(signature)
    )


def count_examples(tree: PyTree) -> int:
    """The length of the first axis that there is; 0 without any."""
    return next((leaf.shape[0] for leaf in jax.tree.leaves(tree) if np.ndim(leaf)), 0)


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a tree, for messages: ``float32[128, 32, 32, 3]``."""
    return ", ".join(f"{_dtype(leaf)}{list(np.shape(leaf))}" for leaf in jax.tree.leaves(tree)) or "nothing"


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
