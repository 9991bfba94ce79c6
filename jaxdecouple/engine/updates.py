"""Updates: how a stage uses its optimizer, where the host knows which batch ends an accumulation group."""

from __future__ import annotations

from typing import Any

import optax

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

    def init(self, params: optax.Params) -> optax.OptState:
        """The optimizer's initial state."""
        return self._optimizer.init(params)

    def due(self, batch: int) -> bool:
        """Whether the gradient of ``batch`` ends its group, and so updates."""
        return ends_group(batch, self.every)

    def add(self, grads: optax.Updates, opt_state: Any) -> Any:
        """The optimizer's state after a gradient that ends no group."""
        return self._optimizer.add(grads, opt_state)

    def changes(
        self, due: bool, grads: optax.Updates, opt_state: Any, params: optax.Params, norms: Any = None
    ) -> dict[str, Any]:
        """What a gradient changes: ``opt_state``, and if an update is ``due``, ``params``; arguments as of `update`."""
        if not due:
            return {"opt_state": self.add(grads, opt_state)}
        params, opt_state = self.update(grads, opt_state, params, norms)
        return {"params": params, "opt_state": opt_state}

    def update(
        self, grads: optax.Updates, opt_state: Any, params: optax.Params, norms: Any = None
    ) -> tuple[optax.Params, Any]:
        """Parameters and the optimizer's state after a gradient that ends its group.

        Args:
          grads: of the batch.
          opt_state: the optimizer's.
          params: to be updated.
          norms: of single examples' gradients, for optimizers that need them, or ``None``.
        """
        finish = self._optimizer.finish if self.every > 1 else self._optimizer.update
        updates, opt_state = finish(grads, opt_state, params, **({} if norms is None else {"gradient_norms": norms}))
        return optax.apply_updates(params, updates), opt_state
