"""A schedule says, for each host tick, which operations to dispatch, in which order.

It is plain data: nothing here imports JAX. The pipeline dispatches what a schedule lists and does no index
arithmetic of its own; the staleness analysis and the drawings read the same list.

Two conventions hold for every schedule:

* batch ``n`` is fed in tick ``n``;
* the last stage owns the loss: its ``FORWARD`` is forward, loss, backward and update in one operation, so it has no
  ``BACKWARD``. For one batch, every other stage has one ``FORWARD`` and one ``BACKWARD``.

Where backwards are split (zero-bubble schedules), a backward finds the gradient of the stage's input alone. That of its
weights is a third operation, ``WEIGHT``, which every stage has of each batch, the last one too; it updates.

Where stages learn locally (`Learning`), the ``FORWARD`` of every stage is such an operation, with an objective of the
stage's own. A ``BACKWARD`` then teaches the stage's auxiliary network, if that learns from the gradient from above.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from jaxdecouple.charts import Box, gantt
from jaxdecouple.errors import ScheduleError
from jaxdecouple.schedules.operations import BACKWARD, FORWARD, WEIGHT, Kind, Op, as_ops

Order = Literal["forward_first", "backward_first"]
Weights = Literal["stash", "remat", "replay", "latest"]
# What a stage below the last learns from: the gradient that the stage above sends, the loss of an auxiliary classifier
# (decoupled greedy learning), or a gradient that an auxiliary network predicts (decoupled neural interfaces).
Learning = Literal["gradient", "greedy", "synthetic"]

LOOKS = {  # of operations in a drawing, and what they stand for
    "forward": "forward",
    "backward": "backward, update",
    "loss": "forward, loss, backward, update",
    "joined": "backward joined with the next forward",
    "weight": "gradient of the weights, update",
}
_SPLIT_LOOKS = {**LOOKS, "backward": "backward", "loss": "forward, loss, backward"}
_SHOWN_TICKS = 14


def redoes_forward(weights: Weights) -> bool:
    """Whether a backward begins with its forward anew, from the stored input."""
    return weights in ("remat", "replay")


def keeps_versions(weights: Weights) -> bool:
    """Whether a backward uses the weights of its batch's own forward."""
    return weights in ("stash", "remat")


def as_integer(value: Any) -> Any:
    """An ``int`` for anything that is an integer, such as NumPy's; other values as they are."""
    try:
        return operator.index(value)
    except TypeError:
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """The operations of every tick, as a function of the tick alone (so a run can resume at any tick).

    Attributes:
      name: how results name the method.
      num_stages: K, the number of stages.
      weights: which weights a backward pass uses. ``stash``: those of the batch's own forward, with its activations.
        ``remat``: the same result in less memory, the forward being redone from the stored input with those weights.
        ``replay``: the forward is redone with today's weights. ``latest``: stored activations, today's weights.
    """

    name: str
    num_stages: int
    weights: Weights = "stash"

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_stages", as_integer(self.num_stages))
        if not isinstance(self.num_stages, int) or self.num_stages < 1:
            raise ScheduleError(f"num_stages is {self.num_stages!r}; write an integer of at least 1")
        if self.weights not in get_args(Weights):
            raise ScheduleError(f"weights is {self.weights!r}; write one of {', '.join(get_args(Weights))}")

    @abc.abstractmethod
    def ops(self, tick: int) -> tuple[Op, ...]:
        """The operations of ``tick``, in dispatch order, in a run that never stops feeding batches."""

    @property
    @abc.abstractmethod
    def drain(self) -> int:
        """Ticks from the feeding of a batch to its last operation, at most."""

    @property
    def repeats(self) -> int:
        """Ticks after which the pattern of operations, however long, has shown itself once."""
        return self.drain + 1

    def phase(self, tick: int) -> int:
        """Ticks of the same phase have the same operations, of batches as much later as the ticks are."""
        return tick

    @property
    def loss_stage(self) -> int:
        """The stage that owns the loss: the last one."""
        return self.num_stages - 1

    @property
    def learning(self) -> Learning:
        """What the stages below the last learn from."""
        return "gradient"

    @property
    def is_local(self) -> bool:
        """Whether every stage learns from an objective of its own, with the help of an auxiliary network."""
        return self.learning != "gradient"

    @property
    def splits_backward(self) -> bool:
        """Whether the gradients of weights are operations of their own, ``WEIGHT``."""
        return False

    def learns_in_forward(self, stage: int) -> bool:
        """Whether the stage's ``FORWARD`` contains a loss and its backward; and the update, unless that is split."""
        return self.is_local or stage == self.loss_stage

    def kinds(self, stage: int) -> tuple[Kind, ...]:
        """The operations that the stage has of each batch, in their order."""
        backward = (BACKWARD,) if self.has_backward(stage) else ()
        return FORWARD, *backward, *((WEIGHT,) if self.splits_backward else ())

    def updates_in(self, stage: int) -> Kind:
        """The kind of operation that completes the gradient of the stage's weights, and so updates them."""
        if self.splits_backward:
            return WEIGHT
        return FORWARD if self.learns_in_forward(stage) else BACKWARD

    def has_backward(self, stage: int) -> bool:
        """Whether the stage has a ``BACKWARD`` of each batch: whether the gradient from above is sent to it."""
        return self.learning != "greedy" and stage != self.loss_stage

    def gradient_source(self, stage: int, batch: int) -> Op:
        """The operation that computes the gradient which a ``BACKWARD`` at ``stage`` takes."""
        return Op(FORWARD if self.learns_in_forward(stage + 1) else BACKWARD, stage + 1, batch)

    def window(self, tick: int, first: int, stop: int) -> tuple[Op, ...]:
        """The operations of ``tick`` for the batches ``first <= n < stop``.

        A run that fed ``stop`` batches is flushed by going on with the ticks and leaving out the batches that never
        came; one that starts again at tick ``first`` leaves out those that were flushed before.
        """
        return tuple(op for op in self.ops(tick) if first <= op.batch < stop)

    def run(self, num_batches: int, first: int = 0) -> Iterator[tuple[int, tuple[Op, ...]]]:
        """``(tick, ops)`` for a run over ``num_batches`` batches from batch ``first``, flush included."""
        stop = first + num_batches
        for tick in range(first, stop + self.drain if num_batches else first):
            yield tick, self.window(tick, first, min(tick + 1, stop))

    @property
    def looks(self) -> dict[str, str]:
        """By the looks of boxes in a drawing, what they stand for."""
        return _SPLIT_LOOKS if self.splits_backward else LOOKS

    def look(self, kind: Kind, stage: int) -> str:
        """How an operation is drawn, one of `looks`."""
        if kind is FORWARD:
            return "loss" if self.learns_in_forward(stage) else "forward"
        return "backward" if kind is BACKWARD else "weight"

    def _repr_html_(self) -> str:
        """Its first ticks as a chart, which notebooks show."""
        return gantt(_boxes(self), [f"stage {stage}" for stage in range(self.num_stages)], x="tick", looks=self.looks)

    def with_weights(self, weights: Weights | None) -> Schedule:
        """The same schedule with another weights policy (``None``: unchanged)."""
        return self if weights is None else dataclasses.replace(self, weights=weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelaySchedule(Schedule):
    """Delays on the edges: ``p[k]`` ticks for activations k -> k+1, ``q[k]`` ticks for gradients k+1 -> k.

    With them, in ticks,

        forward of batch n at stage k    n + sum(p[:k])
        backward of batch n at stage k   n + sum(p[:k]) + m[k],   m[k] = sum(p[k:]) + sum(q[k:])

    which is DSP's queue arithmetic q[k] = m[k] - p[k] - m[k+1] (DSP, appendix A, which numbers q one higher).

    Where stages learn from synthetic gradients, the stage above computes a gradient in its forward, so that
    m[k] = p[k] + q[k]; where they learn greedily, nothing comes down, and q is 0.

    Attributes:
      p: activation delays, K - 1 integers >= 0.
      q: gradient delays, K - 1 integers >= 0.
      order: within a tick, all forwards before all backwards, or the other way round.
      learning: what the stages below the last learn from.
    """

    p: tuple[int, ...]
    q: tuple[int, ...]
    order: Order = "forward_first"
    learning: Learning = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        edges = self.num_stages - 1
        for name, what in (("p", "activations k -> k+1"), ("q", "gradients k+1 -> k")):
            delays = tuple(map(as_integer, getattr(self, name)))
            object.__setattr__(self, name, delays)
            if len(delays) != edges:
                raise ScheduleError(
                    f"{name} = {delays} has {len(delays)} delays, but {self.num_stages} stages have {edges} edges; "
                    f"write one delay for the {what} of each edge"
                )
            if any(not isinstance(delay, int) or delay < 0 for delay in delays):
                raise ScheduleError(f"{name} = {delays} must hold integers of at least 0 (ticks)")
        if self.order not in get_args(Order):
            raise ScheduleError(f"order is {self.order!r}; write one of {', '.join(get_args(Order))}")
        self._check_learning()
        if self.order == "backward_first" and edges and self.q[-1] == 0:
            raise ScheduleError(
                f"q = {self.q} with order backward_first: stage {edges - 1} would need the gradient of a batch in the "
                "tick in which the last stage computes it, but before it does; "
                "write a last gradient delay of at least 1, or order='forward_first'"
            )

    def _check_learning(self) -> None:
        if self.learning not in get_args(Learning):
            raise ScheduleError(f"learning is {self.learning!r}; write one of {', '.join(get_args(Learning))}")
        if self.is_local and self.order != "forward_first":
            raise ScheduleError(
                f"order is {self.order}, but where learning is {self.learning} a forward contains its backward; write "
                "forward_first"
            )
        if self.learning == "greedy" and any(self.q):
            raise ScheduleError(f"q = {self.q}, but greedy stages are sent no gradients; write {(0,) * len(self.q)}")
        if self.learning == "synthetic" and self.weights == "latest":
            raise ScheduleError(
                "weights is 'latest', but the gradient predictors' activations are not stored; write stash, remat or "
                "replay"
            )

    @functools.cached_property
    def lag(self) -> tuple[int, ...]:
        """m: ticks between a batch's forward and its backward, for each stage; 0 where there is none."""
        if self.is_local:
            edges = enumerate(zip(self.p, self.q, strict=True))
            return *(p + q if self.has_backward(k) else 0 for k, (p, q) in edges), 0
        return tuple(sum(self.p[k:]) + sum(self.q[k:]) for k in range(self.num_stages))

    @functools.cached_property
    def drain(self) -> int:
        return max(map(operator.add, self._entered, self.lag))

    def phase(self, tick: int) -> int:
        return min(tick, self.drain)  # after that, every stage has work

    @functools.cached_property
    def _entered(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate(self.p, initial=0))

    def ops(self, tick: int) -> tuple[Op, ...]:
        entered, lag = self._entered, self.lag
        # Ascending forwards and descending backwards let a delay of 0 be served within the tick.
        forwards = [Op(FORWARD, k, tick - entered[k]) for k in range(self.num_stages)]
        stages = filter(self.has_backward, reversed(range(self.num_stages)))
        backwards = [Op(BACKWARD, k, tick - entered[k] - lag[k]) for k in stages]
        both = backwards + forwards if self.order == "backward_first" else forwards + backwards
        return tuple(op for op in both if op.batch >= 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlushSchedule(Schedule):
    """Rounds of ``chunks`` micro-batches: all forwards, then all backwards, then nothing is in flight (GPipe).

    Attributes:
      chunks: micro-batches of a round. Training equals plain large-batch training when the optimizer accumulates
        over as many (``stagewise(..., accumulate=chunks)``).
    """

    chunks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "chunks", as_integer(self.chunks))
        if not isinstance(self.chunks, int) or self.chunks < 1:
            raise ScheduleError(f"chunks is {self.chunks!r}; write an integer of at least 1 (micro-batches of a round)")

    @property
    def drain(self) -> int:
        return self.chunks - 1

    def phase(self, tick: int) -> int:
        return tick % self.chunks

    def ops(self, tick: int) -> tuple[Op, ...]:
        if tick < 0:
            return ()
        ops = [Op(FORWARD, k, tick) for k in range(self.num_stages)]
        if (tick + 1) % self.chunks == 0:
            for batch in range(tick + 1 - self.chunks, tick + 1):
                ops += [Op(BACKWARD, k, batch) for k in reversed(range(self.num_stages - 1))]
        return tuple(ops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSchedule(Schedule):
    """A user's own schedule: the operations of ticks 0, 1, ..., of which the last ``period`` ticks repeat.

    Attributes:
      table: for each tick its operations. Tick ``t`` beyond the table repeats tick ``t - period`` with every batch
        ``period`` higher.
      period: ticks of the repeating part; at most ``len(table)``.
    """

    table: tuple[tuple[Op, ...], ...]
    period: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table:
            raise ScheduleError("the table is empty; write the operations of at least one tick")
        object.__setattr__(self, "table", as_ops(self.table))
        if not 1 <= self.period <= len(self.table):
            raise ScheduleError(
                f"period is {self.period}, but the table has {len(self.table)} ticks; "
                "write how many of its last ticks repeat"
            )

    @functools.cached_property
    def splits_backward(self) -> bool:
        return any(op.kind is WEIGHT for ops in self.table for op in ops)

    @property
    def repeats(self) -> int:
        return max(self.drain + 1, len(self.table))

    def phase(self, tick: int) -> int:
        return tick - self._rounds(tick) * self.period

    @property
    def drain(self) -> int:
        waits = (tick - op.batch for tick, ops in enumerate(self.table) for op in ops)
        return max(itertools.chain(waits, (0,)))

    def ops(self, tick: int) -> tuple[Op, ...]:
        shift = self._rounds(tick) * self.period
        if tick < 0:
            return ()
        return tuple(op._replace(batch=op.batch + shift) for op in self.table[tick - shift])

    def _rounds(self, tick: int) -> int:
        """How often the table has been repeated before it has the operations of ``tick``."""
        return max(0, -(-(tick + 1 - len(self.table)) // self.period))


def draw(schedule: Schedule, num_batches: int) -> str:
    """A table of the run over ``num_batches`` batches: one row per stage, one column per tick, ``B0 F4`` as dispatched.

    The last stage's ``F`` contains its loss, backward and update; where there is a ``W``, that updates.
    """
    columns = [["tick", *(f"stage {k}" for k in range(schedule.num_stages))]]
    for tick, ops in schedule.run(num_batches):
        cells = [" ".join(_label(op) for op in ops if op.stage == k) for k in range(schedule.num_stages)]
        columns.append([str(tick), *cells])
    return "\n".join(_justify(row, columns) for row in zip(*columns, strict=True))


def _boxes(schedule: Schedule) -> Iterator[Box]:
    """The operations of the first ticks; those of one tick and stage side by side, in order of dispatch."""
    for tick in range(_SHOWN_TICKS):
        ops = schedule.ops(tick)
        for stage in range(schedule.num_stages):
            mine = [op for op in ops if op.stage == stage]
            for place, op in enumerate(mine):
                start, look = tick + place / len(mine), schedule.look(op.kind, stage)
                yield Box(stage, start, start + 1 / len(mine), look, f"{look} {op.batch}")


def _label(op: Op) -> str:
    return f"{op.kind.value}{op.batch}"


def _justify(row: Iterable[str], columns: list[list[str]]) -> str:
    return "  ".join(cell.ljust(max(map(len, column))) for cell, column in zip(row, columns, strict=True)).rstrip()
