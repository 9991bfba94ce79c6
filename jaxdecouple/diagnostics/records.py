"""Records are what diagnostics find."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientRecord:
    """What became of one batch's gradients. Fields hold one value per stage.

    Attributes:
      batch: its index.
      tick: in which the last of its gradients was computed.
      lag: ticks between the batch's forward and its gradient, at each stage.
      staleness: updates that the stage made between the forward and the update which consumed the gradient, counted as
        they happened; ``None`` where no update has.
      weight_gap: distance of the stage's weights, when the gradient was computed, from those of the forward, over the
        norm of the latter.
      distance: the same distance, not over the norm.
      norm: of the method's gradient; ``true_norm``: of back-propagation's.
      difference: the norm of their difference, over ``true_norm``.
      mean_absolute: the mean of their difference's absolute value over the stage's parameters (DSP, Figure 4).
      cosine: of the angle between them.
      secant: |change| of back-propagation's gradient of this batch since the forward, over the |change| of the weights,
        both over all stages: a lower bound of the Lipschitz constant L. ``None`` without ``secants``.
    """

    batch: int
    tick: int
    lag: list[int]
    staleness: list[int | None]
    weight_gap: list[float]
    distance: list[float]
    norm: list[float]
    true_norm: list[float]
    difference: list[float]
    mean_absolute: list[float]
    cosine: list[float]
    secant: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionRecord:
    """How far downhill the gradients consumed in one tick point. Lists hold one value per stage.

    Attributes:
      tick: which.
      sigma: <true gradient, method's gradient> / |true gradient|^2, with the parts of both that belong to a stage;
        ``None`` for a stage that consumed none. The last stage's gradient is never late: there it says what a single
        batch's gradient differs in from the full one.
      sigma_error: standard error of ``sigma`` from the choice of the reference's batches (a jackknife); ``None`` with
        one batch. A reference that is the whole training set is no choice, and has no such error.
      sigma_all: the same over all stages; ``None`` unless all consumed one. Above 0, the step goes downhill (eq. 6.10).
      sigma_all_error: its standard error.
      bytes_in_flight: what each stage has waiting after the tick.
    """

    tick: int
    sigma: list[float | None]
    sigma_error: list[float | None]
    sigma_all: float | None
    sigma_all_error: float | None
    bytes_in_flight: list[int]
