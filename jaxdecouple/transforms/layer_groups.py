"""A group is the set of tensors that an optimizer which scales layer by layer gives one norm and one ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata

from jaxdecouple.network.adapters import is_nnx
from jaxdecouple.network.stack import stacked as of_stacks
from jaxdecouple.network.trees import PyTree

Mask = PyTree | Callable[[PyTree], PyTree]
Path = tuple[Any, ...]
# A group's label and, where several layers are stacked, how many: then each of them is a group.
GroupKey = tuple[Hashable, int | None]

# How linen, nnx, haiku, equinox and torch name what is no weight.
_BIAS_OR_NORMALISATION = ("bias", "b", "scale", "offset", "beta", "gamma")


def weight_mask(params: PyTree) -> PyTree:
    """An optax mask: true for weights, false for biases and the parameters of normalisation.

    A tensor's role is read from its own name, the last key of its path, in whatever module it is: ``bias``, ``b``,
    ``scale``, ``offset``, ``beta`` and ``gamma`` are no weights; nor is a ``weight`` of one axis, as equinox and torch
    call the scale of a normalisation.
    """

    def is_weight(path: Path, leaf: jax.Array) -> bool:
        name = getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None
        return name not in _BIAS_OR_NORMALISATION and not (name == "weight" and jnp.ndim(leaf) < 2)

    return jax.tree.unflatten(jax.tree.structure(params), map(is_weight, _paths(params), jax.tree.leaves(params)))


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How a tree of parameters falls into groups.

    Attributes:
      groups: ``"module"``: the tensors of one module, whose paths differ in the last key only. ``"tensor"``: each
        alone. Or a function from the parameters to a tree like them, or a prefix of it, of labels, numbers or strings:
        tensors with equal labels are a group.
      mask: which tensors are scaled: a tree of booleans like the parameters or a prefix of it, or a function that makes
        one from them. The others belong to no group.
      stacked: which tensors hold those of several layers, along their first axis; given as a mask is. ``None``: those
        of a stage's stacks.
    """

    groups: str | Callable[[PyTree], PyTree] = "module"
    mask: Mask = True
    stacked: Mask | None = None

    def __post_init__(self) -> None:
        if self.groups not in ("module", "tensor") and not callable(self.groups):
            raise ValueError(
                f"groups is {self.groups!r}; write 'module', 'tensor', or a function from the parameters to a tree "
                "of labels"
            )

    def of(self, params: PyTree) -> Groups:
        """The groups of ``params``, of which only structure and shapes matter.

        Raises:
          ValueError: mask or labels do not fit the parameters.
        """
        paths = _paths(params)
        scaled = broadcast("mask", self.mask, params)
        counts = stacked_counts(self.stacked, params)
        if callable(self.groups):
            labels = broadcast("groups", self.groups, params)
        else:
            labels = [jax.tree_util.keystr(path[:-1] if self.groups == "module" else path) for path in paths]
        keys = [(label, count) if one else None for label, count, one in zip(labels, counts, scaled, strict=True)]
        return Groups(jax.tree.structure(params), tuple(paths), tuple(keys), tuple(_hidden_paths(params)))


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of one tree of parameters.

    Attributes:
      structure: of the tree.
      paths: of each tensor, in the tree's order.
      keys: of each tensor the group that it belongs to; ``None`` if it is not to be scaled.
      hidden: paths of subtrees without tensors: empty ones, and those that are another transform's (``optax.masked``,
        ``optax.multi_transform``).
    """

    structure: Any
    paths: tuple[Path, ...]
    keys: tuple[GroupKey | None, ...]
    hidden: tuple[Path, ...] = ()

    def check(self, updates: PyTree) -> None:
        """Refuses other gradients.

        Raises:
          ValueError: the gradients have another structure than the parameters.
        """
        if jax.tree.structure(updates) != self.structure:
            raise ValueError(
                f"the gradients are {jax.tree.structure(updates)}, but the parameters {self.structure}; write "
                "gradients of these parameters"
            )

    def norms(self, tree: PyTree) -> dict[GroupKey, jax.Array]:
        """The Euclidean norm of each group of a tree like the parameters: [], or [L] for L stacked layers."""
        squares: dict[GroupKey, list[jax.Array]] = {}
        for key, leaf in zip(self.keys, jax.tree.leaves(tree), strict=True):
            if key is not None:
                squares.setdefault(key, []).append(sum_of_squares(leaf, keep=_axes(key)))
        return {key: root(sum(terms[1:], terms[0])) for key, terms in squares.items()}

    def mean_norms(self, norms: PyTree) -> dict[GroupKey, jax.Array]:
        """The mean over examples of the norm of each group's gradient: [], or [L] for L stacked layers.

        Args:
          norms: a tree like the parameters, or with one entry for a whole subtree. Each entry is [examples], or
            [examples, L] where L layers are stacked, or lacks the first axis if it is a mean already. The entries of a
            group's tensors combine as the root of the sum of squares, example by example; one entry for a subtree is
            the norm of each group in it.

        Raises:
          ValueError: an entry is missing, left over, or of another shape.
        """
        given = {path: jnp.asarray(entry) for path, entry in zip(_paths(norms), jax.tree.leaves(norms), strict=True)}
        at = lookup("gradient_norms", given, self.paths, self.hidden)
        entries: dict[GroupKey, dict[Path, jax.Array]] = {}
        for key, path in zip(self.keys, at, strict=True):
            if key is not None:
                entries.setdefault(key, {})[path] = given[path]
        # [5] may be those of five examples, or the means of five stacked layers: one tree has either.
        by_example = {
            entry.ndim > _axes(key) for key, found in entries.items() for entry in found.values() if entry.ndim
        }
        means = {}
        for key, found in entries.items():
            for path, entry in found.items():
                _check_entry(entry, key, path, mixed=len(by_example) > 1)
            if len({entry.shape for entry in found.values()}) > 1:
                shapes = ", ".join(f"{list(entry.shape)} at {_show(path)}" for path, entry in found.items())
                raise ValueError(f"gradient_norms of one group have different shapes: {shapes}; write equal ones")
            norm = root(jnp.stack([jnp.square(_widened(entry)) for entry in found.values()]).sum(0))
            means[key] = norm.mean(axis=0) if norm.ndim > _axes(key) else norm
        return means

    def scale(self, tree: PyTree, ratios: dict[GroupKey, jax.Array]) -> PyTree:
        """``tree`` with every group multiplied by its ratio, in the dtypes that it has."""

        def multiply(leaf: jax.Array, key: GroupKey | None) -> jax.Array:
            if key is None:
                return leaf
            leaf = jnp.asarray(leaf)
            ratio = ratios[key].reshape(ratios[key].shape + (1,) * (leaf.ndim - _axes(key)))
            return (leaf * ratio).astype(leaf.dtype)

        return jax.tree.unflatten(self.structure, map(multiply, jax.tree.leaves(tree), self.keys))


def broadcast(what: str, prefix: Mask, params: PyTree) -> list[Any]:
    """The leaves of ``prefix``, or of what it makes of the parameters, one for each parameter.

    Raises:
      ValueError: it does not fit the parameters.
    """
    tree = prefix(params) if callable(prefix) else prefix
    given = dict(zip(_paths(tree), jax.tree.leaves(tree), strict=True))
    return [given[path] for path in lookup(what, given, _paths(params), _hidden_paths(params))]


def lookup(what: str, given: dict[Path, Any], paths: Sequence[Path], hidden: Sequence[Path]) -> list[Path]:
    """For each of ``paths`` the path among ``given`` that is the same, or leads to it.

    Args:
      what: is given, for messages.
      given: by path.
      paths: of the parameters.
      hidden: of what else there may be something given for.

    Raises:
      ValueError: something is missing or left over.
    """
    write = "write a tree like the parameters, a prefix of it"
    write += ", or a function that makes one from them" if what != "gradient_norms" else ""
    found = []
    for path in paths:
        at = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in given), None)
        if at is None:
            raise ValueError(f"{what} has no entry for the parameter at {_show(path)}; {write}")
        found.append(at)
    for at in given.keys() - set(found):
        # A path that leads to parameters is left over if each of them has an entry of its own: `found` is nearest.
        if not any(path[: len(at)] == at[: len(path)] for path in hidden):
            raise ValueError(f"{what} has an entry at {_show(at)}, where there are no parameters; {write}")
    return found


def stacked_counts(stacked: Mask | None, params: PyTree) -> list[int | None]:
    """How many layers are stacked in each tensor; ``None`` where it is of one layer.

    Raises:
      ValueError: ``stacked`` does not fit the parameters, or marks a scalar.
    """
    marks, leaves = broadcast("stacked", of_stacks if stacked is None else stacked, params), jax.tree.leaves(params)
    for path, mark, leaf in zip(_paths(params), marks, leaves, strict=True):
        if mark and not jnp.ndim(leaf):
            raise ValueError(f"stacked is true at {_show(path)}, a scalar; write false where no layers are stacked")
    return [leaf.shape[0] if mark else None for mark, leaf in zip(marks, leaves, strict=True)]


def sum_of_squares(x: jax.Array, keep: int) -> jax.Array:
    """Over all but the first ``keep`` axes, in float32 or wider."""
    return jnp.sum(jnp.square(_widened(jnp.abs(x))), axis=tuple(range(keep, jnp.ndim(x))))


def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), x)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _axes(key: GroupKey) -> int:
    return 0 if key[1] is None else 1


def _check_entry(entry: jax.Array, key: GroupKey, at: Path, mixed: bool) -> None:
    own = () if key[1] is None else (key[1],)
    examples = entry.ndim - len(own)
    if examples not in (0, 1) or entry.shape[examples:] != own or (mixed and own and not examples) or 0 in entry.shape:
        expected = f"[examples, {key[1]}] or, all of them, [{key[1]}]" if own else "[examples] or []"
        raise ValueError(
            f"gradient_norms have shape {list(entry.shape)} at {_show(at)}; write {expected}, as "
            "per_example_gradient_norms returns them, and give it the same `stacked` as the optimizer"
        )


def _paths(tree: PyTree) -> list[Path]:
    """Of each leaf; those in the box that linen's metadata or an nnx variable is have the path of the box."""
    boxes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)
    return [path for path, leaf in boxes for _ in jax.tree.leaves(leaf)]


def _hidden_paths(params: PyTree) -> list[Path]:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_hidden)
    return [path for path, leaf in leaves if _is_hidden(leaf)]


def _is_box(node: Any) -> bool:
    return isinstance(node, AxisMetadata) or is_nnx(node, "Variable")


def _is_hidden(node: Any) -> bool:
    return not jax.tree.leaves(node)  # an optax.MaskedNode, for one


def _show(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path)) or "the root"
