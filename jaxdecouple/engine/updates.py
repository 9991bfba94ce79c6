"""Updates: how a stage uses its optimizer, where the host knows which batch ends an accumulation group."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.state import NetworkState
from jaxdecouple.engine.ties import StageTies
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature, signature_of
from jaxdecouple.schedules import ends_group
from jaxdecouple.transforms.accumulation import Accumulation
from jaxdecouple.transforms.dependence import Dependence, dependence_of
from jaxdecouple.transforms.unstacked import floating_only, unstacked
from jaxdecouple.transforms.weight_views import WeightView


class SumOverStages:
    """Adds a stage's share of a sum, which its optimizer gives, to those of the other stages.

    Attributes:
      share: the stage's, once the optimizer has given it.
    """

    def __init__(self, others: Sequence[jax.Array]):
        self.share: jax.Array | None = None
        self._others = others

    def __call__(self, share: jax.Array) -> jax.Array:
        """The sum."""
        self.share = share
        return sum(self._others, share)


class Updates:
    """An optax transform, of which batches that end no group only add a gradient to the sum.

    Attributes:
      optimizer: the transform.
      every: M, the batches of a group.
      view: with which weights the stage computes, if not simply with today's.
      ties: parameters that others own, which the optimizer does not see.
    """

    def __init__(self, optimizer: optax.GradientTransformation, number: int, stage: Stage | None = None):
        """Updates by ``optimizer`` of ``stage``, or of an auxiliary network.

        Args:
          optimizer: as the user gave it.
          number: of the first layer.
          stage: of which the optimizer is to see each layer by itself.
        """
        self.optimizer = optimizer
        self._number = number
        self.ties = StageTies()
        inner = optimizer.inner if isinstance(optimizer, Accumulation) else optimizer
        self.view = inner if isinstance(inner, WeightView) else None
        inner = floating_only(inner)
        inner = inner if stage is None else unstacked(inner, stage)
        self._optimizer = optimizer.around(inner) if isinstance(optimizer, Accumulation) else inner
        self.every = optimizer.every if isinstance(optimizer, Accumulation) else 1
        self._dependences: dict[Signature, Dependence] = {}

    def dependence(self, own: Mapping[str, PyTree], others: Mapping[str, PyTree]) -> Dependence:
        """How the update of layers depends on others (`dependence_of`), found once for layers of the same shapes."""
        kind = signature_of((dict(own), dict(others)))
        if kind not in self._dependences:
            self._dependences[kind] = dependence_of(self.optimizer, own, others)
        return self._dependences[kind]

    @property
    def _accumulation(self) -> Accumulation:
        assert isinstance(self._optimizer, Accumulation)  # nothing else has groups
        return self._optimizer

    def init(self, params: optax.Params) -> optax.OptState:
        """The optimizer's initial state. Random keys in it are folded, so that no two stages add the same noise.

        Raises:
          ValueError: it cannot take the parameters of one stage, or one of them is a random key.
        """
        own = self.ties.own(params)
        for path, leaf in jax.tree.leaves_with_path(own):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise ValueError(
                    f"stage {self._number} has among its parameters {jax.tree_util.keystr(path)}, which is a random "
                    "key; keep it in another collection, as self.variable('keys', ...) does"
                )
        try:
            return _folded(self._optimizer.init(own), self._number)
        except (TypeError, ValueError, KeyError) as error:
            names = ", ".join(own) if isinstance(own, Mapping) else "of its auxiliary network"
            raise ValueError(
                f"the optimizer of stage {self._number} cannot take the stage's parameters ({names}), which are all "
                f"that it is given: {' '.join(str(error).split())}; write masks and labels as functions of parameters"
            ) from error

    @property
    def looks_ahead(self) -> bool:
        """Whether forwards compute with other weights than today's."""
        return self.view is not None and self.view.forward is not None

    def forward_weights(self, state: NetworkState, batch: Any) -> Packed:
        """The weights of the forward of ``batch``."""
        if self.view is None or self.view.forward is None:
            return state.packed_params
        return pack(self._seen(state, self.view.forward, batch))

    def backward_weights(self, state: NetworkState) -> optax.Params:
        """The weights of a backward that would use today's."""
        if self.view is None or self.view.backward is None:
            return state.params
        return self._seen(state, self.view.backward)

    def _seen(self, state: NetworkState, view: Callable[..., optax.Params], *batch: Any) -> optax.Params:
        opt_state: Any = state.opt_state
        params, inner = state.params, opt_state.inner if self.every > 1 else opt_state
        return self.ties.complete(view(self.ties.own(params), inner, *batch), params)

    def due(self, batch: int) -> bool:
        """Whether the gradient of ``batch`` ends its group, and so updates."""
        return ends_group(batch, self.every)

    def apply(
        self,
        due: bool,
        grads: optax.Updates,
        state: NetworkState,
        norms: Packed | None = None,
        over_stages: SumOverStages | None = None,
    ) -> tuple[Packed | None, Packed]:
        """Parameters, ``None`` unless an update is due, and the optimizer's state after a gradient.

        Args:
          due: whether the gradient ends its group.
          grads: a tree.
          state: of the stage, or of the auxiliary network.
          norms: of single examples' gradients, for optimizers that need them.
          over_stages: for optimizers that sum over all stages.
        """
        grads, params = self.ties.own(grads), state.params
        opt_state: Any = state.opt_state
        if not due:
            return None, pack(self._accumulation.add(grads, opt_state))
        finish: Any = self._accumulation.finish if self.every > 1 else self._optimizer.update
        extra: dict[str, Any] = {} if norms is None else {"gradient_norms": norms.tree}
        if over_stages is not None:
            extra["over_stages"] = over_stages
        own = self.ties.own(params)
        updates, new_state = finish(grads, opt_state, own, **extra)
        return pack(self.ties.complete(optax.apply_updates(own, updates), params)), pack(new_state)


def _folded(opt_state: optax.OptState, number: int) -> optax.OptState:
    """``opt_state`` with ``number`` folded into its random keys; those of the first stage stay as they were given."""

    def fold(path: Any, leaf: Any) -> Any:
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            return _fold_in(leaf, number)
        if _is_raw_key(path, leaf):
            return jax.random.key_data(_fold_in(jax.random.wrap_key_data(leaf), number))
        return leaf

    return jax.tree_util.tree_map_with_path(fold, opt_state) if number else opt_state


def _fold_in(keys: jax.Array, number: int) -> jax.Array:
    fold = jax.random.fold_in
    for _ in range(keys.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(keys, number)


def _is_raw_key(path: Any, leaf: Any) -> bool:
    """Whether a leaf is a key of the older kind, ``jax.random.PRNGKey``: an array like any other but for its name."""
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if getattr(leaf, "dtype", None) != shape.dtype or leaf.shape[-1:] != shape.shape:
        return False
    return re.search("key|rng", jax.tree_util.keystr(path[-1:])) is not None
