"""What a run expects of the batches and the states that it is given, and what it says of others."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdecouple import schedules
from jaxdecouple.engine.loss_program import Loss, LossProgram
from jaxdecouple.engine.losses import softmax_cross_entropy, token_cross_entropy
from jaxdecouple.engine.state import USED_UP, StageState, State, check_alive
from jaxdecouple.errors import did_you_mean
from jaxdecouple.network.trees import PyTree, Signature, count_examples, describe, shape_of, signature_of
from jaxdecouple.schedules import Schedule


class Expected:
    """What a run expects of a batch.

    Attributes:
      inputs, logits: shapes and dtypes of the inputs that the run began with, and of the outputs for them.
    """

    def __init__(
        self,
        inputs: PyTree,
        logits: PyTree | None,
        stages: Sequence[StageState],
        programs: Sequence[Any],
        loss_program: LossProgram | None,
    ):
        """Expects batches like ``inputs``.

        Args:
          inputs: arrays or shapes, [B, ...].
          logits: shapes of the outputs for them, if they are known.
          stages, programs: of the network.
          loss_program: of the last stage; ``None`` if another process has that, and the targets.
        """
        self.inputs = shape_of(inputs)
        self._stages = shape_of(stages)  # the arrays will be given up
        self._programs = programs
        self._program = loss_program
        self._accepted: set[Hashable] = set()
        # Outputs, by inputs.
        self._known: dict[Signature, PyTree] = {} if logits is None else {signature_of(self.inputs): shape_of(logits)}
        self.logits = self._outputs_of(self.inputs)

    def check(self, inputs: PyTree, targets: PyTree, n: int) -> None:
        """Refuses batch ``n``, if the network cannot take it, or it has labels of no class. Shapes are looked at once.

        Raises:
          ValueError: inputs of another structure, number of axes or dtypes than at the beginning, or of a shape that a
            layer cannot take; targets that the loss cannot take; nothing in them; labels outside of the classes.
        """
        leaves, structure = jax.tree.flatten((inputs, targets))
        kind = structure, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
        if kind not in self._accepted:
            for name, part in (("inputs", inputs), ("targets", targets)):
                check_arrays(part, f"batch {n} has {name} that are", name)
            if any(0 in np.shape(leaf) for leaf in leaves):
                raise ValueError(
                    f"batch {n} has inputs {describe(inputs)} and targets {describe(targets)}; write at least 1 example"
                )
            x = shape_of(inputs)
            given = f"batch {n} has inputs {describe(x)}, but this run was initialised with {describe(self.inputs)}"
            if _kind_of(x) != _kind_of(self.inputs):
                raise ValueError(f"{given}; write inputs of the same structure, dtypes and numbers of axes")
            try:
                logits = self._outputs_of(x)
            except Exception as error:
                raise ValueError(f"{given}, and a layer cannot take them: {error}") from error
            if self._program is not None:
                self._program.check(logits, shape_of(targets))
            self._accepted.add(kind)
        if self._program is not None:
            check_targets(self._program.loss, self.logits, targets, n)

    def inputs_for(self, targets: PyTree) -> PyTree:
        """The shapes of a batch's inputs, from its targets if they are known, else as at the beginning."""
        size = count_examples(targets)
        if not size:
            return self.inputs
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), self.inputs)

    def _outputs_of(self, x: PyTree) -> PyTree:
        signature = signature_of(x)
        if signature not in self._known:
            for stage, program in zip(self._stages, self._programs, strict=True):
                x = program.output_shape(stage, x)
            self._known[signature] = x
        return self._known[signature]


def check_targets(loss: Loss, logits: PyTree, targets: PyTree, n: int) -> None:
    """Refuses labels of no class, and what are no probabilities, under cross entropy.

    Only targets still on the host are looked at: reading a device array would wait for it.

    Raises:
      ValueError: batch ``n`` has such targets.
    """
    if loss not in (softmax_cross_entropy, token_cross_entropy) or not isinstance(targets, np.ndarray):
        return
    if not targets.size or not hasattr(logits, "shape"):
        return
    if not np.issubdtype(targets.dtype, np.integer):
        _check_probabilities(targets, n)
        return
    classes = logits.shape[-1]
    least = targets.min() if loss is token_cross_entropy else 0  # it leaves negative ones out
    if targets.ndim == logits.ndim - 1 and not least <= targets.min() <= targets.max() < classes:
        raise ValueError(
            f"batch {n} has labels from {targets.min()} to {targets.max()}, but the network has {classes} outputs; "
            f"write labels of 0..{classes - 1}"
        )


def _check_probabilities(targets: np.ndarray, n: int) -> None:
    """Refuses targets of a regression, which cross entropy would take for probabilities; rows of zeros add nothing."""
    totals = targets.sum(axis=-1, dtype=np.float64)
    if targets.min() < 0 or not np.all((totals == 0) | (abs(totals - 1) < 0.01)):
        raise ValueError(
            f"batch {n} has targets from {targets.min():.3g} to {targets.max():.3g} that sum to {totals.min():.3g} to "
            f"{totals.max():.3g}, but cross entropy, the loss by default, takes integer labels or probabilities, which "
            "sum to 1; for other targets write a loss: jd.Pipeline(..., loss=lambda outputs, targets: "
            "jnp.mean((outputs - targets) ** 2))"
        )


def check_arrays(tree: PyTree, what: str, name: str) -> PyTree:
    """A tree of arrays.

    Args:
      tree: what was given.
      what: how the message begins.
      name: of the tree in the message.

    Raises:
      ValueError: it holds numbers, and no array.
    """
    leaves = jax.tree.leaves(tree)
    if leaves and not any(hasattr(leaf, "shape") for leaf in leaves):
        raise ValueError(f"{what} a {type(tree).__name__} of numbers; write arrays, [B, ...]: numpy.asarray({name})")
    return tree


def check_init(key: Any, x: PyTree) -> tuple[jax.Array, PyTree]:
    """A random key, of the newer kind, and the shapes of inputs; raises as `check_key` and `check_arrays`."""
    return check_key(key), shape_of(check_arrays(x, "the inputs are", "x"))


def check_key(key: Any) -> jax.Array:
    """A random key, of the newer kind.

    Raises:
      ValueError: it is none.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (np.ndim(key) or jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)):
        shown = key if isinstance(key, int | np.integer) else 0
        raise ValueError(f"the key is {key!r}; write init(jax.random.key({shown}), x)")
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype != np.uint32:
        raise ValueError(f"the key is an array {describe(key)}; write init(jax.random.key(0), x), the key first")
    return jax.random.wrap_key_data(key)


def check_schedule(schedule: Any, num_stages: int) -> None:
    """Refuses what is no schedule, or one for another number of stages.

    Raises:
      ValueError: ``schedule`` is a name, a preset that was not called or something else, or for other than
        ``num_stages`` stages.
    """
    if not isinstance(schedule, Schedule):
        name = schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "fdg")
        known = [preset for preset in schedules.__all__ if preset.islower()]
        hint = "" if name in known else did_you_mean(name, known)
        name = name if name in known else "fdg"
        raise ValueError(f"the schedule is {schedule!r}; {hint}write jaxdecouple.schedules.{name}({num_stages})")
    if num_stages != schedule.num_stages:
        raise ValueError(
            f"got {num_stages} stages, but the schedule {schedule.name!r} is for {schedule.num_stages}; "
            "cut the network into as many stages as the schedule has"
        )


def check_pair(batch: Any, call: str) -> tuple[PyTree, PyTree]:
    """Inputs and targets of a batch.

    Raises:
      ValueError: it is no pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"a batch is a pair, but got {type(batch).__name__}; write {call}")
    return batch[0], batch[1]


def check_batches(state: State, batches: Any) -> None:
    """Refuses a state that cannot be evaluated, and arrays in place of batches.

    Raises:
      ValueError: says what to write.
    """
    check_usable(state, thoroughly=False)
    if isinstance(batches, tuple | list) and any(hasattr(part, "shape") for part in batches):
        raise ValueError("evaluate takes batches, but got arrays; write evaluate(state, [(inputs, targets)])")


def check_usable(state: State, thoroughly: bool = True) -> None:
    """Refuses a state whose memory has been reused.

    Args:
      state: to be looked at.
      thoroughly: whether to look at all of its arrays, and not only at some that every step reuses.

    Raises:
      ValueError: it is no state, or was given to `step` or `flush` before.
    """
    if not isinstance(state, State):
        raise ValueError(
            f"the state is a {type(state).__name__}; write pipeline.init(key, x) for a new one, and give each call the "
            "state that the last step returned: state, metrics = pipeline.step(state, batch)"
        )
    arrays: list[Any] = []
    for stage in state.stages:
        # All arrays of a part are given up together.
        arrays += [*stage.packed_opt_state.arrays[:1], *stage.packed_params.arrays[:1]]
    if thoroughly:
        arrays = jax.tree.leaves((state.stages, state.in_flight))
    check_alive(*arrays)


class Custody:
    """Knows the state that was given out last; one that comes from elsewhere is looked at closely."""

    def __init__(self, schedule: Schedule, donate: bool) -> None:
        """Remembers, where states are given up (``donate``), also the one that was used last."""
        self._schedule, self._donate = schedule, donate
        self._newest: weakref.ref[State] | None = None
        self._taken: weakref.ref[State] | None = None
        self._used: weakref.ref[State] | None = None

    def give(self, state: State, used: bool = True) -> State:
        """Gives out the state that follows from the one taken last, which was used up, or left as it was."""
        self._newest = weakref.ref(state)
        if used:
            self._used = self._taken
        return state

    def take(self, state: State) -> State:
        """The state, to be used up.

        Raises:
          ValueError: as of `check_usable`; or it is the one that was used last, even if nothing of its memory was
            reused then, as while the pipeline fills: whoever never takes the new state would train nothing; or it is of
            a schedule that keeps batches for longer.
        """
        if self._donate and self._used is not None and self._used() is state:
            raise ValueError(USED_UP)
        self._taken = weakref.ref(state) if isinstance(state, State) else None
        known = self._newest is not None and self._newest() is state
        check_usable(state, thoroughly=not known)
        if not known:
            _check_in_flight(state, self._schedule)
        return state if known else _without_repetitions(state)


def _check_in_flight(state: State, schedule: Schedule) -> None:
    tick = int(state.tick)
    for k, waiting in enumerate(state.in_flight):
        for n in (n for held in vars(waiting).values() for n in held if n < tick - schedule.drain):
            raise ValueError(
                f"the state has batch {n} in flight at stage {k}, which schedule {schedule.name!r} would have finished "
                f"by tick {tick}: it is of another schedule; flush it with the pipeline that it comes from"
            )


def _without_repetitions(state: State) -> State:
    """The state, with a copy of each array that its stages own more than once: both places would be donated."""
    known: set[int] = set()

    def own(array: Any) -> Any:
        if id(array) in known:
            return jax.numpy.copy(array)
        known.add(id(array))
        return array

    stages = []
    for stage in state.stages:
        parts = stage.packed_params, stage.packed_opt_state, stage.auxiliary
        params, opt_state, auxiliary = jax.tree.map(own, parts)
        changes = {"packed_params": params, "packed_opt_state": opt_state, "auxiliary": auxiliary}
        stages.append(dataclasses.replace(stage, **changes))
    return state.replace(stages=tuple(stages))


def _kind_of(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(len(leaf.shape), leaf.dtype) for leaf in leaves]
