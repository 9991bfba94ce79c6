"""A program is the set of compiled functions of one stage; each call is one asynchronous dispatch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxdecouple.engine.linearization import (
    Linearization,
    Residual,
    complete,
    forward,
    forward_backward,
    linearization_of,
    pull_back,
    travelling,
)
from jaxdecouple.engine.losses import accuracy
from jaxdecouple.engine.state import StageState
from jaxdecouple.engine.updates import Updates
from jaxdecouple.network.stack import stacked
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe, signature_of
from jaxdecouple.schedules import Weights, keeps_versions, redoes_forward
from jaxdecouple.transforms.gradient_norms import by_example, tensor_norms
from jaxdecouple.transforms.layer_groups import stacked_counts

Loss = Callable[[PyTree, PyTree], jax.Array]


class Program:
    """What every stage can do: own a state, predict, and take a gradient step.

    Attributes:
      stage: the layers.
      updates: the stage's optimizer.
      sends: whether its backward passes send a gradient down.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation):
        self.stage = stage
        self.sends = stage.first > 0
        self.updates = Updates(optimizer)
        self._evaluate = jax.jit(self._predict)
        self._measure = jax.jit(self._norms_and_gradient, static_argnums=0)

    def init(self, key: jax.Array, x: PyTree, targets: PyTree = None) -> StageState:
        """The stage's initial state for inputs shaped like ``x``, where ``key`` is.

        The shape of ``targets`` is for auxiliary networks, if the stage has one.
        """
        params, model_state = self.stage.init(key, x)
        return StageState(params, model_state, self.updates.init(params), key)

    def output_shape(self, state: StageState, x: PyTree) -> PyTree:
        """Shapes and dtypes of the output for inputs shaped like ``x``."""
        return jax.eval_shape(self._apply, state.params, x, state.model_state, state.key, 0)[0]

    def predict(self, state: StageState, x: PyTree) -> PyTree:
        """The output for inputs ``x``, not in training."""
        return self._evaluate(state.params, state.model_state, state.key, x)

    def measure_norms(
        self, state: StageState, x: PyTree, given: PyTree, chunk_size: int
    ) -> tuple[PyTree, PyTree, StageState]:
        """Measures the gradient norms of single examples, with today's weights and batch statistics left as they are.

        Args:
          state: of the stage.
          x: inputs, [examples, ...].
          given: below the last stage, the gradient of each example's loss with respect to its output; there, targets.
          chunk_size: how many examples are computed at once.

        Returns:
          The gradient of each example's loss with respect to its input (``None`` at stage 0), and the new state.
        """
        norms, sent = self._measure(chunk_size, state.params, state.model_state, state.key, x, given)
        return sent, state.replace(gradient_norms=norms)

    def _norms_and_gradient(
        self, chunk_size: int, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree]:
        counts = stacked_counts(stacked, params)

        def of_example(variables: tuple, example: tuple) -> tuple[PyTree, PyTree]:
            grads, sent = self._example_gradients(*variables, *example)
            sent = jax.tree.map(lambda leaf: leaf[0], travelling(sent)) if self.stage.first else None
            return tensor_norms(grads, counts), sent

        return by_example(of_example, (params, model_state, key), (x, given), chunk_size)

    def _example_gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Gradients of an example's loss, with respect to parameters and input: of a batch of one, not in training."""
        y, pull = jax.vjp(lambda params, x: self._predict(params, model_state, key, x), params, x)
        return pull(complete(given, y))

    def _predict(self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree) -> PyTree:
        return self.stage.apply(params, model_state, x, key=key, batch=0, train=False)[0]

    def _apply(
        self, params: PyTree, x: PyTree, model_state: PyTree, key: jax.Array, batch: jax.Array | int
    ) -> tuple[PyTree, PyTree]:
        return self.stage.apply(params, model_state, x, key=key, batch=batch, train=True)


class InnerProgram(Program):
    """A stage below the loss: a forward, and later, when the gradient has come, a backward with its update.

    Parameters are donated to their successors unless a stash may refer to them; optimizer states always are; and where
    a backward and a forward are one dispatch, the activations of the old batch to those of the new.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, weights: Weights, donate: bool):
        super().__init__(stage, optimizer)
        self.weights = weights
        self._linearizations: dict[Any, Linearization] = {}
        updating = ("opt_state",) if keeps_versions(weights) else ("params", "opt_state")
        self._forward = jax.jit(self._forward_pass)
        run, adding = self._backward_pass, ("opt_state",)
        self._backward_accumulate = compiled(run, adding, donate, due=False)
        self._backward_update = compiled(run, updating, donate, due=True)
        self._accumulate_forward = compiled(run, (*adding, "values"), donate, due=False)
        self._update_forward = compiled(run, (*updating, "values"), donate, due=True)
        self._observed_accumulate = compiled(run, adding, donate, due=False, observe=True)
        self._observed_update = compiled(run, updating, donate, due=True, observe=True)

    def forward(self, state: StageState, x: PyTree, batch: int) -> tuple[PyTree, StageState, Residual]:
        """Output, new state and residual of a batch."""
        forwarded = self._forward(state.params, state.model_state, state.key, x, batch)
        return self._store(state, x, forwarded)

    def backward(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int
    ) -> tuple[PyTree, StageState]:
        """Gradient with respect to the stage's input (``None`` at stage 0), and the state after the update."""
        function = self._backward_update if self.updates.due(batch) else self._backward_accumulate
        return self._call(function, state, residual, gradient, batch, ())[:2]

    def observed_backward(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int
    ) -> tuple[PyTree, StageState, PyTree]:
        """As `backward`, and the gradient that the optimizer was given."""
        function = self._observed_update if self.updates.due(batch) else self._observed_accumulate
        sent, state, _, grads = self._call(function, state, residual, gradient, batch, ())
        return sent, state, grads

    def backward_forward(
        self, state: StageState, residual: Residual, gradient: PyTree, batch: int, x: PyTree, next_batch: int
    ) -> tuple[PyTree, PyTree, StageState, Residual]:
        """`backward` of one batch, then `forward` of another, in one dispatch if both have the same shape."""
        if residual.signature != signature_of(x):  # not worth a compilation for every pair of shapes
            sent, state = self.backward(state, residual, gradient, batch)
            return sent, *self.forward(state, x, next_batch)
        function = self._update_forward if self.updates.due(batch) else self._accumulate_forward
        sent, state, forwarded, _ = self._call(function, state, residual, gradient, batch, (x, next_batch))
        return sent, *self._store(state, x, forwarded)

    def _call(
        self, function: Callable, state: StageState, residual: Residual, gradient: PyTree, batch: int, then: tuple
    ) -> tuple[PyTree, StageState, tuple, PyTree]:
        sent, changed, forwarded, grads = function(
            state.params,
            state.opt_state,
            residual.values,
            state.model_state,
            state.key,
            residual.replace(values=()),
            gradient,
            state.gradient_norms,
            batch,
            *then,
        )
        return sent, state.replace(**changed), forwarded, grads

    def _store(self, state: StageState, x: PyTree, forwarded: tuple) -> tuple[PyTree, StageState, Residual]:
        y, model_state, values, inputs = forwarded
        # A replay takes today's model state; a rematerialised forward is to be the very same one.
        redone = {"replay": x, "remat": (x, state.model_state)}
        residual = Residual(
            values=values,
            inputs=redone.get(self.weights, inputs),
            params=state.params if keeps_versions(self.weights) else None,
            signature=signature_of(x),
        )
        return y, state.replace(model_state=model_state), residual

    def _forward_pass(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, batch: jax.Array
    ) -> tuple[PyTree, PyTree, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        if redoes_forward(self.weights):
            return *self._apply(params, x, model_state, key, batch), (), ()
        linearization = self._linearization(params, x, model_state, key, batch)
        return forward(linearization, params, x, model_state, key, batch)

    def _backward_pass(
        self,
        params: PyTree,
        opt_state: Any,
        values: tuple,
        model_state: PyTree,
        key: jax.Array,
        *rest: Any,
        due: bool,
        observe: bool = False,
    ) -> tuple[PyTree, dict[str, PyTree], tuple, PyTree | None]:
        residual, gradient, norms, batch, *then = rest
        grads, sent = self._gradients(params, model_state, key, residual.replace(values=values), gradient, batch)
        changed = self.updates.changes(due, grads, opt_state, params, norms)
        forwarded = self._forward_pass(changed.get("params", params), model_state, key, *then) if then else ()
        return sent, changed, forwarded, grads if observe else None

    def _gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, residual: Residual, gradient: PyTree, batch: Any
    ) -> tuple[PyTree, PyTree]:
        if keeps_versions(self.weights):
            params = residual.params
        if redoes_forward(self.weights):
            x, before = (residual.inputs, model_state) if self.weights == "replay" else residual.inputs
            arguments = (params, x, before, key, batch)
            # The batch statistics that it gathers again are dropped: each batch counts once, in its forward.
            *_, grads, sent = forward_backward(self._linearization(*arguments), gradient, *arguments)
        else:
            structure, leaves = residual.signature
            x = jax.tree.unflatten(structure, [jax.numpy.zeros(shape, dtype) for shape, dtype in leaves])
            arguments = (params, x, model_state, key, batch)
            linearization = self._linearization(*arguments)
            grads, sent = pull_back(linearization, residual, gradient, *arguments)
        return grads, sent if self.sends else None

    def _linearization(self, params: PyTree, x: PyTree, *rest: Any) -> Linearization:
        signature = signature_of(x)
        if signature not in self._linearizations:
            self._linearizations[signature] = linearization_of(self._apply, params, x, *rest)
        return self._linearizations[signature]


class LossProgram(Program):
    """The last stage: forward, loss, backward and update in one dispatch. Nothing of it is ever in flight."""

    def __init__(
        self, stage: Stage, optimizer: optax.GradientTransformation, loss: Loss, donate: bool, sends: bool = True
    ):
        super().__init__(stage, optimizer)
        self.loss = loss
        self.sends = sends and stage.first > 0
        self.score = jax.jit(self._score)
        adding, updating = ("opt_state",), ("params", "opt_state")
        self._train_accumulate = compiled(self._train, adding, donate, due=False)
        self._train_update = compiled(self._train, updating, donate, due=True)
        self._observed_accumulate = compiled(self._train, adding, donate, due=False, observe=True)
        self._observed_update = compiled(self._train, updating, donate, due=True, observe=True)

    def check(self, logits: PyTree, targets: PyTree) -> None:
        """Refuses a loss that cannot take ``targets``, or gives no scalar, by shapes and dtypes alone.

        Raises:
          ValueError: so it is.
        """
        examples = jax.tree.leaves(targets)[0].shape[:1]
        logits = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(examples + leaf.shape[1:], leaf.dtype), logits)
        try:
            loss = jax.eval_shape(self.loss, logits, targets)
        except Exception as error:
            given = f"outputs {describe(logits)} and targets {describe(targets)}"
            raise ValueError(f"the loss cannot take {given}: {error}") from error
        if getattr(loss, "shape", None) != () or not jax.numpy.issubdtype(loss.dtype, jax.numpy.floating):
            raise ValueError(f"the loss returns {describe(loss)}; write one that returns a scalar, the batch's mean")

    def train(
        self, state: StageState, x: PyTree, targets: PyTree, batch: int
    ) -> tuple[PyTree, StageState, jax.Array, jax.Array | None]:
        """Gradient with respect to the stage's input (``None`` if nobody wants it), new state, loss and accuracy."""
        function = self._train_update if self.updates.due(batch) else self._train_accumulate
        return self._call(function, state, x, targets, batch)[:-1]

    def observed_train(
        self, state: StageState, x: PyTree, targets: PyTree, batch: int
    ) -> tuple[PyTree, StageState, jax.Array, jax.Array | None, PyTree]:
        """As `train`, and the gradient that the optimizer was given."""
        function = self._observed_update if self.updates.due(batch) else self._observed_accumulate
        return self._call(function, state, x, targets, batch)

    def _call(self, function: Callable, state: StageState, x: PyTree, targets: PyTree, batch: int) -> tuple[Any, ...]:
        sent, scores, changed, grads = function(
            state.params, state.opt_state, state.gradient_norms, state.model_state, state.key, x, targets, batch
        )
        return sent, state.replace(**changed), *scores, grads

    def _train(
        self, params: PyTree, opt_state: Any, norms: PyTree | None, *rest: Any, due: bool, observe: bool = False
    ) -> tuple[Any, ...]:
        grads, sent, model_state, scores = self._gradients(params, *rest)
        changed = {**self.updates.changes(due, grads, opt_state, params, norms), "model_state": model_state}
        return sent, scores, changed, grads if observe else None

    def _gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, targets: PyTree, batch: jax.Array
    ) -> tuple[PyTree, PyTree, PyTree, tuple[jax.Array, jax.Array | None]]:
        def loss_of(params: PyTree, x: PyTree, *rest: PyTree) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
            logits, new_state = self._apply(params, x, *rest)
            return self.loss(logits, targets), (logits, new_state)

        arguments = (params, x, model_state, key, batch)
        linearization = linearization_of(loss_of, *arguments)
        loss, (logits, new_state), grads, sent = forward_backward(linearization, None, *arguments)
        return grads, sent if self.sends else None, new_state, (loss, accuracy(logits, targets))

    def _example_gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree]:
        loss, pull = jax.vjp(lambda params, x: self.loss(self._predict(params, model_state, key, x), given), params, x)
        return pull(jax.numpy.ones_like(loss))

    def _score(self, logits: PyTree, targets: PyTree) -> tuple[jax.Array, jax.Array | None]:
        return self.loss(logits, targets), accuracy(logits, targets)


def compiled(function: Callable, donated: tuple[str, ...], donate: bool, **settings: bool) -> Callable:
    """``function`` with these settings, compiled for each device it is called on.

    It may reuse the memory of the ``donated`` arguments.
    """
    return jax.jit(functools.partial(function, **settings), donate_argnames=donated if donate else ())
