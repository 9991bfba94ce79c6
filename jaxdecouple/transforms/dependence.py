"""What a stage's optimizer depends on beyond the stage, found by reading what JAX records of it.

A stage is a number of whole layers. An optimizer under which no layer's update depends on another layer's gradient
gives the same numbers wherever the network is cut.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.network.jax_internals import depends
from jaxdecouple.network.stack import stacked
from jaxdecouple.network.trees import PyTree, shape_of
from jaxdecouple.transforms.accumulation import Accumulation
from jaxdecouple.transforms.layer_groups import stacked_counts
from jaxdecouple.transforms.unstacked import floating_only


class Dependence(NamedTuple):
    """How a stage's update depends on other stages.

    Attributes:
      share: shape and dtype of what the optimizer sums over all stages (`clip_by_global_norm`); ``None`` if nothing.
      mixes: whether, besides, the update of a layer depends on the gradients or weights of other layers.
    """

    share: jax.ShapeDtypeStruct | None
    mixes: bool


def dependence_of(
    optimizer: optax.GradientTransformation, own: Mapping[str, PyTree], others: Mapping[str, PyTree]
) -> Dependence:
    """How the update of a stage's layers depends on other layers.

    Args:
      optimizer: of the stage.
      own: shapes of the parameters of the stage's layers, by layer.
      others: of some layers of other stages, likewise; none, if there is but one stage.

    Raises:
      ValueError: the optimizer cannot take gradients and parameters, and nothing else, of these layers.
    """
    transform = floating_only(optimizer.inner if isinstance(optimizer, Accumulation) else optimizer)
    try:
        alone = _Step(transform, own)
    except Exception as error:
        raise ValueError(
            f"fails for gradients and parameters, which is all that a pipeline gives it: {type(error).__name__}: "
            f"{error}; write one that needs no loss, and change its rate between steps (optax.inject_hyperparams)"
        ) from error
    if not others:
        return Dependence(alone.share, False)
    try:
        return Dependence(alone.share, _Step(transform, {**others, **own}).mixes(set(others), set(own)))
    except Exception:  # it has a mask, say, for the stage's own layers
        first, *rest = own
        return Dependence(alone.share, alone.mixes({first}, set(rest)))


class _Step:
    """A step of an optimizer, as JAX records it.

    Attributes:
      share: as of `Dependence`.
    """

    def __init__(self, transform: optax.GradientTransformationExtraArgs, params: Mapping[str, PyTree]):
        update = transform.update
        params = shape_of(dict(params))
        counts = stacked_counts(stacked, params)
        leaves, structure = jax.tree.flatten(params)
        norms = [
            jax.ShapeDtypeStruct((1,) if count is None else (1, count), jnp.promote_types(leaf.dtype, jnp.float32))
            for leaf, count in zip(leaves, counts, strict=True)
        ]
        self._state = jax.eval_shape(transform.init, params)
        self._given = (params, params, jax.tree.unflatten(structure, norms))
        self._shares: list[jax.ShapeDtypeStruct] = []
        self._params = params
        self._record = jax.make_jaxpr(functools.partial(self._update, update), return_shape=True)(
            self._state, jax.ShapeDtypeStruct((), jnp.float32), *self._given
        )

    @property
    def share(self) -> jax.ShapeDtypeStruct | None:
        """Shape and dtype of what the step sums over stages."""
        if len(self._shares) > 1:
            raise ValueError(
                f"sums over all stages {len(self._shares)} times in an update, but a stage can wait for the others "
                "once; write one jaxdecouple.clip_by_global_norm"
            )
        return self._shares[0] if self._shares else None

    def mixes(self, sources: set[str], targets: set[str]) -> bool:
        """Whether updates of the layers ``targets`` depend, in this or a later step, on the layers ``sources``."""
        closed, (updates, state) = self._record
        of_state = [False] * len(jax.tree.leaves(self._state))
        given = jax.tree.leaves([_marks(tree, sources) for tree in self._given])
        while True:
            found = depends(closed.jaxpr, [*of_state, False, *given])
            marked, after = found[: len(jax.tree.leaves(updates))], found[len(jax.tree.leaves(updates)) :]
            if any(mark and own for mark, own in zip(marked, jax.tree.leaves(_marks(updates, targets)), strict=True)):
                return True
            after = [old or new for old, new in zip(of_state, after, strict=True)]
            if after == of_state:
                return False
            of_state = after

    def _update(self, update: Any, state: Any, total: jax.Array, grads: PyTree, params: PyTree, norms: PyTree) -> Any:
        def over_stages(share: jax.Array) -> jax.Array:
            self._shares.append(jax.ShapeDtypeStruct(share.shape, share.dtype))
            return jnp.full(share.shape, total, share.dtype)

        return update(grads, state, params, gradient_norms=norms, over_stages=over_stages)


def _marks(tree: Mapping[str, PyTree], layers: set[str]) -> PyTree:
    """A tree like ``tree``: whether each leaf is of one of ``layers``."""
    return {name: jax.tree.map(lambda _, name=name: name in layers, part) for name, part in tree.items()}
