"""The true gradient is what back-propagation would compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from jaxdecouple.engine.linearization import Gradients, linearize
from jaxdecouple.engine.packing import Packed
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import State
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree


class TrueGradient:
    """Back-propagation through all stages, at given weights; batch statistics are left as they are."""

    def __init__(self, pipeline: Pipeline):
        self._placement, self._last = pipeline.placement, len(pipeline.stages) - 1
        loss = pipeline.loss_program.loss

        def apply_of(stage: Stage) -> Callable:
            return lambda params, x, model_state, key, batch: stage.apply(
                params, model_state, x, key=key, batch=batch, train=True
            )

        def forward_of(function: Callable) -> Callable:
            def forward(params: Packed, x: PyTree, model_state: Packed, key: jax.Array, batch: jax.Array) -> PyTree:
                return function(params.tree, x, model_state.tree, key, batch)[0]

            return jax.jit(forward)

        def backward_of(function: Callable) -> Callable:
            def backward(
                gradient: PyTree, params: Packed, x: PyTree, model_state: Packed, key: jax.Array, batch: jax.Array
            ) -> Gradients:
                arguments = (params.tree, x, model_state.tree, key, batch)
                return linearize(function, *arguments).forward_then_backward(*arguments)[2](gradient)

            return jax.jit(backward)

        *inner, last = map(apply_of, pipeline.stages)
        self._forward, self._backward = list(map(forward_of, inner)), list(map(backward_of, inner))

        def top(
            targets: PyTree, params: Packed, x: PyTree, model_state: Packed, key: jax.Array, batch: jax.Array
        ) -> Gradients:
            def loss_of(*arguments: PyTree) -> tuple[jax.Array, PyTree]:
                logits, model_state = last(*arguments)
                return loss(logits, targets), model_state

            arguments = (params.tree, x, model_state.tree, key, batch)
            return linearize(loss_of, *arguments).gradients_of_loss(*arguments)[2]

        self._top = jax.jit(top)

    def __call__(
        self, params: Sequence[Packed], state: State, inputs: PyTree, targets: PyTree, batch: int
    ) -> list[PyTree]:
        """The gradient of each stage, on its device."""
        send, last = self._placement.send, self._last
        rest = [(stage.packed_model_state, stage.key, batch) for stage in state.stages]
        x = [self._placement.put(inputs, 0)]
        for k, forward in enumerate(self._forward):
            x.append(send(forward(params[k], x[k], *rest[k]), k, k + 1))
        grads, gradient = self._top(self._placement.put(targets, last), params[last], x[last], *rest[last])
        found = [grads]
        for k in reversed(range(last)):
            grads, gradient = self._backward[k](send(gradient, k + 1, k), params[k], x[k], *rest[k])
            found.insert(0, grads)
        return found
