"""A tie is a parameter that several layers share. It has an owner, which updates it; the others hold copies.

The owner is the first of the layers, and with it its stage: the gradient of a batch comes to it last. There the
gradients of all layers meet: what the stages above found for a batch waits until the owner's stage has its own, and
the sum is one gradient of that batch. When the owner has updated, the stages above get the new value. So the parameter
is as old as the owner's stage, whose staleness its gradients have; and under a synchronous schedule, training is that
of the network in one piece.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxdecouple.engine.placement import Placement
from jaxdecouple.engine.state import StageState
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe

Path = tuple[str, ...]  # in the parameters of a stage


class Holder(NamedTuple):
    """A stage that holds a tied parameter, and where."""

    stage: int
    path: Path


class Tie(NamedTuple):
    """A parameter that several stages share: the owner, and all copies in other stages."""

    name: str
    owner: Holder
    copies: tuple[Holder, ...]


@dataclasses.dataclass(frozen=True)
class StageTies:
    """The tied parameters of one stage.

    Attributes:
      within: pairs of paths, a copy's and that of what it is a copy of, within the stage.
      borrowed: by the tie's name, paths of parameters that a stage below owns.
      lent: likewise, of those that this stage owns, and stages above hold copies of.
    """

    within: tuple[tuple[Path, Path], ...] = ()
    borrowed: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    lent: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def summed(self, grads: PyTree, others: Mapping[str, Sequence[jax.Array]] | None) -> PyTree:
        """Gradients with those of copies added, of the stage's own and of other stages'."""
        for copy, source in self.within:
            grads = _put(grads, source, _get(grads, source) + _get(grads, copy))
        return self.with_others(grads, others)

    def with_others(self, grads: PyTree, others: Mapping[str, Sequence[jax.Array]] | None) -> PyTree:
        """Gradients with those of other stages' copies added."""
        for name, found in (others or {}).items():
            path = self.lent[name]
            grads = _put(grads, path, sum(found, _get(grads, path)))
        return grads

    def sent(self, grads: PyTree) -> dict[str, jax.Array] | None:
        """What stages below get of `summed` gradients."""
        return {name: _get(grads, path) for name, path in self.borrowed.items()} or None

    def own(self, tree: PyTree) -> PyTree:
        """A tree like the parameters, without what others own: what the optimizer sees."""
        for path in (*(copy for copy, _ in self.within), *self.borrowed.values()):
            _get(tree, path)  # which says what is wrong if it is not there
            tree = _put(tree, path, optax.MaskedNode())
        return tree

    def complete(self, own: PyTree, params: PyTree) -> PyTree:
        """The parameters, from those that the stage owns, and from what it has borrowed."""
        for path in self.borrowed.values():
            own = _put(own, path, _get(params, path))
        for copy, source in self.within:
            own = _put(own, copy, _get(own, source))
        return own


def ties_of(stages: Sequence[Stage]) -> tuple[tuple[StageTies, ...], tuple[Tie, ...]]:
    """The ties of each stage, and those between stages.

    Raises:
      ValueError: a parameter is shared by one layer alone, or by stages of several processes.
    """
    places: dict[str, list[Holder]] = defaultdict(list)
    for k, stage in enumerate(stages):
        for label, layer in zip(stage.keys, stage.layers, strict=True):
            for name, path in layer.shares if isinstance(layer, Layer) else ():
                places[name].append(Holder(k, (label, *path)))
    own, between = [StageTies() for _ in stages], []
    for name, holders in places.items():
        if len(holders) == 1:
            raise ValueError(
                f"{name!r} is shared by one layer alone, {holders[0].path[0]}; write jaxdecouple.shared for another "
                "layer under the same name"
            )
        firsts: dict[int, Path] = {}
        for k, path in holders:
            if k in firsts:
                own[k] = dataclasses.replace(own[k], within=(*own[k].within, (path, firsts[k])))
            firsts.setdefault(k, path)
        owner, *others = (Holder(k, path) for k, path in firsts.items())
        for k, path in others:
            own[k] = dataclasses.replace(own[k], borrowed={**own[k].borrowed, name: path})
        if others:
            lent = {**own[owner.stage].lent, name: owner.path}
            own[owner.stage] = dataclasses.replace(own[owner.stage], lent=lent)
            copies = (Holder(k, path) for k, path in holders if k != owner.stage)
            between.append(Tie(name, owner, tuple(copies)))
    if between and jax.process_count() > 1:
        raise ValueError(f"stages share {between[0].name!r}, but several processes cannot share; train in one process")
    return tuple(own), tuple(between)


def with_ties(
    stages: Sequence[StageState], own: Sequence[StageTies], between: Sequence[Tie], placement: Placement
) -> list[StageState]:
    """The stages as just initialised, each tied parameter with its owner's value everywhere.

    Raises:
      ValueError: a shared parameter is not there, or has another shape or dtype than its owner's.
    """
    if all(ties == StageTies() for ties in own):
        return list(stages)
    params = [stage.params for stage in stages]
    for name, owner, copies in between:
        for k, path in copies:
            value = _like(name, params[k], path, params[owner.stage], owner.path)
            params[k] = _put(params[k], path, placement.own(value, k))
    for k, ties in enumerate(own):
        for copy, source in ties.within:
            params[k] = _put(params[k], copy, _like(copy[-1], params[k], copy, params[k], source))
    pairs = enumerate(zip(stages, params, strict=True))
    return [placement.own(stage.replace(params=tree), k) for k, (stage, tree) in pairs]


def _like(name: str, copies: PyTree, path: Path, owners: PyTree, owner: Path) -> Any:
    copy, source = _get(copies, path), _get(owners, owner)
    if (copy.shape, copy.dtype) != (source.shape, source.dtype):
        raise ValueError(
            f"{name!r} is shared by {'/'.join(owner)}, {describe(source)}, and {'/'.join(path)}, {describe(copy)}; "
            "write layers whose shared parameters have one shape and dtype"
        )
    return source


def _get(tree: PyTree, path: Path) -> Any:
    for index, key in enumerate(path):
        if not isinstance(tree, Mapping) or key not in tree:
            known = ", ".join(tree) if isinstance(tree, Mapping) else "no further names"
            raise ValueError(
                f"there is no parameter {'/'.join(path)} to share: under {'/'.join(path[:index])} there are {known}"
            )
        tree = tree[key]
    return tree


def _put(tree: PyTree, path: Path, leaf: Any) -> PyTree:
    if not path:
        return leaf
    return {**tree, path[0]: _put(tree[path[0]], path[1:], leaf)}
