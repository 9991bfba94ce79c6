"""The program of the last stage, which owns the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxdecouple.engine.linearization import linearize
from jaxdecouple.engine.losses import counted
from jaxdecouple.engine.metrics import MetricFunctions, Sums, as_metrics, check_metrics, sums_of
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.split_program import SplitBackward, SplitProgram, split
from jaxdecouple.engine.stage_program import ALONE, Outcome, Passed, UpdateContext, Variant, after, replaced
from jaxdecouple.engine.state import StageState
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe, shapes_of, signature_of
from jaxdecouple.schedules import Weights

Loss = Callable[[PyTree, PyTree], jax.Array]


class LossProgram(SplitProgram):
    """The last stage: forward, loss, backward and update in one dispatch. Of that, nothing is ever in flight."""

    def __init__(
        self,
        stage: Stage,
        optimizer: optax.GradientTransformation,
        loss: Loss,
        donate: bool = True,
        metrics: MetricFunctions | None = None,
    ):
        super().__init__(stage, optimizer, donate)
        if not callable(loss):
            raise ValueError(
                f"the loss is {loss!r}; write a function of outputs and targets, such as "
                "jaxdecouple.softmax_cross_entropy"
            )
        self.loss = loss
        self.metrics = as_metrics(metrics, loss)
        self._compiled_score = jax.jit(self._run_score)

    def check(self, logits: PyTree, targets: PyTree) -> None:
        """Refuses a loss or a metric that cannot take ``targets``, or gives no scalar, by shapes and dtypes alone.

        Raises:
          ValueError: one fails for such logits and targets, or what the loss returns is no scalar of a floating type.
        """
        try:
            loss = jax.eval_shape(self.loss, logits, targets)
        except Exception as error:
            given = f"outputs {describe(logits)} and targets {describe(targets)}"
            raise ValueError(f"the loss cannot take {given}: {error}") from error
        if getattr(loss, "shape", None) != () or not jax.numpy.issubdtype(loss.dtype, jax.numpy.floating):
            given = describe(loss) if hasattr(loss, "shape") else f"a {type(loss).__name__} of {describe(loss)}"
            raise ValueError(f"the loss returns {given}; write one that returns a scalar, the batch's mean")
        check_metrics(self.metrics, logits, targets)

    def train(
        self,
        state: StageState,
        x: PyTree,
        targets: PyTree,
        batch: int,
        sends: bool = True,
        context: UpdateContext = ALONE,
    ) -> Passed:
        """Loss, metrics, the gradient of the stage's input, if the stage below wants it, and the state after.

        Args:
          state: of the stage.
          x, targets: of the batch.
          batch: its index.
          sends: whether the stage below wants a gradient.
          context: of the update.
        """
        due = self.updates.due(batch)
        variant = Variant(forward=True, due=due, sends=sends and self.stage.first > 0)
        donated = replaced(context, params=due)
        outcome = self._call(self._run, variant, state, x, targets, batch, context, donated=donated)
        return Passed(after(state, outcome), outcome)

    def forward_loss(self, state: StageState, x: PyTree, targets: PyTree, batch: int, weights: Weights) -> Passed:
        """`train` without the gradient of the weights, and the residual for `weight_gradient`."""
        variant = Variant(signature_of((x, targets)), weights=weights)
        return self._early(state, variant, batch, state.packed_model_state, x, targets)

    def score(self, logits: PyTree, targets: PyTree) -> tuple[jax.Array, jax.Array | None, dict[str, Sums]]:
        """Mean loss of a batch, over how many targets it is (`losses.counted`), and the sums of its metrics."""
        return self._compiled_score(logits, targets)

    def _run(
        self, variant: Variant, state: StageState, x: PyTree, targets: PyTree, batch: jax.Array, context: UpdateContext
    ) -> Outcome:
        seen = self.updates.forward_weights(state, batch)
        outcome, grads = self._gradients(variant.sends, seen, state.key, batch, state.packed_model_state, x, targets)
        updated = self._updated(variant, state, grads, context)
        return dataclasses.replace(
            outcome,
            params=updated.params,
            opt_state=updated.opt_state,
            share=updated.share,
            held=updated.held,
            grads=updated.grads,
        )

    def _gradients(
        self,
        sends: bool,
        params: Packed,
        key: jax.Array,
        batch: jax.Array,
        model_state: Packed,
        x: PyTree,
        targets: PyTree,
    ) -> tuple[Outcome, PyTree]:
        """What follows from a batch, but for the update; and the gradient of the weights."""

        def loss_of(params: PyTree, x: PyTree, *rest: PyTree) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
            logits, new_state = self._apply(params, x, *rest)
            return self.loss(logits, targets), (logits, new_state)

        arguments = (params.tree, x, model_state.tree, key, batch)
        loss, (logits, new_state), (grads, sent) = linearize(loss_of, *arguments).gradients_of_loss(*arguments)
        grads = self.updates.ties.summed(grads, None)
        outcome = Outcome(
            model_state=pack(new_state),
            sent=sent if sends else None,
            loss=loss,
            metrics={name: self.metrics[name].value(sums) for name, sums in self._sums(logits, targets).items()},
            ties=self.updates.ties.sent(grads),
        )
        return outcome, grads

    def _split(self, variant: Variant, state: StageState, batch: Any) -> SplitBackward:
        def both(*args: Any) -> tuple[Outcome, PyTree]:
            outcome, grads = self._gradients(self.stage.first > 0, *args)
            return outcome, self.updates.ties.own(grads)

        assert variant.backward is not None  # there is a batch that goes backward
        x, targets = shapes_of(variant.backward)
        return split(both, state.packed_params, state.key, batch, state.packed_model_state, x, targets)

    def _example_gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree]:
        loss, pull = jax.vjp(lambda params, x: self.loss(self._predict(params, model_state, key, x), given), params, x)
        return pull(jax.numpy.ones_like(loss))

    def _run_score(self, logits: PyTree, targets: PyTree) -> tuple[jax.Array, jax.Array | None, dict[str, Sums]]:
        return self.loss(logits, targets), counted(self.loss, targets), self._sums(logits, targets)

    def _sums(self, logits: PyTree, targets: PyTree) -> dict[str, Sums]:
        return sums_of(self.metrics, logits, targets)
