"""What the state of a run will look like, worked out without computing it: a checkpoint is compared with this."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxdecouple.engine.operations import Dispatcher
from jaxdecouple.engine.placement import Nowhere
from jaxdecouple.engine.stage_program import StageProgram
from jaxdecouple.engine.state import InFlight, Metrics, StageState, State
from jaxdecouple.engine.ties import Tie
from jaxdecouple.engine.workspace import Workspace, feed
from jaxdecouple.network.trees import PyTree, shapes_of
from jaxdecouple.schedules import Schedule


def stage_shapes(programs: Sequence[StageProgram], x: PyTree, targets: PyTree) -> tuple[list[StageState], PyTree]:
    """What each stage owns at the beginning, and the network's output, for shapes of inputs and targets."""
    key, stages = jax.eval_shape(lambda: jax.random.key(0)), []
    for program in programs:
        stages.append(jax.eval_shape(functools.partial(program.init, x=x, targets=targets), key))
        x = program.output_shape(stages[-1], x)
    return stages, x


def shapes_in_flight(
    programs: Sequence[StageProgram],
    schedule: Schedule,
    stages: tuple[StageState, ...],
    batches: Mapping[int, tuple[PyTree, PyTree]],
    oldest: int,
    ties: Sequence[Tie] = (),
) -> tuple[InFlight, ...]:
    """What each stage has in flight, as ``jax.ShapeDtypeStruct``.

    Args:
      programs: of each stage.
      schedule: of the run.
      stages: shapes of what each stage owns.
      batches: shapes of inputs and targets of the batches fed so far, from batch ``oldest`` on.
      oldest: the first batch that can still be in flight.
      ties: parameters that stages share.
    """

    def walk(stages: tuple, batches: dict[int, tuple[PyTree, PyTree]]) -> tuple[InFlight, ...]:
        dispatcher = ShapesDispatcher(programs, Nowhere(), schedule, ties)
        work, tick = Workspace(State(stages, tuple(InFlight() for _ in stages))), oldest
        for tick, batch in batches.items():
            feed(work, dispatcher.placement, schedule, tick, *batch)
            dispatcher.tick(work, tick, oldest, tick + 1)
        return work.freeze(tick, oldest).in_flight

    return jax.eval_shape(walk, stages, dict(batches))


class ShapesDispatcher(Dispatcher):
    """The operations within ``jax.eval_shape``, without their arithmetic.

    Backward passes, which take long to trace, are not traced, unless they are split: the first part leaves something.
    A gradient has the shape and dtype of what it belongs to, so that a stage's input says what it sends down.
    """

    def train(self, work: Workspace, k: int, n: int) -> Metrics:
        x, _ = work.activations[k].pop(n), work.targets[k].pop(n)
        if self._sends[k]:
            self._send_down(work, x, k, n)
        self._share_shapes(work, k, n)
        return Metrics()

    def backward(self, work: Workspace, k: int, n: int) -> None:
        residual, _ = work.residuals[k].pop(n), work.gradients[k].pop(n)
        work.ties[k].pop(n, None)
        self._share_shapes(work, k, n)
        if self._sends[k]:
            self._send_down(work, shapes_of(residual.signature), k, n)

    def backward_forward(self, work: Workspace, k: int, n: int, next_n: int) -> None:
        self.backward(work, k, n)
        self.forward(work, k, next_n)

    def weight_gradient(self, work: Workspace, k: int, n: int) -> None:
        work.residuals[k].pop(n)
        work.ties[k].pop(n, None)

    def teach(self, work: Workspace, k: int, n: int) -> jax.Array:
        work.residuals[k].pop(n)
        work.gradients[k].pop(n)
        return jnp.zeros(())

    def _copied(self, leaf: jax.Array, stage: int) -> jax.Array:
        return leaf

    def _share_shapes(self, work: Workspace, k: int, n: int) -> None:
        paths = {tie.name: path for tie in self.ties for stage, path in tie.copies if stage == k}
        leaves = {name: work.stages[k].packed_params.leaf(path) for name, path in paths.items()}
        self._share(work, k, n, {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves.items()})

    def _send_down(self, work: Workspace, x: PyTree, k: int, n: int) -> None:
        """The gradient of an input ``x``; integer activations have none."""
        gradient = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, x
        )
        work.gradients[k - 1][n] = self.placement.send(gradient, k, k - 1)
