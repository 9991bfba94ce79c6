"""Direction: how far downhill the gradients that a tick consumes point (thesis, eq. 6.10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.diagnostics.trees import added, inner_product
from jaxdecouple.network.trees import PyTree

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
