"""Probes: which ticks and batches are looked at, and what is made of what is seen."""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterator

import jax
import numpy as np

from jaxdecouple.diagnostics.records import DirectionRecord, GradientRecord
from jaxdecouple.diagnostics.trees import compare, mean_of
from jaxdecouple.diagnostics.true_gradient import TrueGradient
from jaxdecouple.diagnostics.watching import Watcher
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import Metrics, State
from jaxdecouple.network.trees import PyTree, signature_of


class Diagnostics:
    """A pipeline's `step` and `flush`, with probes.

    Attributes:
      pipeline: the pipeline.
      every: ticks between two probes of a kind.
    """

    def __init__(self, pipeline: Pipeline, *, every: int = 10, direction_batches: int = 1):
        """Builds the probes; nothing is compiled before the first.

        Args:
          pipeline: to be watched. It can be used without diagnostics at any time.
          every: ticks between two probes of a kind. A probe costs about one more forward and backward. Batches of
            another shape than the first, as an epoch's last can be, are left out.
          direction_batches: over how many of the newest batches a direction probe takes the mean of the true gradient.
            One is noisy: the norm of its gradient is larger than that of the full one, and ``sigma`` smaller.

        Raises:
          ValueError: a number is below 1, or stages share parameters.
        """
        for name, value in (("every", every), ("direction_batches", direction_batches)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} is {value!r}; write an integer of at least 1")
        if pipeline.ties:
            raise ValueError(
                f"stages share {pipeline.ties[0].name!r}, and probes compute true gradients stage by stage; probe a "
                "pipeline whose shared layers are in one stage"
            )
        self.pipeline, self.every = pipeline, int(every)
        self._true_gradient = TrueGradient(pipeline)
        self._recent: collections.deque[tuple[int, tuple[PyTree, PyTree]]] = collections.deque(
            maxlen=int(direction_batches)
        )
        self._usual: Hashable
        self._records: collections.deque[Callable[[], GradientRecord | DirectionRecord]] = collections.deque()
        self.reset()

    def reset(self, usual: tuple[PyTree, PyTree] | None = None) -> None:
        """Forgets all that was seen, before another run of the same pipeline; what is compiled stays.

        Args:
          usual: shapes of the batches to look at; by default, those of the next.
        """
        self._watcher = Watcher(len(self.pipeline.stages))
        self._recent.clear()
        self._records.clear()
        self._usual = None if usual is None else signature_of(usual)

    def at_rest(self, state: State) -> bool:
        """Whether probes begun anew at this state would find the same: no batch is being followed, or left out."""
        watching, oldest = self._watcher, int(state.tick) - self.pipeline.schedule.drain
        return not watching.following and self._recent.maxlen == 1 and all(n < oldest for n in watching.ignored)

    def step(self, state: State, batch: tuple[PyTree, PyTree]) -> tuple[State, Metrics]:
        """As `Pipeline.step`; waits for nothing either."""
        tick, watching = int(state.tick), self._watcher
        if self._is_usual(batch):
            self._recent.append((tick, batch))
        else:
            watching.ignored.add(tick)
        directing = tick % self.every == self.every // 2 and len(self._recent) > 0
        following = tick % self.every == 0 and tick not in watching.ignored
        true = self._mean_gradient(state) if directing else None
        watching.begin_tick(tick, batch if following else None, directing)
        state, metrics = self.pipeline.step(state, batch, observer=watching)
        if true is not None:
            self._records.append(_direction(tick, true, dict(watching.consumed), state))
        self._finish(state)
        return state, metrics

    def flush(self, state: State, on_tick: Callable[[State, Metrics], None] | None = None) -> State:
        """As `Pipeline.flush`; batches that are followed are followed to their end."""
        ticks = iter(range(int(state.tick), int(state.tick) + self.pipeline.schedule.drain + 1))
        self._watcher.begin_tick(next(ticks), None, False)

        def after(state: State, metrics: Metrics) -> None:
            self._finish(state)
            self._watcher.begin_tick(next(ticks), None, False)
            if on_tick is not None:
                on_tick(state, metrics)

        state = self.pipeline.flush(state, after, observer=self._watcher)
        self._finish(state, flushed=True)
        return state

    def records(self) -> Iterator[GradientRecord | DirectionRecord]:
        """What has been found since the last call, oldest first. Reading waits for the devices."""
        while self._records:
            yield self._records.popleft()()

    def _is_usual(self, batch: tuple[PyTree, PyTree]) -> bool:
        """Whether a batch has the shape of the first. An epoch's last would need compilations of its own."""
        signature = signature_of(batch)
        self._usual = self._usual or signature
        return signature == self._usual

    def _mean_gradient(self, state: State) -> list[PyTree]:
        params = [stage.packed_params for stage in state.stages]
        found = [self._true_gradient(params, state, *batch, n) for n, batch in self._recent]
        return found[0] if len(found) == 1 else [mean_of(list(parts)) for parts in zip(*found, strict=True)]

    def _finish(self, state: State, flushed: bool = False) -> None:
        for followed in self._watcher.finished(flushed):
            true = self._true_gradient(followed.params, state, *followed.data, followed.batch)
            found = [compare(*pair) for pair in zip(true, followed.grads, strict=True)]
            self._records.append(followed.reader(found))


def _direction(
    tick: int, true: list[PyTree], consumed: dict[int, PyTree], state: State
) -> Callable[[], DirectionRecord]:
    found = {k: compare(true[k], grads) for k, grads in consumed.items()}
    size = [_bytes(flight) for flight in state.in_flight]

    def read() -> DirectionRecord:
        values = {k: np.array(jax.device_get(scalars), np.float64) for k, scalars in found.items()}
        products = {k: value[3] for k, value in values.items()}
        squares = {k: value[1] ** 2 for k, value in values.items()}
        stages = range(len(size))
        sigma = [float(products[k] / squares[k]) if k in found and squares[k] else None for k in stages]
        whole = None if None in sigma else float(sum(products.values()) / sum(squares.values()))
        return DirectionRecord(tick=tick, sigma=sigma, sigma_all=whole, bytes_in_flight=size)

    return read


def _bytes(tree: PyTree) -> int:
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())
