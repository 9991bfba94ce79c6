"""Comparisons of gradients and weights: how far apart they are, and how far downhill a tick goes (thesis, eq. 6.10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


Batch = tuple[PyTree, PyTree]
GROUPS = 10  # of batches, at most: a gradient of each is kept until the probe is made


class Reference(NamedTuple):
    """The gradient of the loss over some batches, as sums over groups of them.

    Attributes:
      counts: batches of each group.
      sums: for each group, a tree of gradients per stage.
    """

    counts: list[int]
    sums: list[list[PyTree]]


class Sigma(NamedTuple):
    """<true gradient, method's gradient> / |true gradient|^2, and its standard error; ``None`` where there is none."""

    value: float | None
    error: float | None


def reference_of(gradient: Callable[[Batch, int], list[PyTree]], batches: Iterable[Batch]) -> Reference:
    """The sums of ``gradient(batch, index)`` over the batches: batch i belongs to group i modulo `GROUPS`."""
    counts: list[int] = []
    sums: list[list[PyTree]] = []
    for index, batch in enumerate(batches):
        group, found = index % GROUPS, gradient(batch, index)
        if index < GROUPS:
            counts.append(1)
            sums.append(found)
        else:
            counts[group] += 1
            sums[group] = list(map(added, sums[group], found))
    if not counts:
        raise ValueError("the reference has no batches; write a function that gives an iterable of (inputs, targets)")
    return Reference(counts, sums)


@jax.jit
def products_of(sums: list[PyTree], given: PyTree) -> jax.Array:
    """[3, groups]: each group's inner product with ``given``, with the sum of all groups, and with itself."""
    total = jax.tree.map(lambda *leaves: sum(leaves), *sums)
    return jnp.stack(
        [jnp.stack([inner_product(s, other) for s in sums]) for other in (given, total)]
        + [jnp.stack([inner_product(s, s) for s in sums])]
    )


def sigma_of(products: np.ndarray, counts: Sequence[int]) -> Sigma:
    """The ratio, and what it varies by with the choice of batches: a jackknife that leaves out group by group.

    Args:
      products: as of `products_of`, float64; those of several stages may be added up.
      counts: batches of each group.
    """
    along, across, own = products
    number, groups = np.array(counts), len(counts)
    total, square = number.sum(), across.sum()
    if not square:
        return Sigma(None, None)
    value = float(total * along.sum() / square)
    if groups == 1:
        return Sigma(value, None)
    without = (total - number) * (along.sum() - along) / (square - 2 * across + own)
    return Sigma(value, float(np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())))
