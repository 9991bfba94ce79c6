"""Operation times: how long a pipeline's operations take, each alone on its device, and what follows for its speed.

The compiled functions of the pipeline itself are run over and over, on arguments as they occur in training: what is
joined in the steady state is run joined, and what may be donated is. A loop of many dispatches is timed rather than
one, so that the host's part in a dispatch hides behind the device's work as it does in training; it is measured apart.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from jaxdecouple import Pipeline
from jaxdecouple.engine.inner_program import InnerProgram
from jaxdecouple.engine.local_program import LocalProgram
from jaxdecouple.engine.loss_program import LossProgram
from jaxdecouple.engine.state import StageState
from jaxdecouple.planning import Timeline, Times, timeline
from jaxdecouple.planning.timelines import period_of
from jaxdecouple.schedules import Learning, Schedule, Weights, join, redoes_forward

RUN_AHEAD = 2  # dispatches in flight while a loop is timed: enough to keep a device busy
LEAST_RUNS = 3  # of what is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One measurement of all operations, in seconds.

    Attributes:
      forward: of the stages below the last, alone; where stages learn locally, that includes learning.
      batch: of all stages, alone: all that one batch takes, which at the last stage is one operation.
      up, down: an activation's transfer k -> k+1, a gradient's transfer k+1 -> k.
      together: for 2, 3, ... busy devices, and each of these, the seconds of one stage's ``batch``.
    """

    forward: list[float]
    batch: list[float]
    up: list[float]
    down: list[float]
    together: list[dict[int, float]]

    @property
    def slowdown(self) -> list[float]:
        """How many times longer operations take while 1, 2, ... devices are busy: the mean over the stages."""
        return [1.0, *(statistics.fmean(s / self.batch[k] for k, s in busy.items()) for busy in self.together)]


class OperationMeter:
    """Measures the operations of a pipeline whose functions have been compiled for such batches."""

    def __init__(self, pipeline: Pipeline, key: jax.Array, batch: tuple[Any, Any], *, group: int = 1):
        """Collects real arguments: those of one batch that goes all the way up and down.

        Args:
          pipeline: to be measured; nothing of it changes.
          key: for its initial state.
          batch: inputs and targets.
          group: batches to an update.
        """
        self._pipeline, self._group = pipeline, group
        placement, state = pipeline.placement, pipeline.init(key, batch[0])
        joined = joined_stages(pipeline.schedule)
        *inner, last = pipeline.programs
        x, self._loops, self._up, self._down = placement.put(batch[0], 0), [], [], []
        for k, program in enumerate(inner):
            if isinstance(program, LocalProgram):
                loop = _LocalLoop(program, state.stages[k], x, pipeline.weights, placement.put(batch[1], k))
            else:
                loop = _StageLoop(program, state.stages[k], x, pipeline.weights, joined=k in joined)
            self._loops.append(loop)
            self._up.append(loop.forward())
            x = placement.send(self._up[-1], k, k + 1)
        sends = bool(inner) and pipeline.schedule.has_backward(len(inner) - 1)
        self._loops.append(_LossLoop(last, state.stages[-1], x, placement.put(batch[1], len(inner)), sends))
        for k in range(len(inner), 0, -1):
            self._loops[k].batch()
            self._down.insert(0, self._loops[k].sent)
            self._loops[k - 1].gradient = placement.send(self._down[0], k, k - 1)

    def round(self, seconds: float) -> Round:
        """Measures everything once; each operation for about ``seconds``."""
        forward, batch = [], []
        for loop in self._loops:
            count = self._runs(loop.seconds(loop.batch, self._group), seconds)
            if isinstance(loop, _StageLoop | _LocalLoop):
                forward.append(loop.seconds(loop.forward, count))
            batch.append(loop.seconds(loop.batch, count))
        send = self._pipeline.placement.send
        return Round(
            forward=forward,
            batch=batch,
            up=[_transfer(send, y, k, k + 1) for k, y in enumerate(self._up)],
            down=[_transfer(send, y, k + 1, k) for k, y in enumerate(self._down)],
            together=self._busy_together(batch, seconds),
        )

    def _busy_together(self, alone: Sequence[float], seconds: float) -> list[dict[int, float]]:
        devices = self._pipeline.placement.devices
        if devices[0].platform != "cpu":  # accelerators do not disturb one another
            return []
        stages = [devices.index(device) for device in dict.fromkeys(devices)]  # one on each device
        return [
            _together(
                {k: self._loops[k] for k in stages[:busy]},
                {k: self._runs(alone[k], seconds) for k in stages[:busy]},
            )
            for busy in range(2, len(stages) + 1)
        ]

    def _runs(self, each: float, seconds: float) -> int:
        """How many runs take about ``seconds``; whole groups, so that each batch's share of updates is right."""
        return -(-max(LEAST_RUNS, round(seconds / max(each, 1e-9))) // self._group) * self._group


class _Loop:
    """Runs one stage's work for a batch, over and over; ``sent`` is the last gradient for the stage below."""

    def __init__(self, program: InnerProgram | LocalProgram | LossProgram, state: StageState, x: Any):
        self.program, self.state, self.x, self.sent = program, state, x, None
        self.n = 0

    def seconds(self, dispatch: Callable[[], Any], count: int) -> float:
        """Of one of ``count`` runs, one after the other."""
        start = time.perf_counter()
        in_flight: collections.deque[Any] = collections.deque()
        for _ in range(count):
            in_flight.append(dispatch())
            if len(in_flight) > RUN_AHEAD:
                jax.block_until_ready(in_flight.popleft())
        jax.block_until_ready((self.state, in_flight))
        return (time.perf_counter() - start) / count


class _StageLoop(_Loop):
    def __init__(self, program: InnerProgram, state: StageState, x: Any, weights: Weights, *, joined: bool):
        super().__init__(program, state, x)
        self._weights: Weights = weights
        self.gradient: Any = None
        self._joined, self._residual = joined, None

    def forward(self) -> Any:
        passed = self.program.forward(self.state, self.x, self.n, self._weights)
        self.state = passed.state
        return passed.outcome.y

    def batch(self) -> Any:
        if not self._joined:
            forward = self.program.forward(self.state, self.x, self.n, self._weights)
            passed = self.program.backward(forward.state, forward.residual, self.gradient, self.n, self._weights)
            y = forward.outcome.y
        else:
            if self._residual is None:
                first = self.program.forward(self.state, self.x, self.n, self._weights)
                self.state, self._residual = first.state, first.residual
            passed = self.program.backward_forward(
                self.state, self._residual, self.gradient, self.n, self.x, self.n + 1, self._weights
            )
            y, self._residual = passed.outcome.y, passed.residual
        self.sent, self.state = passed.outcome.sent, passed.state
        self.n += 1
        return y


class _LocalLoop(_Loop):
    def __init__(self, program: LocalProgram, state: StageState, x: Any, weights: Weights, targets: Any):
        super().__init__(program, state, x)
        self._weights: Weights = weights
        self.gradient: Any = None
        self._targets, self._residual = targets, None

    def forward(self) -> Any:
        passed = self.program.learn(self.state, self.x, self._targets, self.n, self._weights)
        self.state, self.sent, self._residual = passed.state, passed.outcome.sent, passed.residual
        self.n += 1
        return passed.outcome.y

    def batch(self) -> Any:
        y = self.forward()
        if self._residual is not None:
            self.state = self.program.teach(self.state, self._residual, self.gradient, self.n - 1, self._weights).state
        return y


class _LossLoop(_Loop):
    def __init__(self, program: LossProgram, state: StageState, x: Any, targets: Any, sends: bool):
        super().__init__(program, state, x)
        self._targets, self._sends = targets, sends

    def batch(self) -> Any:
        passed = self.program.train(self.state, self.x, self._targets, self.n, self._sends)
        self.sent, self.state = passed.outcome.sent, passed.state
        self.n += 1
        return passed.outcome.loss


def joined_stages(schedule: Schedule) -> set[int]:
    """Stages whose backward is joined with a forward in the steady state."""
    start = schedule.repeats
    ticks = range(start, start + period_of(schedule))
    dispatches = itertools.chain.from_iterable(join(schedule.window(tick, 0, tick + 1)) for tick in ticks)
    return {ops[0].stage for ops in dispatches if len(ops) == 2}


def dispatches_per_tick(schedule: Schedule) -> float:
    """In the steady state."""
    start, period = schedule.repeats, period_of(schedule)
    return sum(len(join(schedule.window(tick, 0, tick + 1))) for tick in range(start, start + period)) / period


def host_times(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batches: Iterable[Any]
) -> tuple[list[tuple[float, float]], Any]:
    """For each batch, the seconds that the host spends in ``step``, and those of them on a processor; and the state.

    All devices are idle when a step begins, so nothing in it waits for them. What is left is checking the batch,
    dispatching, and on CPU devices the competition with the work that was just dispatched: it runs on the host's cores.

    Args:
      step: ``Pipeline.step``, compiled.
      state: filled; used up.
      batches: as many as are to be measured.
    """
    seconds = []
    for batch in batches:
        jax.block_until_ready(state)
        start, worked = time.perf_counter(), time.thread_time()
        state, _ = step(state, batch)
        seconds.append((time.perf_counter() - start, time.thread_time() - worked))
    return seconds, jax.block_until_ready(state)


def as_times(
    rounds: Sequence[Round], weights: Weights, joined: set[int], host: float, learning: Learning = "gradient"
) -> Times:
    """What the timeline needs: medians over the rounds.

    Args:
      rounds: measurements.
      weights: the policy they were made under.
      joined: stages whose ``batch`` is one dispatch, from `joined_stages`.
      host: seconds of one dispatch.
      learning: what the stages below the last learn from.
    """

    def median(name: str) -> list[float]:
        return [statistics.median(values) for values in zip(*(getattr(r, name) for r in rounds), strict=True)]

    forward, batch, slowdown = median("forward"), median("batch"), median("slowdown")
    redone = 1 if redoes_forward(weights) else 0  # `Times` adds it again
    local = learning != "gradient"  # then the first part of a batch is learning, the rest teaching
    rest = [max(0.0, whole - (1 + (0 if local else redone)) * f) for f, whole in zip(forward, batch, strict=False)]
    return Times(
        forward=[*forward, batch[-1]],
        backward=[*([0.0] * len(rest) if local else rest), 0.0],
        teach=rest if local else None,
        up=median("up"),
        down=median("down"),
        joined=batch[:-1] if joined else None,
        host=host,
        slowdown=slowdown if len(slowdown) > 1 else (),
    )


def predict(pipeline: Pipeline, times: Times) -> Timeline:
    """The run that these times lead to, on the devices of the pipeline."""
    devices = pipeline.placement.devices
    places = {device: index for index, device in enumerate(dict.fromkeys(devices))}
    return timeline(
        pipeline.schedule, times, devices=[places[device] for device in devices], run_ahead=pipeline.run_ahead
    )


def _transfer(send: Callable[[Any, int, int], Any], tree: Any, source: int, target: int, count: int = 10) -> float:
    jax.block_until_ready(send(tree, source, target))
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(send(tree, source, target))
    return (time.perf_counter() - start) / count


def _together(loops: dict[int, _Loop], counts: dict[int, int]) -> dict[int, float]:
    """Seconds of one ``batch`` of each loop while all of them run, each dispatched by a thread of its own."""
    begin, finished = threading.Barrier(len(loops)), []

    def run(k: int) -> float:
        try:
            begin.wait()
            seconds = loops[k].seconds(loops[k].batch, counts[k])
        finally:
            finished.append(k)
        while len(finished) < len(loops):  # the others are still being timed
            loops[k].seconds(loops[k].batch, 1)
        return seconds

    with ThreadPoolExecutor(len(loops)) as threads:
        return dict(zip(loops, threads.map(run, loops), strict=True))
