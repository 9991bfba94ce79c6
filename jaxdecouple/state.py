"""The state of a run is one pytree: what each stage owns, what is in flight, and the clock.

Saving it and loading it continues the run exactly. Arrays of stage k are committed to stage k's device.
"""

from __future__ import annotations

import jax
import optax
from flax import struct

from jaxdecouple.residuals import Residual
from jaxdecouple.stage import PyTree


class StageState(struct.PyTreeNode):
    """What stage k owns.

    Attributes:
      params: after the stage's last update.
      model_state: batch statistics and the like, after the stage's last forward.
      opt_state: the optimizer's.
      key: the run's random key, the same at every stage.
      gradient_norms: of single examples, [examples] for each parameter, as last measured, for optimizers that need
        them (CLARS); ``None`` before the first time.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    key: jax.Array
    gradient_norms: PyTree | None = None


class InFlight(struct.PyTreeNode):
    """What has been produced for stage k and not yet used: dicts from batch index to value.

    Attributes:
      activations: inputs, [B, ...], of batches not yet forwarded here.
      targets: at the last stage, of batches fed but not yet at the loss.
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
    """

    batch: int | None = None
    loss: jax.Array | None = None
    accuracy: jax.Array | None = None
