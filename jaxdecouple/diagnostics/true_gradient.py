"""The true gradient is what back-propagation would compute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxdecouple.engine.linearization import forward_backward, linearization_of
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import State
from jaxdecouple.network.trees import PyTree


class TrueGradient:
    """Back-propagation through all stages, at given weights; batch statistics are left as they are."""

    def __init__(self, pipeline: Pipeline):
        self._placement, self._last = pipeline.placement, len(pipeline.stages) - 1
        loss = pipeline.programs[-1].loss

        def apply_of(stage: Any) -> Callable:
            return lambda params, x, model_state, key, batch: stage.apply(
                params, model_state, x, key=key, batch=batch, train=True
            )

        functions = [apply_of(stage) for stage in pipeline.stages]
        self._forward = [jax.jit(lambda *arguments, f=f: f(*arguments)[0]) for f in functions[:-1]]
        self._backward = [jax.jit(functools.partial(_gradients, function)) for function in functions[:-1]]

        def top(targets: PyTree, *arguments: PyTree) -> tuple[PyTree, PyTree]:
            def loss_of(*arguments: PyTree) -> tuple[jax.Array, PyTree]:
                logits, model_state = functions[-1](*arguments)
                return loss(logits, targets), model_state

            return _gradients(loss_of, None, *arguments)

        self._top = jax.jit(top)

    def __call__(
        self, params: Sequence[PyTree], state: State, inputs: PyTree, targets: PyTree, batch: int
    ) -> list[PyTree]:
        """The gradient of each stage, on its device."""
        send, last = self._placement.send, self._last
        rest = [(stage.model_state, stage.key, batch) for stage in state.stages]
        x = [self._placement.put(inputs, 0)]
        for k, forward in enumerate(self._forward):
            x.append(send(forward(params[k], x[k], *rest[k]), k, k + 1))
        grads, gradient = self._top(self._placement.put(targets, last), params[last], x[last], *rest[last])
        found = [grads]
        for k in reversed(range(last)):
            grads, gradient = self._backward[k](send(gradient, k + 1, k), params[k], x[k], *rest[k])
            found.insert(0, grads)
        return found


def _gradients(function: Callable, gradient: PyTree | None, *arguments: PyTree) -> tuple[PyTree, PyTree]:
    return forward_backward(linearization_of(function, *arguments), gradient, *arguments)[2:]
