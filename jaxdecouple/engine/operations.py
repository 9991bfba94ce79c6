"""A dispatcher carries out single operations: it takes what they need from a workspace and puts back what they give.

Each call is one asynchronous dispatch on the stage's device, and the sending of its results to the neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxdecouple.engine.placement import Nowhere, Placement
from jaxdecouple.engine.stage_program import Passed, UpdateContext
from jaxdecouple.engine.state import Metrics, StageState
from jaxdecouple.engine.ties import Tie
from jaxdecouple.engine.workspace import Operation, Workspace
from jaxdecouple.errors import check_choice
from jaxdecouple.network.trees import PyTree
from jaxdecouple.schedules import BACKWARD, WEIGHT, Op, Schedule, is_synchronous, join
from jaxdecouple.transforms import Statistics


class Dispatch(NamedTuple):
    """One dispatch of a tick.

    Attributes:
      operation: what is done, a method of `Dispatcher`.
      stage: where.
      batch: of which batch, as an offset from the tick.
      next_batch: for ``backward_forward``, which batch goes forward, likewise.
    """

    operation: Operation
    stage: int
    batch: int
    next_batch: int = 0


class Dispatcher:
    """Carries out the operations of a schedule, on stage ``k``, of batch ``n``.

    Attributes:
      programs: of each stage.
      placement: where the stages are.
      schedule: what there is to do.
      ties: parameters that stages share.
    """

    def __init__(
        self, programs: Sequence[Any], placement: Placement | Nowhere, schedule: Schedule, ties: Sequence[Tie] = ()
    ):
        self.programs = programs
        self.placement = placement
        self.schedule = schedule
        self.ties = ties
        self._weights = schedule.weights
        # Whether a stage sends gradients down.
        self._sends = [k > 0 and schedule.has_backward(k - 1) for k in range(schedule.num_stages)]
        self._patterns: dict[tuple[int, int, int], tuple[Dispatch, ...]] = {}

    def tick(self, work: Workspace, tick: int, first: int, stop: int) -> Metrics:
        """Dispatches the operations of a tick, in order; batches are those of `Schedule.window`.

        Returns:
          The metrics of the batch that reached the loss, and of the auxiliary networks that learned.
        """
        metrics, auxiliary = Metrics(), {}
        for operation, k, batch, next_batch in self._dispatches(tick, first, stop):
            n = tick + batch
            try:
                if operation == "backward_forward":
                    self.backward_forward(work, k, n, tick + next_batch)
                elif operation in ("train", "forward_loss"):
                    metrics = getattr(self, operation)(work, k, n)
                else:
                    loss = getattr(self, operation)(work, k, n)
                    if loss is not None:
                        auxiliary[k] = loss
            except Exception as error:
                if isinstance(error, KeyError) and error.args in ((n,), (tick + next_batch,)):  # not in flight
                    raise ValueError(
                        f"the state does not have what the {operation} of batch {n} at stage {k} needs: it is of "
                        f"another schedule than {self.schedule.name!r}; use a state with the pipeline that it comes "
                        "from, and flush it there before another goes on with it"
                    ) from error
                error.add_note(f"while dispatching {operation} of batch {n} at stage {k}, tick {tick}")
                raise
        return metrics.replace(auxiliary=auxiliary) if auxiliary else metrics

    def _dispatches(self, tick: int, first: int, stop: int) -> tuple[Dispatch, ...]:
        """What a tick dispatches. Ticks that are alike share it: a run has few patterns."""
        pattern = self.schedule.phase(tick), min(tick - first, self.schedule.drain), stop - tick
        found = self._patterns.get(pattern)
        if found is None:
            ops = self.schedule.window(tick, first, stop)
            joined = [(op,) for op in ops] if self.schedule.splits_backward else join(ops)
            found = self._patterns[pattern] = tuple(
                Dispatch(self._operation(op, *then), op.stage, op.batch - tick, then[0].batch - tick if then else 0)
                for op, *then in joined
            )
        return found

    def _operation(self, op: Op, then: Op | None = None) -> Operation:
        if then is not None:
            return "backward_forward"
        split = self.schedule.splits_backward
        if op.kind is WEIGHT:
            return "weight_gradient"
        if op.kind is BACKWARD:
            return "teach" if self.schedule.is_local else "input_gradient" if split else "backward"
        if op.stage == self.schedule.loss_stage:
            return "forward_loss" if split else "train"
        return "learn" if self.schedule.is_local else "forward"

    def predict(self, stages: Sequence[StageState], x: PyTree) -> PyTree:
        """The network's output for inputs ``x``, [B, ...], with today's weights."""
        x = self.placement.put(x, 0)
        for k, program in enumerate(self.programs):
            x = program.predict(stages[k], self.placement.send(x, k - 1, k) if k else x)
        return x

    def measure_norms(
        self, stages: Sequence[StageState], batch: tuple[PyTree, PyTree], chunk_size: int, statistics: Statistics
    ) -> tuple[StageState, ...]:
        """The stages with the gradient norms of the batch's examples: forwards from the first on, then backwards.

        Args and raises: as of `Pipeline.measure_gradient_norms`.
        """
        check_choice("statistics", statistics, Statistics)
        if self.schedule.is_local:
            raise ValueError(
                f"under schedule {self.schedule.name!r} stages learn from objectives of their own, of which single "
                "examples' gradients are not measured; take an optimizer that needs none, such as jaxdecouple.lars"
            )
        last, placement = len(self.programs) - 1, self.placement
        at, found, activations = list(stages), list(stages), [placement.put(batch[0], 0)]
        for k, program in enumerate(self.programs):
            if statistics == "batch":
                at[k] = program.at_batch_statistics(stages[k], activations[k])
            if k < last:
                activations.append(placement.send(program.predict(at[k], activations[k]), k, k + 1))
        given = placement.put(batch[1], last)
        for k, program in reversed(list(enumerate(self.programs))):
            given, norms = program.measure_norms(at[k], activations[k], given, chunk_size)
            found[k] = stages[k].replace(packed_gradient_norms=norms)
            if k:
                given = placement.send(given, k, k - 1)
        return tuple(found)

    def forward(self, work: Workspace, k: int, n: int) -> None:
        """The forward of a stage below the loss."""
        self._before(work, "forward", k, n)
        x = work.activations[k].pop(n)
        passed = self.programs[k].forward(work.stages[k], x, n, self._weights)
        self._keep(work, "forward", k, n, passed, up=n)

    def train(self, work: Workspace, k: int, n: int) -> Metrics:
        """Forward, loss, backward and update of the last stage."""
        self._before(work, "train", k, n)
        x, targets, context = work.activations[k].pop(n), work.targets[k].pop(n), self._context(work, k, n)
        passed = self.programs[k].train(work.stages[k], x, targets, n, self._sends[k], context)
        self._keep(work, "train", k, n, passed, down=True)
        return Metrics(n, passed.outcome.loss, passed.outcome.metrics or {})

    def backward(self, work: Workspace, k: int, n: int) -> None:
        """The backward of a stage below the loss, with its update."""
        self._before(work, "backward", k, n)
        residual, gradient, context = work.residuals[k].pop(n), work.gradients[k].pop(n), self._context(work, k, n)
        passed = self.programs[k].backward(work.stages[k], residual, gradient, n, self._weights, context)
        self._keep(work, "backward", k, n, passed, down=True)

    def backward_forward(self, work: Workspace, k: int, n: int, next_n: int) -> None:
        """The backward of a batch and the forward of another, in one dispatch."""
        observed = work.observer is not None and (work.observer.wants(n) or work.observer.wants(next_n))
        if observed or self._waits(work, k, n):
            self.backward(work, k, n)
            self.forward(work, k, next_n)
            return
        self._before(work, "backward_forward", k, n)
        back = work.residuals[k].pop(n), work.gradients[k].pop(n), n
        forth, context = (work.activations[k].pop(next_n), next_n), self._context(work, k, n)
        passed = self.programs[k].backward_forward(work.stages[k], *back, *forth, self._weights, context)
        self._keep(work, "backward_forward", k, n, passed, down=True, up=next_n)

    def forward_loss(self, work: Workspace, k: int, n: int) -> Metrics:
        """Forward, loss and backward of the last stage, without the gradient of its weights."""
        self._before(work, "forward_loss", k, n)
        x, targets = work.activations[k].pop(n), work.targets[k].pop(n)
        passed = self.programs[k].forward_loss(work.stages[k], x, targets, n, self._weights)
        work.residuals[k][n] = passed.residual
        self._keep(work, "forward_loss", k, n, passed, down=True)
        return Metrics(n, passed.outcome.loss, passed.outcome.metrics or {})

    def input_gradient(self, work: Workspace, k: int, n: int) -> None:
        """The backward of a stage below the loss, without the gradient of its weights."""
        self._before(work, "input_gradient", k, n)
        residual, gradient = work.residuals[k].pop(n), work.gradients[k].pop(n)
        passed = self.programs[k].input_gradient(work.stages[k], residual, gradient, n, self._weights)
        work.residuals[k][n] = passed.residual
        self._keep(work, "input_gradient", k, n, passed, down=True)

    def weight_gradient(self, work: Workspace, k: int, n: int) -> None:
        """The gradient of a stage's weights, with its update."""
        self._before(work, "weight_gradient", k, n)
        residual, context = work.residuals[k].pop(n), self._context(work, k, n)
        passed = self.programs[k].weight_gradient(work.stages[k], residual, n, self._weights, context)
        self._keep(work, "weight_gradient", k, n, passed)

    def learn(self, work: Workspace, k: int, n: int) -> jax.Array | None:
        """The forward of a stage that learns locally, with its update; the loss of its auxiliary network, if any."""
        self._before(work, "learn", k, n)
        x, targets, context = work.activations[k].pop(n), work.targets[k].pop(n), self._context(work, k, n)
        passed = self.programs[k].learn(work.stages[k], x, targets, n, self._weights, context)
        self._keep(work, "learn", k, n, passed, down=True, up=n)
        return passed.outcome.loss

    def teach(self, work: Workspace, k: int, n: int) -> jax.Array:
        """Teaches a stage's auxiliary network the gradient from above; its error."""
        self._before(work, "teach", k, n)
        residual, gradient = work.residuals[k].pop(n), work.gradients[k].pop(n)
        passed = self.programs[k].teach(work.stages[k], residual, gradient, n, self._weights)
        self._keep(work, "teach", k, n, passed)
        return passed.outcome.loss

    def _context(self, work: Workspace, k: int, n: int) -> UpdateContext:
        """What the update by batch ``n`` needs of the rest; what waits for it in ``work.ties`` is taken out.

        Other stages' shares are those from before the tick where updates do not wait: so no stage waits for what
        another computes in the same tick.
        """
        observe, ties = work.observer is not None and work.observer.wants(n), work.ties[k].pop(n, None)
        hold, others = self._waits(work, k, n), None
        if hold:
            others = ()
        elif self._sums(work, k, n):
            others = self._others(work.shares, k)
        return UpdateContext(observe, hold, others, ties)

    def _sums(self, work: Workspace, k: int, n: int) -> bool:
        """Whether batch ``n`` ends in an update that needs a sum over all stages."""
        return work.stages[k].share is not None and self.programs[k].updates.due(n)

    def _waits(self, work: Workspace, k: int, n: int) -> bool:
        """Whether, besides, that update waits until all stages have their shares of the sum."""
        return self._sums(work, k, n) and self._together

    def _others(self, shares: Sequence[jax.Array | None], k: int) -> tuple[jax.Array, ...]:
        """The shares of all stages but ``k``, where that lives."""
        apart = ((j, share) for j, share in enumerate(shares) if j != k and share is not None)
        return tuple(self.placement.send(share, j, k) for j, share in apart)

    @functools.cached_property
    def _together(self) -> bool:
        """Whether all stages update in the same tick, from the same batches, so that they can wait for one another."""
        groups = {program.updates.every for program in self.programs}
        return len(self.programs) > 1 and len(groups) == 1 and is_synchronous(self.schedule, *groups)

    def _update_together(self, work: Workspace, n: int) -> None:
        """The updates that waited: all stages have the gradient of batch ``n``, and their shares of the sum."""
        shares = [stage.share for stage in work.stages]
        for k, (operation, held) in sorted(work.held.items()):
            others = self._others(shares, k)
            passed = self.programs[k].update(work.stages[k], held.held, n, self._weights, others)
            work.stages[k] = passed.state
            self._lend(work, k)
            if work.observer is not None:
                work.observer.after(operation, k, n, held.grads, updated=True)
        work.held.clear()

    def _share(self, work: Workspace, k: int, n: int, gradients: dict[str, jax.Array]) -> None:
        """Sends the gradients of tied parameters to the stages that own them."""
        for tie in self.ties:
            if tie.name in gradients:
                waiting = work.ties[tie.owner.stage].get(n, {})
                sent = self.placement.own(gradients[tie.name], tie.owner.stage)
                work.ties[tie.owner.stage][n] = {**waiting, tie.name: (*waiting.get(tie.name, ()), sent)}

    def _lend(self, work: Workspace, k: int) -> None:
        """Sends the tied parameters that stage ``k`` owns, and has updated, to the stages that hold copies."""
        for tie in self.ties:
            if tie.owner.stage == k:
                new = work.stages[k].packed_params.leaf(tie.owner.path)
                for stage, path in tie.copies:
                    held = work.stages[stage].packed_params.with_leaf(path, self.placement.own(new, stage))
                    work.stages[stage] = work.stages[stage].replace(packed_params=held)

    def _before(self, work: Workspace, operation: Operation, k: int, n: int) -> None:
        if work.observer is not None:
            work.observer.before(work, operation, k, n)

    def _keep(
        self,
        work: Workspace,
        operation: Operation,
        k: int,
        n: int,
        passed: Passed,
        down: bool = False,
        up: int | None = None,
    ) -> None:
        """Puts back what an operation gave, and hands it to the neighbours.

        Args:
          work: where to.
          operation, k, n: which it was.
          passed: what it gave.
          down: whether it computed a gradient, which goes down if the stage sends any.
          up: the batch whose output goes up, if one does.
        """
        before, work.stages[k] = work.stages[k], passed.state
        updated, outcome = passed.state.packed_params is not before.packed_params, passed.outcome
        if outcome.ties is not None:
            self._share(work, k, n, outcome.ties)
        if updated:
            self._lend(work, k)
        if outcome.held is not None:
            work.held[k] = operation, outcome
        if down and self._sends[k]:
            work.gradients[k - 1][n] = self.placement.send(outcome.sent, k, k - 1)
        if up is not None:
            work.activations[k + 1][up] = self.placement.send(outcome.y, k, k + 1)
            if passed.residual is not None:
                work.residuals[k][up] = passed.residual
        if work.held and len(work.held) == sum(stage.share is not None for stage in work.stages):
            self._update_together(work, n)
        elif work.observer is not None and outcome.held is None:
            work.observer.after(operation, k, n, outcome.grads, updated)
