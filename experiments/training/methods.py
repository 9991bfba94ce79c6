"""A method is a preset schedule with the settings that a command line may give it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn

from jaxdecouple import schedules
from jaxdecouple.models import GradientPredictor, MLPClassifier
from jaxdecouple.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Method:
    """How to build a method's schedule from settings.

    Attributes:
      build: ``(num_stages, accumulate, **settings) -> schedule``; settings are those named in ``takes``.
      source: where the method is defined.
      takes: which of ``weights``, ``order``, ``p``, ``m``, ``jitter`` it understands.
      accumulate: its default M.
      auxiliary: for methods by which stages learn locally, ``(num_classes, dtype) -> module``, the auxiliary network.
    """

    build: Callable[..., Schedule]
    source: str
    takes: tuple[str, ...] = ("weights",)
    accumulate: int = 1
    auxiliary: Callable[[int, Any], nn.Module] | None = None


def _dsp(num_stages: int, accumulate: int, p: tuple[int, ...] = (), m: tuple[int, ...] = (), **settings) -> Schedule:
    """By default the paper's shortest queues: DSP(1,...,1,0; 2(K-1),...,2,0)."""
    p = p or (1,) * (num_stages - 1) + (0,)
    m = m or tuple(2 * (num_stages - 1 - k) for k in range(num_stages))
    return schedules.dsp(p, m, **settings)


METHODS: dict[str, Method] = {
    "backprop": Method(lambda K, M: schedules.backprop(K), "BP; BP-K with one device per stage", takes=()),
    "gpipe": Method(lambda K, M, **s: schedules.gpipe(K, M, **s), "Huang et al. 2019", accumulate=4),
    "ddg": Method(lambda K, M, **s: schedules.ddg(K, **s), "thesis, Algorithms 9 and 10"),
    "features_replay": Method(lambda K, M, **s: schedules.features_replay(K, **s), "thesis, Algorithm 11"),
    "fdg": Method(lambda K, M, **s: schedules.fdg(K, **s), "FDG, Algorithm I", takes=("weights", "order")),
    "adl": Method(lambda K, M, **s: schedules.adl(K, **s), "ADL, Algorithm 1", ("weights", "order"), accumulate=4),
    "dsp": Method(_dsp, "DSP, section 3.3", takes=("weights", "order", "p", "m")),
    "pipedream": Method(lambda K, M, **s: schedules.pipedream(K, **s), "Narayanan et al. 2019"),
    "dgl": Method(
        lambda K, M: schedules.dgl(K),
        "Belilovsky et al. 2020",
        takes=(),
        auxiliary=lambda classes, dtype: MLPClassifier(classes, dtype=dtype),
    ),
    "dni": Method(
        lambda K, M, **s: schedules.dni(K, **s),
        "Jaderberg et al. 2017; thesis, 5.5.1 and 6.5.1",
        auxiliary=lambda classes, dtype: GradientPredictor(classes, dtype=dtype),
    ),
}

AUTO = "auto"  # not a preset: measured, cut and planned when a run begins (experiments/training/auto.py)
# Its settings, and the schedule that stands in for it until then.
PLANNED = Method(
    lambda K, M, jitter=0.0, **s: schedules.fdg(K, **s), "measured times, jaxdecouple.plan", takes=("weights", "jitter")
)


def choose(what: str, given: str, options: Iterable[str]) -> str:
    """``given``, if it is among ``options``.

    Raises:
      ValueError: it is not; the message suggests the nearest.
    """
    options = list(options)
    if given in options:
        return given
    near = difflib.get_close_matches(given.lower(), options, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {what} {given!r}; {hint}write one of: {', '.join(options)}")
