"""A snapshot is a copy of a state at one moment, which training goes on from without waiting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.checkpoints.files import Arrays
from jaxdecouple.engine.state import State
from jaxdecouple.network.trees import PyTree

_CHUNK = 2**26  # bytes


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A state's arrays, copied on their devices, under their names.

    Attributes:
      tick, first: of the state.
      batch_sizes: number of examples of each batch in flight.
      places: of each leaf of the state, by name: the stage, which of the stage's ``copies`` it is, and, for random
        keys, their kind. Leaves that are one array are one copy.
      copies: of each stage.
    """

    tick: int
    first: int
    batch_sizes: dict[int, int]
    places: dict[str, tuple[int, int, str | None]]
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
        leaves = {
            name: {"stage": k, "copy": position, **found[k][position], **({} if kind is None else {"key": kind})}
            for name, (k, position, kind) in self.places.items()
        }
        document = {"tick": self.tick, "first": self.first, "num_stages": len(self.copies), "leaves": leaves}
        return arrays, {**document, "batch_sizes": {str(n): size for n, size in self.batch_sizes.items()}}

    def problem(self) -> str | None:
        """What is not finite in it, if anything is; waits for the devices."""
        for name, (k, position, _) in self.places.items():
            array = np.asarray(self.copies[k][position])
            if not jnp.issubdtype(array.dtype, jnp.inexact):
                continue
            part = name.split(".")[2].split("[")[0]
            if part in ("params", "model_state", "gradients") and not np.isfinite(array).all():
                return f"state{name} is not finite"
            if part in ("opt_state", "auxiliary") and np.isnan(array).any():  # some optimizers begin with infinity
                return f"state{name} is NaN"
        return None


def take(state: State) -> Snapshot:
    """Dispatches the copying of a state's arrays, and returns at once."""
    places: dict[str, tuple[int, int, str | None]] = {}
    copies = []
    for k, groups in enumerate(_groups(state)):
        known: dict[int, int] = {}
        copied: list[jax.Array] = []
        for group in groups:
            new = {}
            for name, leaf in group:
                if id(leaf) not in known:
                    known[id(leaf)] = len(copied) + len(new)
                    new[id(leaf)] = jax.random.key_data(leaf) if is_key(leaf) else leaf
                places[name] = k, known[id(leaf)], str(jax.random.key_impl(leaf)) if is_key(leaf) else None
            copied += _copy(list(new.values()))
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


def named_leaves(state: State) -> Iterator[tuple[str, Any]]:
    """Every leaf of the stages and of what is in flight, and its name: ``state<name>`` is how to reach it in Python."""
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


def _groups(state: State) -> Iterator[Iterator[list[tuple[str, Any]]]]:
    """For each stage, its named leaves, in groups whose shapes come again with other batches."""
    for k, (stage, flight) in enumerate(zip(state.stages, state.in_flight, strict=True)):
        waiting = {
            f".in_flight[{k}].{queue}[{n}]": value
            for queue in ("activations", "targets", "residuals", "gradients")
            for n, value in sorted(getattr(flight, queue).items())
        }
        yield (_named(prefix, tree) for prefix, tree in {f".stages[{k}]": stage, **waiting}.items())


def _named(prefix: str, tree: PyTree) -> list[tuple[str, Any]]:
    return [(prefix + jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _batch_sizes(state: State) -> dict[int, int]:
    """By batch in flight, from inputs of the network and targets: activations may have other first axes."""
    known: dict[int, PyTree] = dict(state.in_flight[0].activations)
    for stage, flight in zip(state.stages, state.in_flight, strict=True):
        known |= flight.targets
        if stage.auxiliary is not None:  # it waits with the output and the targets to be taught
            known |= {n: residual.inputs[1] for n, residual in flight.residuals.items()}
    sizes = {n: jax.tree.leaves(tree)[0].shape[0] for n, tree in known.items()}
    if state.stages[0].auxiliary is None:
        sizes |= {n: residual.signature[1][0][0][0] for n, residual in state.in_flight[0].residuals.items()}
    return sizes
