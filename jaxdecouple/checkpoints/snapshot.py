"""A snapshot is a copy of a state at one moment, which training goes on from without waiting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.checkpoints.files import Arrays
from jaxdecouple.engine.checks import check_usable
from jaxdecouple.engine.packing import Packed
from jaxdecouple.engine.state import State
from jaxdecouple.network.trees import PyTree

_CHUNK = 2**26  # bytes


class Leaf(NamedTuple):
    """A leaf of a state: an array, or a part of one in which a tree is packed.

    Attributes:
      name: ``state<name>`` is how to reach it in Python.
      array: that holds it, or its shape.
      start: where it begins, in elements; ``None``: it is the whole array.
      shape, dtype: its own.
    """

    name: str
    array: Any
    start: int | None
    shape: tuple[int, ...]
    dtype: Any

    @property
    def identity(self) -> tuple[int, int | None]:
        """The same for leaves that are the same memory."""
        return id(self.array), self.start


class Place(NamedTuple):
    """Where a snapshot has a leaf.

    Attributes:
      stage: whose.
      copy: which of the stage's copies holds it.
      start: where it begins in it, in elements.
      shape: its own.
      number: of the stage's leaves; those that are the same memory have the same number.
      key: the kind of random keys, if it holds keys.
    """

    stage: int
    copy: int
    start: int
    shape: tuple[int, ...]
    number: int
    key: str | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A state's arrays, copied on their devices, and where its leaves are in them.

    Attributes:
      tick, first: of the state.
      batch_sizes: number of examples of each batch in flight.
      places: of each leaf of the state, by name.
      copies: of each stage; of stages of other processes there are none.
    """

    tick: int
    first: int
    batch_sizes: dict[int, int]
    places: dict[str, Place]
    copies: tuple[list[jax.Array], ...]

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Flat arrays, and what says where each leaf is in them; waits for the devices, and gives the copies up.

        The arrays of a stage and dtype are put together: a thousand small ones would take a second to write.
        """
        arrays, found = {}, []
        for k, copies in enumerate(self.copies):
            packer = _Packer()
            copies.reverse()
            while copies:  # what is packed is freed: the state is not in memory three times
                packer.put(np.asarray(copies.pop()))
            packer.finish()
            found.append(packer.places)
            if packer.chunks:
                arrays[f"stage_{k}"] = packer.chunks
        leaves = {}
        for name, place in self.places.items():
            chunk = found[place.stage][place.copy]
            shape = [*place.shape, *chunk["shape"][len(place.shape) :]] if place.key else list(place.shape)
            leaf = {**chunk, "start": chunk["start"] + place.start, "shape": shape}
            key = {} if place.key is None else {"key": place.key}
            leaves[name] = {"stage": place.stage, "copy": place.number, **leaf, **key}
        document = {"tick": self.tick, "first": self.first, "num_stages": len(self.copies), "leaves": leaves}
        return arrays, {**document, "batch_sizes": {str(n): size for n, size in self.batch_sizes.items()}}

    def problem(self) -> str | None:
        """What is not finite in it, if anything is; waits for the devices."""
        for name, place in self.places.items():
            array = np.asarray(self.copies[place.stage][place.copy])
            if not jnp.issubdtype(array.dtype, jnp.inexact):
                continue
            own = array.reshape(-1)[place.start : place.start + math.prod(place.shape)]
            part = name.split(".")[2].split("[")[0]
            if part in ("params", "model_state", "gradients") and not np.isfinite(own).all():
                return f"state{name} is not finite"
            if part in ("opt_state", "auxiliary") and np.isnan(own).any():  # some optimizers begin with infinity
                return f"state{name} is NaN"
        return None


def take(state: State) -> Snapshot:
    """Dispatches the copying of a state's arrays, of this process's stages, and returns at once.

    Raises:
      ValueError: the state was given to `step` or `flush` before, which reused its memory.
    """
    check_usable(state)
    places: dict[str, Place] = {}
    copies = []
    for k, groups in enumerate(_groups(state)):
        known: dict[int, int] = {}  # by array: which copy it is
        numbers: dict[Any, int] = {}
        copied: list[jax.Array] = []
        for group in groups:
            new = []
            for leaf in group:
                if isinstance(leaf.array, jax.ShapeDtypeStruct):  # another process has it
                    continue
                if id(leaf.array) not in known:
                    known[id(leaf.array)] = len(copied) + len(new)
                    new.append(jax.random.key_data(leaf.array) if is_key(leaf.array) else leaf.array)
                number = numbers.setdefault(leaf.identity, len(numbers))
                key = str(jax.random.key_impl(leaf.array)) if is_key(leaf.array) else None
                places[leaf.name] = Place(k, known[id(leaf.array)], leaf.start or 0, leaf.shape, number, key)
            copied += _copy(new)
        copies.append(copied)
    return Snapshot(int(state.tick), int(state.first), _batch_sizes(state), places, tuple(copies))


class _Packer:
    """Puts arrays of a stage one behind another, those of a dtype together, in chunks.

    Attributes:
      chunks: flat arrays by name.
      places: of each array that was put in: the chunk that holds it, and where.
    """

    def __init__(self) -> None:
        self.chunks: dict[str, np.ndarray] = {}
        self.places: list[dict[str, Any]] = []
        # By dtype: the parts of the chunk that is being filled, its number of elements, the number of those before it.
        self._open: dict[str, list[np.ndarray]] = {}
        self._size: dict[str, int] = {}
        self._closed: dict[str, int] = {}

    def put(self, array: np.ndarray) -> None:
        dtype = array.dtype.name
        start, chunk = self._size.get(dtype, 0), f"{dtype}_{self._closed.get(dtype, 0)}"
        self.places.append({"array": chunk, "dtype": dtype, "shape": list(array.shape), "start": start})
        self._open.setdefault(dtype, []).append(array.reshape(-1))
        self._size[dtype] = start + array.size
        if self._size[dtype] * array.itemsize >= _CHUNK:
            self._close(dtype)

    def finish(self) -> None:
        for dtype in list(self._open):
            self._close(dtype)

    def _close(self, dtype: str) -> None:
        parts, number = self._open.pop(dtype), self._closed.get(dtype, 0)
        self.chunks[f"{dtype}_{number}"] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._size[dtype], self._closed[dtype] = 0, number + 1


def leaves_of(state: State) -> Iterator[Leaf]:
    """Every leaf of the stages and of what is in flight, arrays or shapes."""
    for groups in _groups(state):
        for group in groups:
            yield from group


def is_key(leaf: Any) -> bool:
    """Whether it is an array of random keys, or its shape."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# Without donation, no output shares memory with an input: later ticks may reuse the state's.
@jax.jit
def _copy(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(leaf) for leaf in leaves]


def _groups(state: State) -> Iterator[Iterator[list[Leaf]]]:
    """For each stage, its leaves, in groups whose shapes come again with other batches."""
    for k, (stage, flight) in enumerate(zip(state.stages, state.in_flight, strict=True)):
        waiting = {
            f".in_flight[{k}].{queue}[{n}]": value
            for queue in ("activations", "targets", "residuals", "gradients", "ties")
            for n, value in sorted(getattr(flight, queue).items())
        }
        yield (_leaves(prefix, tree) for prefix, tree in {f".stages[{k}]": stage, **waiting}.items())


def _leaves(prefix: str, tree: PyTree) -> list[Leaf]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Packed)):
        name = prefix + jax.tree_util.keystr(path)
        if not isinstance(leaf, Packed):
            found.append(Leaf(name, leaf, None, leaf.shape, leaf.dtype))
            continue
        name = name.replace(".packed_", ".")  # it is reached as a tree
        for path_within, place in leaf.named_places():
            array = leaf.arrays[place.array]
            found.append(Leaf(name + path_within, array, place.start, place.shape, place.dtype))
    return found


def _batch_sizes(state: State) -> dict[int, int]:
    """By batch in flight, from inputs of the network and targets: activations may have other first axes."""
    known: dict[int, PyTree] = dict(state.in_flight[0].activations)
    for stage, flight in zip(state.stages, state.in_flight, strict=True):
        known |= flight.targets
        if stage.auxiliary is not None:  # it waits with the output and the targets to be taught
            known |= {n: residual.inputs[1:] for n, residual in flight.residuals.items()}
    sizes = {n: jax.tree.leaves(tree)[0].shape[0] for n, tree in known.items() if jax.tree.leaves(tree)}
    if state.stages[0].auxiliary is None:
        sizes |= {n: residual.signature[1][0][0][0] for n, residual in state.in_flight[0].residuals.items()}
    return sizes
