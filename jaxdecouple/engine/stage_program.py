"""A stage program is the set of compiled functions of one stage; each call is one asynchronous dispatch.

It depends on layers, optimizer and loss, not on the schedule: pipelines of different schedules can share it. A function
is compiled when it is first needed, once for each `Variant` and each device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import optax

from jaxdecouple.engine.linearization import as_gradients, as_sent, received
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.state import NetworkState, Residual, StageState
from jaxdecouple.engine.updates import SumOverStages, Updates
from jaxdecouple.network.stack import stacked
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature, describe
from jaxdecouple.schedules import Weights, keeps_versions
from jaxdecouple.transforms.batch_statistics import batch_statistics
from jaxdecouple.transforms.gradient_norms import by_example, tensor_norms
from jaxdecouple.transforms.layer_groups import stacked_counts


class Variant(NamedTuple):
    """What one dispatch of a stage does: each variant is a compiled function of its own.

    Attributes:
      backward: the signature of the stage's input in the batch that goes backward, if any does.
      forward: whether a batch goes forward.
      due: whether the gradient ends an accumulation group, so that the optimizer updates.
      observe: whether the gradient that the optimizer is given is wanted.
      sends: whether the gradient of the stage's input is wanted.
      weights: the policy: which weights the backward uses.
      hold: whether the gradient of a group's end is handed back, for `StageProgram.update`.
    """

    backward: Signature | None = None
    forward: bool = False
    due: bool = False
    observe: bool = False
    sends: bool = True
    weights: Weights = "stash"
    hold: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a compiled function returns. What it leaves as it was, or does not compute, is ``None``.

    Attributes:
      params, opt_state, model_state: new ones, packed.
      y: the output of the batch that went forward.
      values: what is to be stored of it.
      seen: the weights that it went forward with, where these are to be stored and not simply the stage's.
      sent: the gradient of the stage's input, of the batch that went backward.
      loss: a scalar.
      metrics: scalars, by name.
      grads: the gradient that the optimizer was given, a tree.
      auxiliary: of the auxiliary network.
      share: the stage's, of what the optimizer sums over stages.
      held: the gradient that the optimizer will be given, packed.
      ties: gradients of tied parameters that stages below own, by name.
    """

    params: Packed | None = None
    opt_state: Packed | None = None
    model_state: Packed | None = None
    y: PyTree = None
    values: Packed | None = None
    seen: Packed | None = None
    sent: PyTree = None
    loss: jax.Array | None = None
    metrics: dict[str, jax.Array] | None = None
    grads: PyTree = None
    auxiliary: Outcome | None = None
    share: jax.Array | None = None
    held: Packed | None = None
    ties: dict[str, jax.Array] | None = None


class Passed(NamedTuple):
    """What a stage has after a dispatch; ``None`` where there is no such thing.

    Attributes:
      state: the stage's new state.
      y: the output, for the stage above.
      sent: the gradient of the input, for the stage below.
      residual: for the backward, or for the auxiliary network to be taught.
      loss: a scalar.
      metrics: scalars, by name.
      grads: the gradient that the optimizer was given, if it was to be observed.
      held: that which it will be given, packed, if the stage waits for others with its update.
      ties: gradients of tied parameters that stages below own, by name.
    """

    state: StageState
    y: PyTree = None
    sent: PyTree = None
    residual: Residual | None = None
    loss: jax.Array | None = None
    metrics: dict[str, jax.Array] | None = None
    grads: PyTree = None
    held: Packed | None = None
    ties: dict[str, jax.Array] | None = None


def passed(state: StageState, outcome: Outcome, residual: Residual | None = None) -> Passed:
    """What a stage has, from its state before and the outcome of the dispatch."""
    auxiliary = state.auxiliary
    if outcome.auxiliary is not None and auxiliary is not None:
        auxiliary = NetworkState(*_changed(auxiliary, outcome.auxiliary))
    share = state.share if outcome.share is None else outcome.share
    new = StageState(*_changed(state, outcome), state.key, state.packed_gradient_norms, auxiliary, share)
    return Passed(
        new,
        outcome.y,
        outcome.sent,
        residual,
        outcome.loss,
        outcome.metrics,
        outcome.grads,
        outcome.held,
        outcome.ties,
    )


def _changed(state: NetworkState, outcome: Outcome) -> tuple[Packed, Packed, Packed]:
    return (
        state.packed_params if outcome.params is None else outcome.params,
        state.packed_model_state if outcome.model_state is None else outcome.model_state,
        state.packed_opt_state if outcome.opt_state is None else outcome.opt_state,
    )


class StageProgram:
    """What every stage can do: own a state, predict, and measure gradient norms.

    Attributes:
      stage: the layers.
      updates: the stage's optimizer.
      donate: whether compiled functions may reuse the memory of what they replace.
      functions: the compiled functions so far, by name and variant.
      keep: within a compiled function, puts what the stage will own where it lives (`Placement.keep`).
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, donate: bool):
        self.stage = stage
        self.updates = Updates(optimizer, stage.first, stage)
        self.donate = donate
        self.keep: Callable[[PyTree], PyTree] = lambda owned: owned
        self.functions: dict[Hashable, Callable] = {}
        self._output = jax.jit(self._run_output)  # for its shapes: traced once for each kind of input, never compiled

    def init(self, key: jax.Array, x: PyTree, targets: PyTree = None) -> StageState:
        """The stage's initial state for inputs shaped like ``x``, where ``key`` is.

        The shape of ``targets`` is for auxiliary networks, if the stage has one.
        """
        params, model_state = self.stage.init(key, x)
        return StageState(pack(params), pack(model_state), pack(self.updates.init(params)), key)

    def output_shape(self, state: StageState, x: PyTree) -> PyTree:
        """Shapes and dtypes of the output for inputs shaped like ``x``."""
        return self._output.eval_shape(state.packed_params, state.packed_model_state, state.key, x)

    def predict(self, state: StageState, x: PyTree) -> PyTree:
        """The output for inputs ``x``, not in training."""
        function = self._compiled(self._run_predict)
        return function(state.packed_params, state.packed_model_state, state.key, x)

    def at_batch_statistics(self, state: StageState, x: PyTree) -> StageState:
        """The state with the statistics of the batch ``x`` in place of running averages; itself, if there are none."""
        if not jax.tree.leaves(state.packed_model_state):
            return state
        function = self._compiled(self._run_statistics)
        return state.replace(packed_model_state=function(state.packed_params, state.packed_model_state, state.key, x))

    def measure_norms(self, state: StageState, x: PyTree, given: PyTree, chunk_size: int) -> tuple[PyTree, Packed]:
        """Measures the gradient norms of single examples, with today's weights and the state's batch statistics.

        Args:
          state: of the stage.
          x: inputs, [examples, ...].
          given: below the last stage, the gradient of each example's loss with respect to its output; there, targets.
          chunk_size: how many examples are computed at once.

        Returns:
          The gradient of each example's loss with respect to its input (``None`` at stage 0), and the norms.

        Raises:
          ValueError: not everything in the inputs is of single examples.
        """
        lengths = {jax.numpy.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                f"the inputs of layer {self.stage.first} are {describe(x)}, which are not all of single examples, "
                "[examples, ...]; take an optimizer that needs no norms of theirs, such as jaxdecouple.lars"
            )
        function = self._compiled(self._run_norms, chunk_size)
        norms, sent = function(state.packed_params, state.packed_model_state, state.key, x, given)
        return sent, norms

    def update(
        self, state: StageState, held: Packed, batch: int, weights: Weights, others: tuple[jax.Array, ...]
    ) -> Passed:
        """The state after the update that waited for other stages.

        Args:
          state: of the stage.
          held: the gradient of ``batch``, which ends a group.
          batch: its index.
          weights: the policy.
          others: the other stages' shares of what the optimizers sum over stages.
        """
        donated = ("opt_state",) if keeps_versions(weights) else ("params", "opt_state")
        outcome = self._compiled(self._run_update, Variant(due=True, weights=weights), donated)(
            state.packed_params, state.packed_opt_state, held, state.packed_gradient_norms, others
        )
        return passed(state, outcome)

    def _run_update(
        self,
        variant: Variant,
        params: Packed,
        opt_state: Packed,
        held: Packed,
        norms: Packed | None,
        others: tuple[jax.Array, ...],
    ) -> Outcome:
        return self._updated(variant, held.tree, opt_state, params, norms, others)

    def _updated(
        self,
        variant: Variant,
        grads: PyTree,
        opt_state: Packed,
        params: Packed,
        norms: Packed | None,
        others: tuple[jax.Array, ...] | None,
    ) -> Outcome:
        """What the optimizer makes of a gradient."""
        total = None if others is None else SumOverStages(others)
        new_params, new_state = self.updates.apply(variant.due, grads, opt_state, params, norms, total)
        share = None if total is None else total.share
        if variant.hold:  # of all that, the compiler keeps what the share needs
            return Outcome(held=pack(grads), share=share)
        return Outcome(params=new_params, opt_state=new_state, share=share)

    def _compiled(self, run: Callable, variant: Hashable = None, donated: tuple[str, ...] = ()) -> Callable:
        """``run(variant, ...)``, compiled; it may reuse the memory of the arguments named in ``donated``."""
        key = run.__name__, variant
        function = self.functions.get(key)
        if function is None:
            donated = donated if self.donate else ()
            bound = functools.partial(run, variant)

            @functools.wraps(bound)
            def placed(*args: Any) -> Any:
                return self._placed(bound(*args))

            self.functions[key] = jax.jit(placed, donate_argnames=donated)
            function = self.functions[key]
        return function

    def _placed(self, result: Any) -> Any:
        """What a compiled function returns, with what the stage will own where the stage lives."""
        if not isinstance(result, Outcome):
            return result
        return dataclasses.replace(
            result,
            params=self.keep(result.params),
            opt_state=self.keep(result.opt_state),
            model_state=self.keep(result.model_state),
            auxiliary=self._placed(result.auxiliary),
        )

    def _run_predict(self, _: None, params: Packed, model_state: Packed, key: jax.Array, x: PyTree) -> PyTree:
        return self._predict(params.tree, model_state.tree, key, x)

    def _run_output(self, params: Packed, model_state: Packed, key: jax.Array, x: PyTree) -> PyTree:
        return self._apply(params.tree, x, model_state.tree, key, 0)[0]

    def _run_statistics(self, _: None, params: Packed, model_state: Packed, key: jax.Array, x: PyTree) -> Packed:
        return pack(batch_statistics(lambda running: self._apply(params.tree, x, running, key, 0)[1], model_state.tree))

    def _run_norms(
        self, chunk_size: int, params: Packed, model_state: Packed, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[Packed, PyTree]:
        counts = stacked_counts(stacked, params.tree)

        def of_example(variables: tuple, example: tuple) -> tuple[PyTree, PyTree]:
            grads, sent = self._example_gradients(*variables, *example)
            grads = as_gradients(grads, variables[0])
            sent = jax.tree.map(lambda leaf: leaf[0], as_sent(sent)) if self.stage.first else None
            return tensor_norms(grads, counts), sent

        norms, sent = by_example(of_example, (params.tree, model_state.tree, key), (x, given), chunk_size)
        return pack(norms), sent

    def _example_gradients(
        self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Gradients of an example's loss, with respect to parameters and input: of a batch of one, not in training."""
        y, pull = jax.vjp(lambda params, x: self._predict(params, model_state, key, x), params, x)
        return pull(received(given, y))

    def _predict(self, params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree) -> PyTree:
        return self.stage.apply(params, model_state, x, key=key, batch=0, train=False)[0]

    def _apply(
        self, params: PyTree, x: PyTree, model_state: PyTree, key: jax.Array, batch: jax.Array | int
    ) -> tuple[PyTree, PyTree]:
        return self.stage.apply(params, model_state, x, key=key, batch=batch, train=True)
