"""The state of a run is one pytree: what each stage owns, what is in flight, and the clock.

Saving it and loading it continues the run exactly. Arrays of stage k are committed to stage k's device. What a stage
owns is held packed (see `packing`): its trees, such as ``state.stages[k].params``, are made when they are asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import optax
from flax import struct
from jax.core import Tracer

from jaxdecouple.charts import table
from jaxdecouple.engine.packing import Packed, pack
from jaxdecouple.network.trees import PyTree, shape_of

USED_UP = (
    "this state was given to step or flush before, which reused its memory; go on with the state that they returned. "
    "To keep one for later, such as the best so far, write best = state.copy(), or build the pipeline with donate=False"
)
_NOTHING = pack(())
_TREES = ("params", "model_state", "opt_state", "gradient_norms")


def check_alive(*arrays: Any) -> None:
    """Refuses arrays whose memory has been reused; tracers, and shapes of what another process has, are let pass.

    Raises:
      ValueError: there is such an array.
    """
    given = (array for array in arrays if isinstance(array, jax.Array) and not isinstance(array, Tracer))
    if any(array.is_deleted() for array in given):
        raise ValueError(USED_UP)


def _opened(packed: Packed) -> PyTree:
    check_alive(*packed.arrays)
    return packed.tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkState:
    """What training changes in a part of a network: a stage, or its auxiliary network.

    Attributes:
      packed_params, packed_model_state, packed_opt_state: `params`, `model_state` and `opt_state`, packed.
    """

    packed_params: Packed
    packed_model_state: Packed
    packed_opt_state: Packed

    @property
    def params(self) -> PyTree:
        """The parameters after the last update, as a tree."""
        return _opened(self.packed_params)

    @property
    def model_state(self) -> PyTree:
        """Batch statistics and the like after the last forward, as a tree."""
        return _opened(self.packed_model_state)

    @property
    def opt_state(self) -> optax.OptState:
        """The optimizer's state, as a tree."""
        return _opened(self.packed_opt_state)

    def replace(self, **changes: Any) -> Self:
        """The state with other attributes; ``params`` and the like are given as trees."""
        for name in changes.keys() & set(_TREES):
            tree = changes.pop(name)
            changes[f"packed_{name}"] = None if tree is None else pack(tree)
        return dataclasses.replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StageState(NetworkState):
    """What stage k owns.

    Attributes:
      key: the run's random key, the same at every stage.
      packed_gradient_norms: `gradient_norms`, packed.
      auxiliary: the stage's auxiliary network, under schedules by which stages learn locally; else ``None``.
      share: the stage's share of what its optimizer sums over all stages, as of its last update; ``None`` where that
        sums nothing (`clip_by_global_norm` does).
    """

    key: jax.Array
    packed_gradient_norms: Packed | None = None
    auxiliary: NetworkState | None = None
    share: jax.Array | None = None

    @property
    def gradient_norms(self) -> PyTree | None:
        """Norms of single examples' gradients, [examples] for each parameter, as last measured; ``None`` before that.

        They are there for optimizers that need them (CLARS).
        """
        return None if self.packed_gradient_norms is None else self.packed_gradient_norms.tree

    @property
    def bare(self) -> StageState:
        """What layers compute from, without what only updates need: less to hand to functions that do not update."""
        return StageState(self.packed_params, self.packed_model_state, _NOTHING, self.key)


class Residual(struct.PyTreeNode):
    """What the forward of a batch leaves behind for its backward, which depends on the weights that that is to use.

    * ``stash``   the activations, and a reference to the weights of the forward;
    * ``remat``   the stage's input, and references to those weights and the model state; the forward is redone;
    * ``latest``  the activations alone; the backward reads today's weights;
    * ``replay``  the stage's input, and a reference to the model state; the forward is redone with today's weights.

    Attributes:
      values: the activations, packed, made by the forward and held by nobody else; ``None`` where it is redone.
      inputs: what the backward needs of the stage's input, by reference.
      params: the weights of the forward, by reference, or ``None``.
      model_state: that before the forward, by reference, or ``None`` where the forward is not redone.
      signature: structure, shapes and dtypes of the stage's input.
    """

    values: Packed | None = None
    inputs: PyTree = ()
    params: Packed | None = None
    model_state: Packed | None = None
    signature: Any = struct.field(pytree_node=False, default=None)

    @property
    def held(self) -> tuple[PyTree, Packed | None, Packed | None]:
        """What it holds by reference: ``inputs``, ``params``, ``model_state``."""
        return self.inputs, self.params, self.model_state


class InFlight(struct.PyTreeNode):
    """What has been produced for stage k and not yet used: dicts from batch index to value.

    Attributes:
      activations: inputs, [B, ...], of batches not yet forwarded here.
      targets: at stages with an objective, of batches fed but not yet there: the last, or, locally learning, all.
      residuals: what the forward of a batch left for its backward.
      gradients: of the loss with respect to this stage's output, of batches not yet backwarded here.
      ties: of the loss with respect to tied parameters that this stage owns, by name, from each stage above that shares
        them; of batches not yet backwarded here.
    """

    activations: dict[int, PyTree] = struct.field(default_factory=dict)
    targets: dict[int, PyTree] = struct.field(default_factory=dict)
    residuals: dict[int, Residual] = struct.field(default_factory=dict)
    gradients: dict[int, PyTree] = struct.field(default_factory=dict)
    ties: dict[int, dict[str, tuple[jax.Array, ...]]] = struct.field(default_factory=dict)


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

    def _repr_html_(self) -> str:
        """What each stage has, by sizes alone, which notebooks show; nothing is waited for."""
        rows = [["stage", "parameters", "MB, optimizer included", "in flight: batches"]]
        for k, (stage, waiting) in enumerate(zip(self.stages, self.in_flight, strict=True)):
            owned = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stage))
            parameters = sum(leaf.size for leaf in jax.tree.leaves(stage.packed_params))
            batches = [f"{name} {', '.join(map(str, sorted(held)))}" for name, held in vars(waiting).items() if held]
            rows.append([str(k), f"{parameters:,}", f"{owned / 1e6:.3g}", "; ".join(batches) or "nothing"])
        return f"<p>After {int(self.tick)} batches.</p>{table(rows)}"

    def copy(self) -> State:
        """A copy, where the state is, that no step touches: to keep the best so far, say.

        Raises:
          ValueError: it was used up.
        """
        copies: dict[int, jax.Array] = {}  # what is one array stays one

        def copied(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array):  # the shape of what another process has
                return leaf
            check_alive(leaf)
            if id(leaf) not in copies:
                copies[id(leaf)] = jax.numpy.copy(leaf)
            return copies[id(leaf)]

        stages, in_flight = jax.tree.map(copied, (self.stages, self.in_flight))
        return self.replace(stages=stages, in_flight=in_flight)


class Metrics(struct.PyTreeNode):
    """Of the batch that reached the loss in a tick; all ``None`` or empty while the pipeline fills.

    Attributes:
      batch: its index.
      loss: scalar array on the last stage's device.
      values: scalar arrays there, by the metric's name; those that say nothing about such targets are left out.
      auxiliary: by stage, the loss of each auxiliary network that learned in the tick, of whatever batch it had: scalar
        arrays on the stages' devices; empty unless stages learn locally.
    """

    batch: int | None = None
    loss: jax.Array | None = None
    values: dict[str, jax.Array] = struct.field(default_factory=dict)
    auxiliary: dict[int, jax.Array] = struct.field(default_factory=dict)

    @property
    def accuracy(self) -> jax.Array | None:
        """That among the values, over labels that are not negative; ``None`` where it is not measured.

        By default it is with this library's losses, and labels. A loss of one's own may leave labels out, or mean
        something else by them.
        """
        return self.values.get("accuracy")


def owned_by_layers(stages: Sequence[StageState]) -> list[dict[str, PyTree]]:
    """Shapes of what the layers of each stage own, by their names: parameters, or model state where they have none."""
    found = []
    for stage in stages:
        params, model_state = (shape_of(packed).tree for packed in (stage.packed_params, stage.packed_model_state))
        found.append({**model_state, **{name: tree for name, tree in params.items() if jax.tree.leaves(tree)}})
    return found
