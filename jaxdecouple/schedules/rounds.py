"""A round schedule gives each device an order of operations for a round of M micro-batches, after which all is flushed.

Synchronous pipelines are such: the optimizer accumulates over the round, so that training equals plain training with
large batches. They differ in the order, and so in how long devices wait for one another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from jaxdecouple.schedules.operations import as_ops
from jaxdecouple.schedules.schedule import (
    BACKWARD,
    FORWARD,
    WEIGHT,
    Op,
    Schedule,
    ScheduleError,
    Weights,
    as_integer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSchedule(Schedule):
    """Rounds of ``chunks`` micro-batches in given orders.

    A tick dispatches what the next loss has to wait for: the loss, and all that comes before it in the devices' orders.
    So there is one loss in a tick, at most. What remains after a round's last loss goes with it.

    Attributes:
      chunks: M, micro-batches of a round. Training equals plain large-batch training when the optimizer accumulates
        over as many (``stagewise(..., accumulate=chunks)``).
      orders: of each device, its operations of a round, of batches 0..M-1.
    """

    chunks: int
    orders: tuple[tuple[Op, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "chunks", as_integer(self.chunks))
        if not isinstance(self.chunks, int) or self.chunks < 1:
            raise ScheduleError(f"chunks is {self.chunks!r}; write an integer of at least 1 (micro-batches of a round)")
        object.__setattr__(self, "orders", as_ops(self.orders))
        self._segments  # noqa: B018  # refuses orders that wait for one another

    @functools.cached_property
    def splits_backward(self) -> bool:
        return any(op.kind is WEIGHT for order in self.orders for op in order)

    @functools.cached_property
    def devices(self) -> tuple[int, ...]:
        """The device of each stage, as `timeline` takes them; for a pipeline, ``[jax.devices()[d] for d in ...]``."""
        of = {op.stage: device for device, order in enumerate(self.orders) for op in order}
        return tuple(of[stage] for stage in range(self.num_stages))

    @property
    def drain(self) -> int:
        return self.chunks - 1 + self._lead

    @property
    def repeats(self) -> int:
        return self.chunks + self.drain

    def phase(self, tick: int) -> int:
        return tick % self.chunks

    def ops(self, tick: int) -> tuple[Op, ...]:
        loss = tick - self._lead  # the batch whose loss ends the tick
        first = loss - loss % self.chunks  # of its round
        segment = self._segments[loss - first]
        return tuple(op._replace(batch=op.batch + first) for op in segment if op.batch + first >= 0)

    @functools.cached_property
    def _lead(self) -> int:
        """Ticks that a loss comes after the feeding of its batch, until the batches before it in orders are there."""
        return max(max(op.batch for op in ops[: self._until_loss(n)]) - n for n, ops in enumerate(self._segments))

    def _until_loss(self, n: int) -> int:
        return 1 + self._segments[n].index(Op(FORWARD, self.loss_stage, n))

    @functools.cached_property
    def _segments(self) -> tuple[tuple[Op, ...], ...]:
        """The operations of a round, cut after each loss."""
        queues = [list(reversed(order)) for order in self.orders]
        device = {op: index for index, order in enumerate(self.orders) for op in order}
        done: set[Op] = set()
        segments: list[list[Op]] = []

        def run(op: Op, waiting: tuple[Op, ...] = ()) -> None:
            """Does ``op``, and before it all that it has to wait for."""
            if op in waiting or op not in device:
                missing = "is in no order" if op not in device else "waits for itself"
                raise ScheduleError(f"schedule {self.name!r}: the {op} {missing}; write orders that can be executed")
            while op not in done:
                following = queues[device[op]][-1]
                for source in self._sources(following):
                    if source not in done:
                        run(source, (*waiting, op))
                if following in done:
                    continue
                queues[device[op]].pop()
                done.add(following)
                segments[-1].append(following)

        for n in range(self.chunks):
            segments.append([])
            run(Op(FORWARD, self.loss_stage, n))
        for op in _merged(self.orders):
            run(op)
        return tuple(map(tuple, segments))

    def _sources(self, op: Op) -> Iterable[Op]:
        """The operations whose results ``op`` needs."""
        if op.kind is WEIGHT:
            return (op._replace(kind=self.kinds(op.stage)[-2]),)
        if op.kind is BACKWARD:
            return (Op(FORWARD, op.stage, op.batch), self.gradient_source(op.stage, op.batch))
        return (Op(FORWARD, op.stage - 1, op.batch),) if op.stage else ()


def one_forward_one_backward(num_stages: int, chunks: int, *, weights: Weights = "latest") -> RoundSchedule:
    """1F1B with a flush (Narayanan et al. 2021, "PipeDream-Flush"; Fan et al. 2021, DAPPLE).

    Stage k forwards K-1-k micro-batches, then one forward and one backward in turn, then the backwards that are left:
    GPipe's bubble, (K-1)/(M+K-1) of the time, with K-k micro-batches in flight at stage k in place of M.

    Args:
      num_stages: K.
      chunks: M, micro-batches of a round; give the optimizer ``accumulate=chunks``.
      weights: within a round all versions are one; ``replay`` or ``remat`` store inputs alone.
    """
    return interleaved(num_stages, chunks, loops=1, weights=weights, name="1f1b")


def interleaved(
    num_devices: int, chunks: int, *, loops: int, weights: Weights = "latest", name: str = "interleaved"
) -> RoundSchedule:
    """Interleaved 1F1B (Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters").

    The network is cut into v D stages, and device d has the stages d, D + d, 2 D + d, ...: its bubble is a v-th of
    1F1B's, for v times as many transfers. Micro-batches go through a device in groups of D: all of a group through one
    of its stages, then through the next. Place the stages: ``devices=[jax.devices()[d] for d in schedule.devices]``.

    Args:
      num_devices: D.
      chunks: M, micro-batches of a round; with several loops, a multiple of D.
      loops: v, stages of a device.
      weights: as of `one_forward_one_backward`.
      name: how results name the method.

    Raises:
      ScheduleError: a number is no integer of at least 1, or M is no multiple of D.
    """
    numbers = {"num_devices": num_devices, "chunks": chunks, "loops": loops}
    for what, number in numbers.items():
        if not isinstance(as_integer(number), int) or number < 1:
            raise ScheduleError(f"{what} is {number!r}; write an integer of at least 1")
    if loops > 1 and chunks % num_devices:
        near = max(num_devices, chunks - chunks % num_devices)
        raise ScheduleError(
            f"chunks is {chunks}, but {num_devices} devices with several stages each take micro-batches in groups of "
            f"{num_devices}; write {near} or {near + num_devices}"
        )
    orders = [_interleaved_order(device, num_devices, chunks, loops) for device in range(num_devices)]
    return RoundSchedule(
        name=name, num_stages=num_devices * loops, chunks=chunks, orders=tuple(orders), weights=weights
    )


def zero_bubble(num_stages: int, chunks: int, *, weights: Weights = "latest") -> RoundSchedule:
    """ZB-H1 (Qi et al. 2024, "Zero bubble pipeline parallelism", section 2.1), in the memory of 1F1B.

    A backward (B) finds the gradient of a stage's input, for which the stage below waits. The gradient of its weights
    (W, ``WEIGHT``) can wait. The order is 1F1B's, and at stage k the W of a micro-batch comes after the B of the k-th
    after it. So every stage has at most K micro-batches in flight, as 1F1B's first stage has.

    In a round each device is idle for (K-1) (T_F + T_B - T_W), where 1F1B's is for (K-1) (T_F + T_B + T_W): a third, if
    the three take equally long. That is for M >= K and T_W <= T_F; a longer W leaves (K-1) T_B.

    Args:
      num_stages: K.
      chunks: M, micro-batches of a round; give the optimizer ``accumulate=chunks``.
      weights: as of `one_forward_one_backward`.

    Raises:
      ScheduleError: a number is no integer of at least 1.
    """
    plain = one_forward_one_backward(num_stages, chunks, weights=weights)
    orders = [_with_weights(order, stage) for stage, order in enumerate(plain.orders)]
    return dataclasses.replace(plain, name="zero_bubble", orders=tuple(orders))


def _with_weights(order: Sequence[Op], stage: int) -> Iterable[Op]:
    """``order`` with each batch's ``WEIGHT``, after the operation that ends the backward ``stage`` batches later."""
    ends = order[-1].kind  # BACKWARD, or at the last stage FORWARD, which includes it
    for op in order:
        yield op
        if op.kind is ends and op.batch >= stage:
            yield Op(WEIGHT, op.stage, op.batch - stage)
    yield from (Op(WEIGHT, stage, n) for n in range(max(0, op.batch + 1 - stage), op.batch + 1))


def _interleaved_order(device: int, num_devices: int, chunks: int, loops: int) -> tuple[Op, ...]:
    """Warm-up forwards, one forward and one backward in turn, the backwards that are left."""
    last = num_devices * loops - 1

    def stage_and_batch(index: int, backward: bool) -> tuple[int, int]:
        group, place = divmod(index, num_devices * loops)
        loop, batch = divmod(place, num_devices)
        loop = loops - 1 - loop if backward else loop
        return loop * num_devices + device, group * num_devices + batch

    total = chunks * loops
    later = num_devices - 1 - device
    warmup = later if loops == 1 else 2 * later + (loops - 1) * num_devices
    forwards = [Op(FORWARD, *stage_and_batch(index, False)) for index in range(total)]
    backwards = [Op(BACKWARD, *stage_and_batch(index, True)) for index in range(total)]
    order = forwards[:warmup]
    for index in range(total):
        order += forwards[warmup + index : warmup + index + 1]
        order.append(backwards[index])
    return tuple(op for op in order if not (op.kind is BACKWARD and op.stage == last))  # its FORWARD includes it


def _merged(orders: Sequence[Sequence[Op]]) -> Iterable[Op]:
    """By place in the orders."""
    for index in range(max(map(len, orders))):
        for order in orders:
            yield from order[index : index + 1]
