"""Packing puts the small arrays of a tree into one array for each dtype.

The host's time for a dispatch grows with the number of arrays that go in and out of it. What a stage owns is hundreds
of small ones, so between dispatches it travels packed. A compiled function takes it apart and packs what it returns.
Large arrays are never copied for this: they stay as they are.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxdecouple.network.trees import PyTree

# Bytes above which an array stays by itself. To copy this much takes a few microseconds, less than to pass one array
# more. The parameters of a ResNet-20 lie below it, its activations for a batch of training above.
LARGE = 2**18


class Place(NamedTuple):
    """Where a leaf is: all of ``arrays[array]`` if ``start`` is ``None``, else so many elements from there on."""

    array: int
    start: int | None
    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """Its number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The structure of a packed tree, and where its leaves are. There is one object for all trees of a layout.

    Attributes:
      structure: of the tree.
      places: of its leaves.
    """

    structure: Any
    places: tuple[Place, ...]

    def unpack(self, arrays: Sequence[Any]) -> PyTree:
        """The tree, from the arrays that hold it."""
        return jax.tree.unflatten(
            self.structure,
            [
                arrays[array] if start is None else arrays[array][start : start + place.size].reshape(shape)
                for place in self.places
                for array, start, shape, _ in [place]
            ],
        )

    def shapes(self, arrays: Sequence[Any]) -> PyTree:
        """The tree as ``jax.ShapeDtypeStruct``."""
        leaves = [
            arrays[place.array] if place.start is None else jax.ShapeDtypeStruct(place.shape, place.dtype)
            for place in self.places
        ]
        return jax.tree.unflatten(self.structure, leaves)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of arrays, packed.

    Attributes:
      arrays: the packed ones, [elements], one for each dtype; then those that stay by themselves.
      layout: what makes the tree of them.
    """

    arrays: tuple[Any, ...]
    layout: Layout = dataclasses.field(metadata={"static": True})

    @property
    def tree(self) -> PyTree:
        """The tree: slices within a compiled function; outside, the result of one."""
        if any(isinstance(array, jax.ShapeDtypeStruct) for array in self.arrays):
            return self.layout.shapes(self.arrays)
        if not self.arrays or any(isinstance(array, Tracer) for array in self.arrays):
            return self.layout.unpack(self.arrays)
        return _unpack(self)

    def filled(self, leaves: Sequence[np.ndarray]) -> Packed:
        """The packed tree of these leaves, on the host, laid out as this one."""
        parts: dict[int, list[np.ndarray]] = {}
        for place, leaf in zip(self.layout.places, leaves, strict=True):
            parts.setdefault(place.array, []).append(leaf if place.start is None else leaf.reshape(-1))
        arrays = (parts[i] for i in range(len(parts)))
        return Packed(tuple(np.concatenate(of) if len(of) > 1 else of[0] for of in arrays), self.layout)

    def leaf(self, path: Sequence[str]) -> Any:
        """The leaf at this path of a tree of dicts."""
        place = self._place(path)
        array = self.arrays[place.array]
        return array if place.start is None else array[place.start : place.start + place.size].reshape(place.shape)

    def with_leaf(self, path: Sequence[str], leaf: Any) -> Packed:
        """The packed tree with another leaf at this path; all large leaves are held by reference."""
        place, arrays = self._place(path), list(self.arrays)
        array = arrays[place.array]
        stop = place.start is not None and place.start + place.size
        arrays[place.array] = leaf if place.start is None else array.at[place.start : stop].set(leaf.reshape(-1))
        return Packed(tuple(arrays), self.layout)

    def _place(self, path: Sequence[str]) -> Place:
        return dict(self.named_places())["".join(f"[{key!r}]" for key in path)]

    def named_places(self) -> Iterator[tuple[str, Place]]:
        """The path of each leaf in the tree, as ``jax.tree_util.keystr`` writes it, and where the leaf is."""
        positions = jax.tree.unflatten(self.layout.structure, range(len(self.layout.places)))
        for path, position in jax.tree_util.tree_leaves_with_path(positions):
            yield jax.tree_util.keystr(path), self.layout.places[position]


def pack(tree: PyTree) -> Packed:
    """``tree``, packed: within a compiled function, part of it; outside, the result of one, which is a copy."""
    leaves = jax.tree.leaves(tree)
    if not leaves or any(isinstance(leaf, Tracer) for leaf in leaves):
        return _pack(tree)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jax.eval_shape(_pack, tree)
    return _compiled_pack(tree)


def _pack(tree: PyTree) -> Packed:
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    by_dtype: dict[Any, list[Any]] = {}
    for leaf in leaves:
        if _is_small(leaf):
            by_dtype.setdefault(leaf.dtype, []).append(leaf.reshape(-1))
    arrays = [jnp.concatenate(parts) if len(parts) > 1 else parts[0] for parts in by_dtype.values()]
    index, filled, places = {dtype: i for i, dtype in enumerate(by_dtype)}, dict.fromkeys(by_dtype, 0), []
    for leaf in leaves:
        if _is_small(leaf):
            places.append(Place(index[leaf.dtype], filled[leaf.dtype], leaf.shape, leaf.dtype))
            filled[leaf.dtype] += leaf.size
        else:
            places.append(Place(len(arrays), None, leaf.shape, leaf.dtype))
            arrays.append(leaf)
    return Packed(tuple(arrays), _layout(structure, tuple(places)))


def _is_small(leaf: Any) -> bool:
    # Keys cannot be concatenated, and a weakly typed number would no longer be one.
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return not is_key and not leaf.weak_type and leaf.size * leaf.dtype.itemsize <= LARGE


_layouts: weakref.WeakValueDictionary[Any, Layout] = weakref.WeakValueDictionary()


def _layout(structure: Any, places: tuple[Place, ...]) -> Layout:
    """The one layout object: compiled functions are looked up by it, and comparing objects takes no time."""
    return _layouts.setdefault((structure, places), Layout(structure, places))


# What it gives shares no memory with what it is given: that is the user's, and this may be donated.
_compiled_pack = jax.jit(lambda tree: _pack(jax.tree.map(jnp.copy, tree)))
_unpack = jax.jit(lambda packed: packed.layout.unpack(packed.arrays))
