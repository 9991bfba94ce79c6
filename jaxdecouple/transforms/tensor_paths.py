"""The path of a tensor in a tree of parameters says what module it is of, and what it is to that module."""

from __future__ import annotations

import collections
import re
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import AxisMetadata

from jaxdecouple.network.adapters import is_nnx
from jaxdecouple.network.trees import PyTree

Path = tuple[Any, ...]

# How linen, nnx, haiku, equinox and torch name what is no weight.
_BIAS_OR_NORMALISATION = ("bias", "b", "scale", "offset", "beta", "gamma")


def weight_mask(params: PyTree) -> PyTree:
    """An optax mask: true for weights, false for biases and the parameters of normalisation.

    A tensor's role is read from its own name, the last key of its path, in whatever module it is: ``bias``, ``b``,
    ``scale``, ``offset``, ``beta`` and ``gamma`` are no weights; nor is a ``weight`` of one axis, as equinox and torch
    call the scale of a normalisation.
    """

    def is_weight(path: Path, leaf: jax.Array) -> bool:
        name = _names(path[-1])[-1] if path else None
        return name not in _BIAS_OR_NORMALISATION and not (name == "weight" and jnp.ndim(leaf) < 2)

    return jax.tree.unflatten(jax.tree.structure(params), map(is_weight, paths_of(params), jax.tree.leaves(params)))


def module_labels(paths: Sequence[Path], axes: Sequence[int], hidden: Sequence[Path]) -> list[Hashable]:
    """For each tensor, what names the module that it is of.

    A module holds its tensors, so their paths differ in the last key only. Where a tree is flattened, the path is in
    the key: ``"Dense_0/kernel"``, ``"0.weight"`` or ``("Dense_0", "kernel")``. The tensors of a list or a tuple, or of
    a tree that is nothing but tensors, are a module if they can be one layer, such as ``(w, b)``: if at most one has
    two axes or more, and none is hidden. Else each of them is a layer of its own.

    Args:
      paths: of the tensors.
      axes: how many each of them has.
      hidden: paths of subtrees that are another transform's.
    """
    modules = [_module(path) for path in paths]
    matrices = collections.Counter(module for module, count in zip(modules, axes, strict=True) if count > 1)
    with_hidden = {_module(path) for path in hidden}

    def label(path: Path, module: tuple[Path, tuple]) -> Hashable:
        named = module[1] or (len(path) > 1 and isinstance(_names(path[-1])[-1], str))
        return module if named or (matrices[module] < 2 and module not in with_hidden) else path

    return list(map(label, paths, modules))


def paths_of(tree: PyTree) -> list[Path]:
    """Of each leaf; those in the box that linen's metadata or an nnx variable is have the path of the box."""
    boxes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)
    return [path for path, leaf in boxes for _ in jax.tree.leaves(leaf)]


def hidden_paths(params: PyTree) -> list[Path]:
    """Of each subtree without leaves: an ``optax.MaskedNode``, for one."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_hidden)
    return [path for path, leaf in leaves if _is_hidden(leaf)]


def show(path: Sequence[Any]) -> str:
    """A path, for messages: ``['Dense_0']['kernel']``."""
    return jax.tree_util.keystr(tuple(path)) or "the root"


def _module(path: Path) -> tuple[Path, tuple]:
    """What holds the tensor at ``path``: its path, and the names that lead on to it within the last key."""
    return path[:-1], _names(path[-1])[:-1] if path else ()


def _names(key: Any) -> tuple[Any, ...]:
    """The names in a key of a path: one, a list's index among them, or those that a flattened tree has in its key."""
    name = getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))
    if isinstance(name, str):
        return tuple(re.split("[/.]", name))
    return name if isinstance(name, tuple) and name else (name,)


def _is_box(node: Any) -> bool:
    return isinstance(node, AxisMetadata) or is_nnx(node, "Variable")


def _is_hidden(node: Any) -> bool:
    return not jax.tree.leaves(node)
