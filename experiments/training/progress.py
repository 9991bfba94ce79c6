"""What a run has found so far, beside its weights: the records of its epochs, losses, and what its probes found."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdecouple as jd
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord
from jaxdecouple.engine.state import Metrics, State

Diagnosis = GradientRecord | DirectionRecord
_PROBES = {kind.__name__: kind for kind in (GradientRecord, DirectionRecord)}


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
      epoch: 1 for the first.
      ticks: batches fed so far.
      train_loss: mean over the batches that reached the loss in this epoch.
      test_loss, test_error: after it, with the weights of that moment; the error is a fraction.
      seconds: of training alone; in the first epoch compilation is part of it.
      images_per_second: of training; of texts, sequences.
      metrics: what else was measured after it, by name.
    """

    epoch: int
    ticks: int
    train_loss: float
    test_loss: float
    test_error: float
    seconds: float
    images_per_second: float
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> float:
        """The lower, the better the epoch: the test's error or, where perplexity is measured, its loss."""
        return self.test_loss if "perplexity" in self.metrics else self.test_error

    def results(self) -> dict[str, float]:
        """All but the times: what is the same whenever the run is repeated."""
        fields = dataclasses.asdict(self)
        metrics = fields.pop("metrics")
        return {name: value for name, value in fields.items() if name not in _TIMES} | metrics

    def times(self) -> dict[str, float]:
        """The epoch and its times."""
        return {name: getattr(self, name) for name in ("epoch", *_TIMES)}


_TIMES = ("seconds", "images_per_second")


class Progress:
    """The findings of one run, which can be saved and gone on with.

    Attributes:
      records: of the epochs finished.
      diagnoses: what the probes found, oldest first.
      seconds, images: of the epoch under way.
      latest: the newest loss known; NaN before the first.
    """

    def __init__(
        self,
        saved: Mapping[str, Any] | None = None,
        *,
        run_ahead: int = 0,
        diagnostics: jd.Diagnostics | None = None,
        on_diagnosis: Callable[[Diagnosis], Any] = lambda record: None,
    ):
        """Begins, or goes on.

        Args:
          saved: what `frozen` gave.
          run_ahead: how many losses may be waited for before the oldest is read, which then waits for nothing.
          diagnostics: the probes, if any.
          on_diagnosis: called with each record that `collect` finds.
        """
        saved = saved or {"records": [], "losses": [], "diagnoses": [], "seconds": 0.0, "images": 0}
        self.records = [EpochRecord(**record) for record in saved["records"]]
        self.diagnoses: list[Diagnosis] = [diagnosis_of(record) for record in saved["diagnoses"]]
        self.seconds, self.images = saved["seconds"], saved["images"]
        self.latest = math.nan
        self._losses: list[float] = list(saved["losses"])
        self._waiting: collections.deque[tuple[int, Metrics]] = collections.deque()
        self._run_ahead, self._diagnostics, self._on_diagnosis = run_ahead, diagnostics, on_diagnosis

    def add(self, tick: int, metrics: Metrics, images: int, state: State) -> None:
        """Notes a tick, and reads the losses of older ones.

        Raises:
          NonFiniteLoss: one is NaN or infinite; the message names stage, tick and batch.
        """
        self.images += images
        if metrics.loss is not None:
            self._waiting.append((tick, metrics))
        while len(self._waiting) > self._run_ahead:
            self._read(state)

    def end_epoch(self, state: State, seconds: float, test: jd.Evaluation) -> EpochRecord:
        """Adds the record of the epoch under way."""
        losses, self._losses = self._losses, []
        record = EpochRecord(
            epoch=len(self.records) + 1,
            ticks=state.tick,
            train_loss=float(np.mean(losses)) if losses else math.nan,
            test_loss=test.loss,
            test_error=1 - (test.accuracy or 0.0),
            seconds=seconds,
            images_per_second=self.images / seconds,
            metrics={name: value for name, value in test.metrics.items() if name != "accuracy"},
        )
        self.seconds, self.images = 0.0, 0
        self.records.append(record)
        return record

    def read_all(self, state: State) -> None:
        """Waits for all losses; raises as `add`."""
        while self._waiting:
            self._read(state)

    def collect(self) -> None:
        """Waits for what the probes have found, and notes it."""
        for record in self._diagnostics.records() if self._diagnostics else ():
            self.diagnoses.append(record)
            self._on_diagnosis(record)

    def at_rest(self, state: State) -> bool:
        """Whether a run that goes on from here would have its probes find the same."""
        return self._diagnostics is None or self._diagnostics.at_rest(state)

    def frozen(self) -> Callable[[], dict[str, Any]]:
        """The findings of this moment: a function that waits for the last losses, and gives JSON."""
        self.collect()
        found = {
            "records": [dataclasses.asdict(record) for record in self.records],
            "diagnoses": [as_json(record) for record in self.diagnoses],
            "seconds": self.seconds,
            "images": self.images,
        }
        return functools.partial(_with_losses, found, list(self._losses), list(self._waiting))

    def _read(self, state: State) -> None:
        tick, metrics = self._waiting.popleft()
        self.latest = float(metrics.loss)
        self._losses.append(self.latest)
        if not math.isfinite(self.latest):
            raise NonFiniteLoss(_explain(tick, metrics.batch, self.latest, state))


def as_json(record: Diagnosis) -> dict[str, Any]:
    """A probe's record, with ``None`` where JSON has no number, such as for the cosine with a gradient of 0."""
    return {"probe": type(record).__name__, **_numbers(dataclasses.asdict(record))}


def diagnosis_of(saved: Mapping[str, Any]) -> Diagnosis:
    """The inverse of `as_json`, but that what was no number is ``None``."""
    return _PROBES[saved["probe"]](**{name: value for name, value in saved.items() if name != "probe"})


def _with_losses(found: dict[str, Any], losses: list[float], waiting: list[tuple[int, Metrics]]) -> dict[str, Any]:
    losses = losses + [float(metrics.loss) for _, metrics in waiting]
    if not all(map(math.isfinite, losses)):
        raise jd.CheckpointError("a loss is not finite, so nothing is saved")
    return {**found, "losses": losses}


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _explain(tick: int, batch: int, loss: float, state: State) -> str:
    last = len(state.stages) - 1

    def finite(tree: Any) -> bool:
        here = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]  # other processes have the rest
        return all(bool(jnp.isfinite(leaf).all()) for leaf in here)

    broken = [k for k, stage in enumerate(state.stages) if not finite((stage.params, stage.model_state))]
    where = f"weights not finite at stages {', '.join(map(str, broken))}" if broken else "all weights finite"
    return (
        f"the loss of batch {batch}, computed by stage {last} in tick {tick}, is {loss} ({where}); "
        "write a lower --learning_rate, --warmup_epochs, or a method with less staleness"
    )
