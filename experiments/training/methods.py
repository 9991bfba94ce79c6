"""A method is a preset schedule with the settings that a command line may give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Method:
    """A preset, and which settings it understands.

    Attributes:
      preset: ``(num_stages, **settings) -> schedule``; settings are those named in ``takes``.
      source: where the method is defined.
      takes: which of ``weights``, ``order``, ``p``, ``m``, ``jitter`` it understands.
      accumulate: its default M.
      in_rounds: whether it works in rounds of M micro-batches, so that its schedule depends on M.
      auxiliary: for methods by which stages learn locally, ``(num_classes, dtype=dtype) -> module``.
    """

    preset: Callable[..., Schedule]
    source: str
    takes: tuple[str, ...] = ("weights",)
    accumulate: int = 1
    in_rounds: bool = False
    auxiliary: Callable[..., Any] | None = None

    def schedule(self, num_stages: int, accumulate: int = 0, **settings: Any) -> Schedule:
        """The schedule for K stages and updates of M batches, 0: the method's own M."""
        rounds = (accumulate or self.accumulate,) if self.in_rounds else ()
        return self.preset(num_stages, *rounds, **settings)


def _dsp(num_stages: int, p: tuple[int, ...] = (), m: tuple[int, ...] = (), **settings: Any) -> Schedule:
    """By default the paper's shortest queues: DSP(1,...,1,0; 2(K-1),...,2,0)."""
    p = p or (1,) * (num_stages - 1) + (0,)
    m = m or tuple(2 * (num_stages - 1 - k) for k in range(num_stages))
    return schedules.dsp(p, m, **settings)


def _planned(num_stages: int, jitter: float = 0.0, **settings: Any) -> Schedule:
    """Stands in for the schedule that is planned when a run begins."""
    return schedules.fdg(num_stages, **settings)


def _classifier(*settings: Any, **others: Any) -> Any:
    return jd.models.MLPClassifier(*settings, **others)  # which needs JAX, and this table does not


def _predictor(*settings: Any, **others: Any) -> Any:
    return jd.models.GradientPredictor(*settings, **others)


AUTO = "auto"  # no preset: measured, cut and planned when a run begins (experiments/training/auto.py)

METHODS: dict[str, Method] = {
    "backprop": Method(schedules.backprop, "BP; BP-K with one device per stage", takes=()),
    "gpipe": Method(schedules.gpipe, "Huang et al. 2019", accumulate=4, in_rounds=True),
    "1f1b": Method(schedules.one_forward_one_backward, "Narayanan et al. 2021, flushed", accumulate=4, in_rounds=True),
    "zero_bubble": Method(schedules.zero_bubble, "Qi et al. 2024, ZB-H1", accumulate=4, in_rounds=True),
    "ddg": Method(schedules.ddg, "thesis, Algorithms 9 and 10"),
    "features_replay": Method(schedules.features_replay, "thesis, Algorithm 11"),
    "fdg": Method(schedules.fdg, "FDG, Algorithm I", takes=("weights", "order")),
    "adl": Method(schedules.adl, "ADL, Algorithm 1", takes=("weights", "order"), accumulate=4),
    "dsp": Method(_dsp, "DSP, section 3.3", takes=("weights", "order", "p", "m")),
    "pipedream": Method(schedules.pipedream, "Narayanan et al. 2019"),
    "dgl": Method(schedules.dgl, "Belilovsky et al. 2020", takes=(), auxiliary=_classifier),
    "dni": Method(schedules.dni, "Jaderberg et al. 2017; thesis, 5.5.1 and 6.5.1", auxiliary=_predictor),
}
WITH_AUTO = {**METHODS, AUTO: Method(_planned, "measured times, jaxdecouple.plan", takes=("weights", "jitter"))}
