"""Updates: how a stage uses its optimizer, where the host knows which batch ends an accumulation group."""

from __future__ import annotations

from typing import Any

import optax

from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.schedules import ends_group
from jaxdecouple.transforms.accumulation import Accumulation


class Updates:
    """An optax transform, of which batches that end no group only add a gradient to the sum.

    Attributes:
      every: M, the batches of a group.
    """

    def __init__(self, optimizer: optax.GradientTransformation):
        self._optimizer = optax.with_extra_args_support(optimizer)
        self.every = optimizer.every if isinstance(optimizer, Accumulation) else 1

    @property
    def _accumulation(self) -> Accumulation:
        assert isinstance(self._optimizer, Accumulation)  # nothing else has groups
        return self._optimizer

    def init(self, params: optax.Params) -> optax.OptState:
        """The optimizer's initial state."""
        return self._optimizer.init(params)

    def due(self, batch: int) -> bool:
        """Whether the gradient of ``batch`` ends its group, and so updates."""
        return ends_group(batch, self.every)

    def apply(
        self, due: bool, grads: optax.Updates, opt_state: Packed, params: Packed, norms: Packed | None = None
    ) -> tuple[Packed | None, Packed]:
        """Parameters, ``None`` unless an update is due, and the optimizer's state after a gradient.

        Args:
          due: whether the gradient ends its group.
          grads: a tree.
          opt_state: the optimizer's.
          params: of the network.
          norms: of single examples' gradients, for optimizers that need them.
        """
        if not due:
            return None, pack(self._accumulation.add(grads, opt_state.tree))
        finish: Any = self._accumulation.finish if self.every > 1 else self._optimizer.update
        extra = {} if norms is None else {"gradient_norms": norms.tree}
        updates, new_state = finish(grads, opt_state.tree, params.tree, **extra)
        return pack(optax.apply_updates(params.tree, updates)), pack(new_state)
