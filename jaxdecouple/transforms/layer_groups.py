"""A group is the set of tensors that an optimizer which scales layer by layer gives one norm and one ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdecouple.network.stack import stacked as of_stacks
from jaxdecouple.network.trees import PyTree
from jaxdecouple.transforms.tensor_paths import Path, hidden_paths, module_labels, paths_of, show

Mask = PyTree | Callable[[PyTree], PyTree]
# A group's label and, where several layers are stacked, how many: then each of them is a group.
GroupKey = tuple[Hashable, int | None]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How a tree of parameters falls into groups.

    Attributes:
      groups: ``"module"``: the tensors of one module, as `module_labels` finds them. ``"tensor"``: each alone. Or a
        function from the parameters to a tree like them, or a prefix of it, of labels, numbers or strings: tensors with
        equal labels are a group.
      mask: which tensors are scaled: a tree of booleans like the parameters or a prefix of it, or a function that makes
        one from them. The others belong to no group.
      stacked: which tensors hold those of several layers, along their first axis; given as a mask is. ``None``: those
        of a stage's stacks.
      specs: within ``shard_map``, how each tensor is split over devices: a ``PartitionSpec``, a tree of them like the
        parameters, or a prefix of it, as ``in_specs``. ``None``: tensors are whole.
    """

    groups: str | Callable[[PyTree], PyTree] = "module"
    mask: Mask = True
    stacked: Mask | None = None
    specs: PyTree | None = None

    def __post_init__(self) -> None:
        if self.groups not in ("module", "tensor") and not callable(self.groups):
            raise ValueError(
                f"groups is {self.groups!r}; write 'module', 'tensor', or a function from the parameters to a tree "
                "of labels"
            )

    def of(self, params: PyTree) -> Groups:
        """The groups of ``params``, of which only structure and shapes matter.

        Raises:
          ValueError: mask, labels or specs do not fit the parameters; or these differ between the devices of a
            ``shard_map``, without specs.
        """
        paths, hidden = paths_of(params), hidden_paths(params)
        scaled = broadcast("mask", self.mask, params)
        counts = stacked_counts(self.stacked, params)
        if callable(self.groups):
            labels = broadcast("groups", self.groups, params)
        elif self.groups == "module":
            axes = [
                jnp.ndim(leaf) - (count is not None)
                for leaf, count in zip(jax.tree.leaves(params), counts, strict=True)
            ]
            labels = module_labels(paths, axes, hidden)
        else:
            labels = paths
        keys = [(label, count) if one else None for label, count, one in zip(labels, counts, scaled, strict=True)]
        split = split_over(self.specs, params, counts)
        return Groups(jax.tree.structure(params), tuple(paths), tuple(keys), tuple(hidden), tuple(split))


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of one tree of parameters.

    Attributes:
      structure: of the tree.
      paths: of each tensor, in the tree's order.
      keys: of each tensor the group that it belongs to; ``None`` if it is not to be scaled.
      hidden: paths of subtrees without tensors: empty ones, and those that are another transform's (``optax.masked``,
        ``optax.multi_transform``).
      split: of each tensor the axes of a ``shard_map`` over which it is split.
    """

    structure: Any
    paths: tuple[Path, ...]
    keys: tuple[GroupKey | None, ...]
    hidden: tuple[Path, ...]
    split: tuple[tuple[str, ...], ...]

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
        for key, leaf, split in zip(self.keys, jax.tree.leaves(tree), self.split, strict=True):
            if key is not None:
                squares.setdefault(key, []).append(sum_of_squares(leaf, keep=_axes(key), split=split))
        return {key: root(sum(terms[1:], terms[0])) for key, terms in squares.items()}

    def mean_norms(self, norms: PyTree) -> dict[GroupKey, jax.Array]:
        """The mean over examples of the norm of each group's gradient: [], or [L] for L stacked layers.

        Args:
          norms: a tree like the parameters, or with one entry for a whole subtree. Each entry is [examples], or
            [examples, L] where L layers are stacked, or lacks the first axis if it is a mean already. It is of the
            whole tensor, also where that is split over devices. The entries of a group's tensors combine as the root of
            the sum of squares, example by example; one entry for a subtree is the norm of each group in it.

        Raises:
          ValueError: an entry is missing, left over, or of another shape.
        """
        given = {path: jnp.asarray(entry) for path, entry in zip(paths_of(norms), jax.tree.leaves(norms), strict=True)}
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
                shapes = ", ".join(f"{list(entry.shape)} at {show(path)}" for path, entry in found.items())
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


def split_over(specs: PyTree | None, params: PyTree, counts: Sequence[int | None]) -> list[tuple[str, ...]]:
    """For each tensor the mesh axes of a ``shard_map`` over which it is split; not those over which stacked layers are.

    Raises:
      ValueError: ``specs`` does not fit the parameters; or it is ``None``, and they differ between devices.
    """
    tensors = list(zip(paths_of(params), jax.tree.leaves(params), strict=True))
    if specs is None:
        for path, leaf in tensors:
            varying = sorted(jax.typeof(leaf).manual_axis_type.varying)
            if varying:
                raise ValueError(
                    f"the parameter at {show(path)} differs between devices, over {', '.join(map(repr, varying))}; "
                    "write specs, the PartitionSpec of each parameter, to have norms over all devices' parts, or "
                    "specs=PartitionSpec() if each device has parameters of its own"
                )
        return [()] * len(tensors)
    axes = []
    for spec, count in zip(broadcast("specs", specs, params), counts, strict=True):
        if not isinstance(spec, PartitionSpec):
            raise ValueError(f"specs holds {spec!r}; write jax.sharding.PartitionSpec(...) for each parameter")
        parts = spec[0 if count is None else 1 :]
        axes.append(tuple(axis for part in parts if part for axis in ((part,) if isinstance(part, str) else part)))
    return axes


def broadcast(what: str, prefix: Mask, params: PyTree) -> list[Any]:
    """The leaves of ``prefix``, or of what it makes of the parameters, one for each parameter.

    Raises:
      ValueError: it does not fit the parameters.
    """
    tree = prefix(params) if callable(prefix) else prefix
    given = dict(zip(paths_of(tree), jax.tree.leaves(tree), strict=True))
    return [given[path] for path in lookup(what, given, paths_of(params), hidden_paths(params))]


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
            raise ValueError(f"{what} has no entry for the parameter at {show(path)}; {write}")
        found.append(at)
    for at in given.keys() - set(found):
        # A path that leads to parameters is left over if each of them has an entry of its own: `found` is nearest.
        if not any(path[: len(at)] == at[: len(path)] for path in hidden):
            raise ValueError(f"{what} has an entry at {show(at)}, where there are no parameters; {write}")
    return found


def stacked_counts(stacked: Mask | None, params: PyTree) -> list[int | None]:
    """How many layers are stacked in each tensor; ``None`` where it is of one layer.

    Raises:
      ValueError: ``stacked`` does not fit the parameters, or marks a scalar.
    """
    marks, leaves = broadcast("stacked", of_stacks if stacked is None else stacked, params), jax.tree.leaves(params)
    for path, mark, leaf in zip(paths_of(params), marks, leaves, strict=True):
        if mark and not jnp.ndim(leaf):
            raise ValueError(f"stacked is true at {show(path)}, a scalar; write false where no layers are stacked")
    return [leaf.shape[0] if mark else None for mark, leaf in zip(marks, leaves, strict=True)]


def sum_of_squares(x: jax.Array, keep: int, split: tuple[str, ...] = ()) -> jax.Array:
    """Over all but the first ``keep`` axes, in float32 or wider; and over the mesh axes ``split``."""
    squares = jnp.sum(jnp.square(_widened(jnp.abs(x))), axis=tuple(range(keep, jnp.ndim(x))))
    return jax.lax.psum(squares, split) if split else squares


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
            f"gradient_norms have shape {list(entry.shape)} at {show(at)}; write {expected}, as "
            "per_example_gradient_norms returns them, and give it the same `stacked` as the optimizer"
        )
