"""Probes: which ticks and batches are looked at, and what is made of what is seen."""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator

import jax
import numpy as np

from jaxdecouple.diagnostics.comparisons import Reference, Sigma, compare, distance, products_of, reference_of, sigma_of
from jaxdecouple.diagnostics.records import DirectionRecord, GradientRecord
from jaxdecouple.diagnostics.true_gradient import TrueGradient
from jaxdecouple.diagnostics.watching import Followed, Watcher
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import Metrics, State
from jaxdecouple.network.trees import PyTree, signature_of


class Diagnostics:
    """A pipeline's `step` and `flush`, with probes.

    Attributes:
      pipeline: the pipeline.
      every: ticks between two probes of a kind.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        every: int = 10,
        reference: Callable[[], Iterable[tuple[PyTree, PyTree]]] | None = None,
        secants: bool = False,
    ):
        """Builds the probes; nothing is compiled before the first.

        Args:
          pipeline: to be watched. It can be used without diagnostics at any time.
          every: ticks between two probes of a kind. A probe costs about one more forward and backward. Batches of
            another shape than the first, as an epoch's last can be, are left out.
          reference: gives the batches, of one size, over which a direction probe takes the true gradient; best the
            training set, or 50 batches of it. By default it takes the batch that is being fed. That costs little and
            says little: the gradient of one batch is mostly noise, so ``sigma`` is too small, but for the last stage,
            which learns from this very batch: there it is 1.
          secants: whether gradient probes also find how much the true gradient has changed with the weights, which
            costs another forward and backward, for `bounds.least_lipschitz`.

        Raises:
          ValueError: ``every`` is below 1, or stages share parameters.
        """
        if not isinstance(every, int | np.integer) or every < 1:
            raise ValueError(f"every is {every!r}; write an integer of at least 1")
        if pipeline.ties:
            raise ValueError(
                f"stages share {pipeline.ties[0].name!r}, and probes compute true gradients stage by stage; probe a "
                "pipeline whose shared layers are in one stage"
            )
        self.pipeline, self.every = pipeline, int(every)
        self._true_gradient, self._reference, self._secants = TrueGradient(pipeline), reference, secants
        self._usual: Hashable
        self._records: collections.deque[Callable[[], GradientRecord | DirectionRecord]] = collections.deque()
        self.reset()

    def reset(self, usual: tuple[PyTree, PyTree] | None = None) -> None:
        """Forgets all that was seen, before another run of the same pipeline; what is compiled stays.

        Args:
          usual: shapes of the batches to look at; by default, those of the next.
        """
        self._watcher = Watcher(len(self.pipeline.stages))
        self._records.clear()
        self._usual = None if usual is None else signature_of(usual)

    def at_rest(self, state: State) -> bool:
        """Whether probes begun anew at this state would find the same: no batch is being followed, or left out."""
        watching, oldest = self._watcher, int(state.tick) - self.pipeline.schedule.drain
        return not watching.following and all(n < oldest for n in watching.ignored)

    def step(self, state: State, batch: tuple[PyTree, PyTree]) -> tuple[State, Metrics]:
        """As `Pipeline.step`; waits for nothing either."""
        tick, watching = int(state.tick), self._watcher
        if not self._is_usual(batch):
            watching.ignored.add(tick)
        usual = tick not in watching.ignored
        directing = tick % self.every == self.every // 2 and (usual or self._reference is not None)
        following = tick % self.every == 0 and usual
        reference = self._find_reference(state, batch) if directing else None
        watching.begin_tick(tick, batch if following else None, directing)
        state, metrics = self.pipeline.step(state, batch, observer=watching)
        if reference is not None:
            self._records.append(_direction(tick, reference, dict(watching.consumed), state))
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

    def _find_reference(self, state: State, batch: tuple[PyTree, PyTree]) -> Reference:
        """The gradient of the loss at today's weights."""
        params = [stage.packed_params for stage in state.stages]
        if self._reference is None:
            return Reference([1], [self._true_gradient(params, state, *batch, int(state.tick))])
        return reference_of(lambda batch, index: self._true_gradient(params, state, *batch, index), self._reference())

    def _finish(self, state: State, flushed: bool = False) -> None:
        for followed in self._watcher.finished(flushed):
            true = self._true_gradient(followed.params, state, *followed.data, followed.batch)
            found = [compare(*pair) for pair in zip(true, followed.grads, strict=True)]
            changes = self._changes(state, followed, true) if self._secants else None
            self._records.append(followed.reader(found, changes))

    def _changes(self, state: State, followed: Followed, true: list[PyTree]) -> list[tuple[jax.Array, ...]]:
        """For each stage, how far the true gradient and the weights have moved since the batch's forward."""
        params = [stage.packed_params for stage in state.stages]
        now = self._true_gradient(params, state, *followed.data, followed.batch)
        moved = zip(now, true, params, followed.params, strict=True)
        return [(distance(new, old)[0], distance(w, before)[0]) for new, old, w, before in moved]


def _direction(
    tick: int, reference: Reference, consumed: dict[int, PyTree], state: State
) -> Callable[[], DirectionRecord]:
    found = {k: products_of([group[k] for group in reference.sums], grads) for k, grads in consumed.items()}
    size, counts = [_bytes(flight) for flight in state.in_flight], reference.counts

    def read() -> DirectionRecord:
        products = {k: np.array(jax.device_get(values), np.float64) for k, values in found.items()}
        own = [sigma_of(products[k], counts) if k in products else Sigma(None, None) for k in range(len(size))]
        known = all(sigma.value is not None for sigma in own)
        whole = sigma_of(np.sum(list(products.values()), axis=0), counts) if known else Sigma(None, None)
        return DirectionRecord(
            tick=tick,
            sigma=[sigma.value for sigma in own],
            sigma_error=[sigma.error for sigma in own],
            sigma_all=whole.value,
            sigma_all_error=whole.error,
            bytes_in_flight=size,
        )

    return read


def _bytes(tree: PyTree) -> int:
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())
