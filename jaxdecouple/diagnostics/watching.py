"""Watching: what happens to weights and gradients is noted down while operations are carried out as ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdecouple.diagnostics.comparisons import copied, distance
from jaxdecouple.diagnostics.records import GradientRecord
from jaxdecouple.engine.workspace import Observer, Operation, Workspace
from jaxdecouple.network.trees import PyTree


class Followed:
    """A batch under a gradient probe, from its feeding until all its gradients are known."""

    def __init__(self, batch: int, data: tuple[PyTree, PyTree], num_stages: int):
        self.batch, self.data = batch, data
        self.params: list[PyTree] = [None] * num_stages
        self.grads: list[PyTree] = [None] * num_stages
        self.gaps: list[Any] = [None] * num_stages
        self.forwarded: list[tuple[int, int]] = [(0, 0)] * num_stages  # (tick, updates made)
        self.computed = [-1] * num_stages  # tick
        self.staleness: list[int | None] = [None] * num_stages

    @property
    def computed_everywhere(self) -> bool:
        """Whether every stage has computed a gradient of it."""
        return all(tick >= 0 for tick in self.computed)

    @property
    def done(self) -> bool:
        """Whether, besides, every such gradient has gone into an update."""
        return self.computed_everywhere and None not in self.staleness

    def reader(
        self, found: list[tuple[jax.Array, ...]], changes: list[tuple[jax.Array, ...]] | None
    ) -> Callable[[], GradientRecord]:
        """What makes the record, once it is asked for.

        Args:
          found: for each stage, what `compare` says of the true gradient and the method's.
          changes: for each stage, distances of the true gradients and of the weights, then and now; if they are wanted.
        """
        batch, gaps, staleness = self.batch, self.gaps, self.staleness
        lag = [tick - begun for tick, (begun, _) in zip(self.computed, self.forwarded, strict=True)]
        tick = max(self.computed)

        def read() -> GradientRecord:
            norm, true_norm, difference, product, absolute = np.array(jax.device_get(found), np.float64).T
            return GradientRecord(
                batch=batch,
                tick=tick,
                lag=lag,
                staleness=list(staleness),
                weight_gap=[float(relative) for _, relative in gaps],
                distance=[float(absolute) for absolute, _ in gaps],
                norm=norm.tolist(),
                true_norm=true_norm.tolist(),
                difference=_ratio(difference, true_norm),
                mean_absolute=absolute.tolist(),
                cosine=_ratio(product, norm * true_norm),
                secant=None if changes is None else _secant(np.array(jax.device_get(changes), np.float64)),
            )

        return read


class Watcher(Observer):
    """Notes when weights change and what gradients are consumed.

    Attributes:
      consumed: by stage, the gradients of this tick, if they are wanted.
      ignored: batches whose gradients are never wanted.
    """

    def __init__(self, num_stages: int):
        self.consumed: dict[int, PyTree] = {}
        self.ignored: set[int] = set()
        self._tick, self._wants_all = 0, False
        self._followed: dict[int, Followed] = {}
        self._updates = [0] * num_stages
        self._group: list[list[Followed]] = [[] for _ in range(num_stages)]  # whose gradients no update has consumed

    def begin_tick(self, tick: int, followed: tuple[PyTree, PyTree] | None, wants_all: bool) -> None:
        """Follows the batch that is fed in this tick, if it is given; wants all gradients of the tick, or not."""
        self._tick, self._wants_all = tick, wants_all
        self.consumed = {}
        if followed is not None:
            self._followed[tick] = Followed(tick, followed, len(self._updates))

    @property
    def following(self) -> bool:
        """Whether any batch is being followed."""
        return bool(self._followed)

    def finished(self, flushed: bool = False) -> list[Followed]:
        """Batches all of whose gradients have gone into updates; they are not followed any longer.

        After a flush also those whose gradients wait in an accumulation group.
        """
        followed = self._followed.values()
        done = [batch for batch in followed if batch.done or (flushed and batch.computed_everywhere)]
        for followed in done:
            del self._followed[followed.batch]
        return done

    def wants(self, n: int) -> bool:
        return n in self._followed or (self._wants_all and n not in self.ignored)

    def before(self, work: Workspace, operation: Operation, k: int, n: int) -> None:
        followed = self._followed.get(n)
        if followed is None or operation in ("teach", "input_gradient"):
            return
        weights = work.stages[k].packed_params
        if operation not in ("backward", "weight_gradient"):
            followed.params[k] = copied(weights)  # the originals may be donated before the end
            followed.forwarded[k] = self._tick, self._updates[k]
        if operation not in ("forward", "forward_loss"):
            followed.gaps[k] = distance(weights, followed.params[k])
            self._group[k].append(followed)

    def after(self, operation: Operation, k: int, n: int, grads: PyTree, updated: bool) -> None:
        if grads is not None:
            if self._wants_all:
                self.consumed[k] = grads
            if n in self._followed:
                self._followed[n].grads[k], self._followed[n].computed[k] = grads, self._tick
        if updated:
            for followed in self._group[k]:
                followed.staleness[k] = self._updates[k] - followed.forwarded[k][1]
            self._group[k].clear()
            self._updates[k] += 1


def _ratio(over: np.ndarray, under: np.ndarray) -> list[float]:
    """Elementwise; NaN where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (over / under).tolist()


def _secant(changes: np.ndarray) -> float:
    """Over all stages, from the two distances of each: NaN where nothing moved."""
    of_gradients, of_weights = np.sqrt(np.square(changes).sum(axis=0))
    return float(of_gradients / of_weights) if of_weights else math.nan
