"""A layer, to an optimizer that scales layer by layer, is a set of tensors that share one norm and one ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.runs import stacked as stacked_runs
from jaxdecouple.stage import PyTree

Mask = PyTree | Callable[[PyTree], PyTree]
Path = tuple[Any, ...]
# A layer's label and, where several layers are stacked, how many.
LayerKey = tuple[Hashable, int | None]

# How linen, nnx, haiku, equinox and torch name what is no weight.
_BIAS_OR_NORMALISATION = ("bias", "b", "scale", "offset", "beta", "gamma")


def weight_mask(params: PyTree) -> PyTree:
    """An optax mask: true for weights, false for biases and the parameters of normalisation.

    A tensor's role is read from its own name, the last key of its path: ``bias``, ``b``, ``scale``, ``offset``,
    ``beta`` and ``gamma`` are no weights, in whatever module they are.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _last_name(path) not in _BIAS_OR_NORMALISATION, params)


@dataclasses.dataclass(frozen=True)
class Layering:
    """How a tree of parameters falls into layers.

    Attributes:
      layers: ``"module"``: the tensors of one module, whose paths differ in the last key only; ``"tensor"``: each
        alone; or a function from the parameters to a tree like them, or a prefix of it, of hashable labels: tensors
        with equal labels are a layer.
      mask: which tensors are scaled: a tree of booleans like the parameters or a prefix of it, or a function that makes
        one from them. The others belong to no layer.
      stacked: which tensors hold those of several layers, along their first axis; given as a mask is.
    """

    layers: str | Callable[[PyTree], PyTree] = "module"
    mask: Mask = True
    stacked: Mask = stacked_runs

    def __post_init__(self) -> None:
        if self.layers not in ("module", "tensor") and not callable(self.layers):
            raise ValueError(
                f"layers is {self.layers!r}; write 'module', 'tensor', or a function from the parameters to a tree "
                "of labels"
            )

    def of(self, params: PyTree) -> Layers:
        """The layers of ``params``, of which only structure and shapes matter.

        Raises:
          ValueError: mask or labels do not fit the parameters.
        """
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        scaled = broadcast("mask", self.mask, params)
        counts = stacked_counts(self.stacked, params)
        if callable(self.layers):
            labels = broadcast("layers", self.layers, params)
        else:
            names = map(_unboxed, paths)
            labels = [jax.tree_util.keystr(name[:-1] if self.layers == "module" else name) for name in names]
        keys = [(label, count) if one else None for label, count, one in zip(labels, counts, scaled, strict=True)]
        hidden = [
            path for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_hidden) if _is_hidden(leaf)
        ]
        return Layers(tuple(paths), tuple(keys), tuple(hidden))


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one tree of parameters.

    Attributes:
      paths: of each tensor, in the tree's order.
      keys: of each tensor the layer that it belongs to; ``None`` if it is not to be scaled.
      hidden: paths of subtrees that are another transform's (``optax.masked``, ``optax.multi_transform``).
    """

    paths: tuple[Path, ...]
    keys: tuple[LayerKey | None, ...]
    hidden: tuple[Path, ...] = ()

    def norms(self, tree: PyTree) -> dict[LayerKey, jax.Array]:
        """The Euclidean norm of each layer of a tree like the parameters: [], or [L] for L stacked layers."""
        squares: dict[LayerKey, list[jax.Array]] = {}
        for key, leaf in zip(self.keys, jax.tree.leaves(tree), strict=True):
            if key is not None:
                squares.setdefault(key, []).append(sum_of_squares(leaf, keep=_axes(key)))
        return {key: root(sum(terms)) for key, terms in squares.items()}

    def mean_norms(self, norms: PyTree) -> dict[LayerKey, jax.Array]:
        """The mean over examples of the norm of each layer's gradient: [], or [L] for L stacked layers.

        Args:
          norms: a tree like the parameters, or with one entry for a whole subtree. Each entry is [examples], or
            [examples, L] where L layers are stacked, or lacks the first axis if it is a mean already. The entries of a
            layer's tensors combine as the root of the sum of squares, example by example; one entry for a subtree is
            the norm of each layer in it.

        Raises:
          ValueError: an entry is missing, left over, or of another shape.
        """
        given = {path: jnp.asarray(entry) for path, entry in jax.tree_util.tree_leaves_with_path(norms)}
        self._refuse_left_over(given)
        entries: dict[LayerKey, dict[Path, jax.Array]] = {}
        for path, key in zip(self.paths, self.keys, strict=True):
            if key is not None:
                at = _nearest(given, path)
                entries.setdefault(key, {})[at] = _checked(given[at], key, at)
        means = {}
        for key, found in entries.items():
            if len({entry.shape for entry in found.values()}) > 1:
                shapes = ", ".join(f"{list(entry.shape)} at {_show(path)}" for path, entry in found.items())
                raise ValueError(f"gradient_norms of one layer have different shapes: {shapes}; write equal ones")
            norm = root(sum(jnp.square(_widened(entry)) for entry in found.values()))
            means[key] = norm.mean(axis=0) if norm.ndim > _axes(key) else norm
        return means

    def scale(self, tree: PyTree, ratios: dict[LayerKey, jax.Array]) -> PyTree:
        """``tree`` with every layer multiplied by its ratio, in the dtypes that it has."""

        def multiply(leaf: jax.Array, key: LayerKey | None) -> jax.Array:
            if key is None:
                return leaf
            ratio = ratios[key].reshape(ratios[key].shape + (1,) * (leaf.ndim - _axes(key)))
            return (leaf * ratio).astype(leaf.dtype)

        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, map(multiply, leaves, self.keys))

    def _refuse_left_over(self, given: dict[Path, jax.Array]) -> None:
        for at in given:
            if not any(path[: len(at)] == at for path in self.paths) and not any(
                path[: len(at)] == at[: len(path)] for path in self.hidden
            ):
                raise ValueError(
                    f"gradient_norms have an entry at {_show(at)}, where there are no parameters; write a tree like "
                    "the parameters, as per_example_gradient_norms returns it"
                )


def broadcast(what: str, prefix: Mask, params: PyTree) -> list[Any]:
    """The leaves of ``prefix``, or of what it makes of the parameters, one for each parameter.

    Raises:
      ValueError: it does not fit the parameters.
    """
    tree = prefix(params) if callable(prefix) else prefix
    try:
        return jax.tree.leaves(jax.tree.broadcast(tree, params))
    except ValueError as error:
        raise ValueError(
            f"{what} does not fit the parameters; write a tree like them, a prefix of it, or a function that makes one "
            f"from them: {error}"
        ) from error


def stacked_counts(stacked: Mask, params: PyTree) -> list[int | None]:
    """How many layers are stacked in each tensor; ``None`` where it belongs to one layer."""
    marks = broadcast("stacked", stacked, params)
    return [leaf.shape[0] if mark else None for mark, leaf in zip(marks, jax.tree.leaves(params), strict=True)]


def sum_of_squares(x: jax.Array, keep: int) -> jax.Array:
    """Over all but the first ``keep`` axes, in float32 or wider."""
    return jnp.sum(jnp.square(_widened(jnp.abs(x))), axis=tuple(range(keep, jnp.ndim(x))))


def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), x)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _axes(key: LayerKey) -> int:
    return 0 if key[1] is None else 1


def _checked(entry: jax.Array, key: LayerKey, at: Path) -> jax.Array:
    own = () if key[1] is None else (key[1],)
    if entry.ndim - len(own) not in (0, 1) or entry.shape[entry.ndim - len(own) :] != own:
        expected = f"[examples, {key[1]}] or [{key[1]}]" if own else "[examples] or []"
        raise ValueError(
            f"gradient_norms have shape {list(entry.shape)} at {_show(at)}; write {expected}, as "
            "per_example_gradient_norms returns them"
        )
    return entry


def _nearest(given: dict[Path, Any], path: Path) -> Path:
    for length in range(len(path), -1, -1):
        if path[:length] in given:
            return path[:length]
    raise ValueError(
        f"gradient_norms have no entry for the parameter at {_show(path)}; write a tree like the parameters, as "
        "per_example_gradient_norms returns it, or one entry for each subtree of them"
    )


def _is_hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _unboxed(path: Path) -> Path:
    """The path of a tensor, without that into the box that linen's metadata and nnx's variables are."""
    return path[:-1] if path and getattr(path[-1], "name", None) in ("value", "raw_value") else path


def _last_name(path: Path) -> Any:
    key = (None, *_unboxed(path))[-1]
    return getattr(key, "key", getattr(key, "name", None))


def _show(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path)) or "the root"
