"""A stage program is the set of compiled functions of one stage; each call is one asynchronous dispatch.

It depends on layers, optimizer and loss, not on the schedule: pipelines of different schedules can share it. A function
is compiled when it is first needed, once for each `Variant` and each device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxdecouple.engine.linearization import as_gradients, as_sent, received
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.engine.state import NetworkState, Residual, StageState
from jaxdecouple.engine.updates import SumOverStages, Updates
from jaxdecouple.network.layer import OutputShapes
from jaxdecouple.network.stack import stacked
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, Signature, describe
from jaxdecouple.schedules import Weights, keeps_versions
from jaxdecouple.transforms.gradient_norms import batch_statistics, by_example, tensor_norms
from jaxdecouple.transforms.layer_groups import stacked_counts


class Variant(NamedTuple):
    """What one dispatch of a stage does: each variant is a compiled function of its own.

    Attributes:
      backward: the signature of the stage's input in the batch that goes backward, if any does.
      forward: whether a batch goes forward.
      due: whether the gradient ends an accumulation group, so that the optimizer updates.
      sends: whether the gradient of the stage's input is wanted.
      weights: the policy: which weights the backward uses.
    """

    backward: Signature | None = None
    forward: bool = False
    due: bool = False
    sends: bool = True
    weights: Weights = "stash"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateContext:
    """What the update by a batch's gradient has to do with the other stages, and with who watches.

    Attributes:
      observe: whether the gradient that the optimizer is given is wanted.
      hold: whether the update waits for those of all stages: the gradient is handed back, for `StageProgram.update`.
      others: the other stages' shares of what the optimizers sum over stages; ``None`` where nothing is summed.
      ties: by name, gradients of the batch with respect to tied parameters that this stage owns, from stages above.
    """

    observe: bool = dataclasses.field(default=False, metadata={"static": True})
    hold: bool = dataclasses.field(default=False, metadata={"static": True})
    others: tuple[jax.Array, ...] | None = None
    ties: Mapping[str, Sequence[jax.Array]] | None = None


ALONE = UpdateContext()  # the usual update: of one stage, by itself, unobserved


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a compiled function returns. What it leaves as it was, or does not compute, is ``None``.

    Attributes:
      params, opt_state, model_state: new ones, packed.
      y: the output of the batch that went forward, for the stage above.
      values: what is to be stored of it.
      seen: the weights that it went forward with, where these are to be stored and not simply the stage's.
      sent: the gradient of the stage's input, of the batch that went backward, for the stage below.
      loss: a scalar.
      metrics: scalars, by name.
      grads: the gradient that the optimizer was given, a tree, if it was to be observed.
      auxiliary: of the auxiliary network.
      share: the stage's, of what the optimizer sums over stages.
      held: the gradient that the optimizer will be given, packed, if the update waits for other stages.
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
    """What there is after a dispatch.

    Attributes:
      state: the stage's new state.
      outcome: what else the compiled function returned.
      residual: for the backward, or for the auxiliary network to be taught; ``None`` if there is none.
    """

    state: StageState
    outcome: Outcome
    residual: Residual | None = None


def replaced(context: UpdateContext, *, params: bool) -> tuple[str, ...]:
    """What of a state an update gives successors to, whose memory these may take over.

    Args:
      context: of the update; one that waits leaves everything as it is.
      params: whether there will be new parameters, and nothing in flight refers to the old ones.
    """
    if context.hold:
        return ()
    return ("packed_params", "packed_opt_state") if params else ("packed_opt_state",)


def after(state: StageState, outcome: Outcome) -> StageState:
    """What a stage owns after a dispatch, from its state before."""
    auxiliary = state.auxiliary
    if outcome.auxiliary is not None and auxiliary is not None:
        auxiliary = NetworkState(*_changed(auxiliary, outcome.auxiliary))
    share = state.share if outcome.share is None else outcome.share
    return StageState(*_changed(state, outcome), state.key, state.packed_gradient_norms, auxiliary, share)


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
      parts: into how many parts a batch falls that layers see by themselves, in training.
    """

    def __init__(self, stage: Stage, optimizer: optax.GradientTransformation, donate: bool):
        self.stage = stage
        self.updates = Updates(optimizer, stage.first, stage)
        self.donate = donate
        self.keep: Callable[[PyTree], PyTree] = lambda owned: owned
        self.functions: dict[Hashable, Callable] = {}
        self._shapes = OutputShapes()
        # For its shapes: traced once for each kind of input, never compiled.
        self._output: Any = jax.jit(lambda state, x: self._apply(state.params, x, state.model_state, state.key, 0)[0])
        self.parts = 1

    def init(self, key: jax.Array, x: PyTree, targets: PyTree = None) -> StageState:
        """The stage's initial state for inputs shaped like ``x``, where ``key`` is.

        The shape of ``targets`` is for auxiliary networks, if the stage has one.
        """
        params, model_state = self.stage.init(key, x, self._shapes)
        return StageState(pack(params), pack(model_state), pack(self.updates.init(params)), key)

    def output_shape(self, state: StageState, x: PyTree) -> PyTree:
        """Shapes and dtypes of the output for inputs shaped like ``x``."""
        return self._output.eval_shape(state.bare, x)

    def predict(self, state: StageState, x: PyTree) -> PyTree:
        """The output for inputs ``x``, not in training."""
        return self._call(self._run_predict, None, state.bare, x)

    def at_batch_statistics(self, state: StageState, x: PyTree) -> StageState:
        """The state with the statistics of the batch ``x`` in place of running averages; itself, if there are none."""
        if not jax.tree.leaves(state.packed_model_state):
            return state
        return state.replace(packed_model_state=self._call(self._run_statistics, None, state.bare, x))

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
        norms, sent = self._call(self._run_norms, chunk_size, state.bare, x, given)
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
        donated = replaced(ALONE, params=not keeps_versions(weights))
        variant, context = Variant(due=True, weights=weights), UpdateContext(others=others)
        outcome = self._call(self._run_update, variant, state, held, context, donated=donated)
        return Passed(after(state, outcome), outcome)

    def _run_update(self, variant: Variant, state: StageState, held: Packed, context: UpdateContext) -> Outcome:
        return self._updated(variant, state, held.tree, context)

    def _updated(self, variant: Variant, state: StageState, grads: PyTree, context: UpdateContext) -> Outcome:
        """What the optimizer makes of a gradient."""
        total = None if context.others is None else SumOverStages(context.others)
        params, opt_state = self.updates.apply(variant.due, grads, state, state.packed_gradient_norms, total)
        share, observed = None if total is None else total.share, grads if context.observe else None
        if context.hold:  # of all that, the compiler keeps what the share needs
            return Outcome(held=pack(grads), share=share, grads=observed)
        return Outcome(params=params, opt_state=opt_state, share=share, grads=observed)

    def _call(
        self,
        run: Callable,
        variant: Hashable,
        state: NetworkState,
        *rest: Any,
        donated: tuple[str, ...] = (),
        donates_first: bool = False,
    ) -> Any:
        """``run(variant, state, *rest)``, compiled.

        Args:
          run: a method.
          variant: of it; static.
          state: of the stage, or of its auxiliary network.
          *rest: trees of arrays.
          donated: attributes of ``state`` whose memory the function may reuse.
          donates_first: whether it may reuse the memory of the first of ``rest`` as well.
        """
        key = run.__name__, variant
        function = self.functions.get(key)
        if function is None:
            self.functions[key] = self._compiled(run, variant, type(state), (0, 2) if donates_first else (0,))
            function = self.functions[key]
        kept = dict(vars(state))
        spent = {name: kept.pop(name) for name in donated}
        return function(spent, kept, *rest)

    def _compiled(self, run: Callable, variant: Hashable, kind: type, donated: tuple[int, ...]) -> Callable:
        def placed(spent: dict[str, Any], kept: dict[str, Any], *rest: Any) -> Any:
            return self._placed(run(variant, kind(**spent, **kept), *rest))

        placed.__name__ = run.__name__
        return jax.jit(placed, donate_argnums=donated if self.donate else ())

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

    def _run_predict(self, _: None, state: StageState, x: PyTree) -> PyTree:
        return self._predict(state.params, state.model_state, state.key, x)

    def _run_statistics(self, _: None, state: StageState, x: PyTree) -> Packed:
        params = state.params
        return pack(
            batch_statistics(lambda running: self._apply(params, x, running, state.key, 0)[1], state.model_state)
        )

    def _run_norms(self, chunk_size: int, state: StageState, x: PyTree, given: PyTree) -> tuple[Packed, PyTree]:
        params = state.params
        counts = stacked_counts(stacked, params)

        def of_example(variables: tuple, example: tuple) -> tuple[PyTree, PyTree]:
            grads, sent = self._example_gradients(*variables, *example)
            grads = as_gradients(grads, variables[0])
            sent = jax.tree.map(lambda leaf: leaf[0], as_sent(sent)) if self.stage.first else None
            return tensor_norms(grads, counts), sent

        norms, sent = by_example(of_example, (params, state.model_state, state.key), (x, given), chunk_size)
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
        """The output in training, and the new model state."""
        examples = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(x)}
        if self.parts == 1 or len(examples) != 1 or examples.pop() % self.parts:
            return self.stage.apply(params, model_state, x, key=key, batch=batch, train=True)
        apply = functools.partial(self.stage.apply, params, model_state, batch=batch, train=True)
        return by_parts(lambda key, x: apply(x, key=key), self.parts, key, x)


def by_parts(
    apply: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]], parts: int, key: jax.Array, x: PyTree
) -> tuple[PyTree, PyTree]:
    """``apply(key, x) -> y, model state`` of the parts of a batch, each by itself, with keys of their own.

    The outputs are put together; of the model states it is the mean.
    """
    cut = jax.tree.map(lambda leaf: leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:]), x)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jax.numpy.arange(parts))
    y, states = jax.vmap(apply)(keys, cut)

    def mean(state: jax.Array) -> jax.Array:
        return state.mean(axis=0) if jax.numpy.issubdtype(state.dtype, jax.numpy.inexact) else state[0]

    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), y), jax.tree.map(mean, states)
