"""The state of a run is one pytree: what each stage owns, what is in flight, and the clock.

Saving it and loading it continues the run exactly. Arrays of stage k are committed to stage k's device.
"""

from __future__ import annotations

import jax
import optax
from flax import struct

from jaxdecouple.engine.linearization import Residual
from jaxdecouple.network.trees import PyTree


class AuxiliaryState(struct.PyTreeNode):
    """The auxiliary network of a stage that learns locally.

    Attributes:
      params: after its last update.
      model_state: batch statistics and the like, after the stage's last forward.
      opt_state: its optimizer's.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState


class StageState(struct.PyTreeNode):
    """What stage k owns.

    Attributes:
      params: after the stage's last update.
      model_state: batch statistics and the like, after the stage's last forward.
      opt_state: the optimizer's.
      key: the run's random key, the same at every stage.
      gradient_norms: of single examples, [examples] for each parameter, as last measured, for optimizers that need
        them (CLARS); ``None`` before the first time.
      auxiliary: the stage's auxiliary network, under schedules by which stages learn locally; else ``None``.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    key: jax.Array
    gradient_norms: PyTree | None = None
    auxiliary: AuxiliaryState | None = None


class InFlight(struct.PyTreeNode):
    """What has been produced for stage k and not yet used: dicts from batch index to value.

    Attributes:
      activations: inputs, [B, ...], of batches not yet forwarded here.
      targets: at stages with an objective, of batches fed but not yet there: the last, or, locally learning, all.
      residuals: what the forward of a batch left for its backward.
      gradients: of the loss with respect to this stage's output, of batches not yet backwarded here.
    """

    activations: dict[int, PyTree] = struct.field(default_factory=dict)
    targets: dict[int, PyTree] = struct.field(default_factory=dict)
    residuals: dict[int, Residual] = struct.field(default_factory=dict)
    gradients: dict[int, PyTree] = struct.field(default_factory=dict)


class State(struct.PyTreeNode):
    """A run between two ticks.

    Attributes:
      stages: what each stage owns.
      in_flight: what each stage has waiting.
      tick: the next tick, which is also the index of the next batch: the number of batches fed.
      first: the first batch after the last flush; all before it are done.
    """

    stages: tuple[StageState, ...]
    in_flight: tuple[InFlight, ...]
    tick: int = 0
    first: int = 0


class Metrics(struct.PyTreeNode):
    """Of the batch that reached the loss in a tick; all ``None`` while the pipeline fills.

    Attributes:
      batch: its index.
      loss: scalar array on the last stage's device.
      accuracy: scalar array there, or ``None`` where targets are not labels.
      auxiliary: by stage, the loss of each auxiliary network that learned in the tick, of whatever batch it had: scalar
        arrays on the stages' devices; empty unless stages learn locally.
    """

    batch: int | None = None
    loss: jax.Array | None = None
    accuracy: jax.Array | None = None
    auxiliary: dict[int, jax.Array] = struct.field(default_factory=dict)


class Workspace:
    """A state's containers, thawed for the length of a tick. Arrays are never copied."""

    def __init__(self, state: State):
        self.stages = list(state.stages)
        self.activations = [dict(flight.activations) for flight in state.in_flight]
        self.targets = [dict(flight.targets) for flight in state.in_flight]
        self.residuals = [dict(flight.residuals) for flight in state.in_flight]
        self.gradients = [dict(flight.gradients) for flight in state.in_flight]

    def freeze(self, tick: int, first: int) -> State:
        queues = zip(self.activations, self.targets, self.residuals, self.gradients, strict=True)
        return State(tuple(self.stages), tuple(InFlight(*map(dict, queue)) for queue in queues), tick, first)
