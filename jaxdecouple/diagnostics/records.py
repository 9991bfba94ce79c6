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
      norm: of the method's gradient; ``true_norm``: of back-propagation's.
      difference: the norm of their difference, over ``true_norm``.
      root_mean_square: of their difference's elements.
      cosine: of the angle between them.
    """

    batch: int
    tick: int
    lag: list[int]
    staleness: list[int | None]
    weight_gap: list[float]
    norm: list[float]
    true_norm: list[float]
    difference: list[float]
    root_mean_square: list[float]
    cosine: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionRecord:
    """How much of the way downhill the gradients consumed in one tick are. Lists hold one value per stage.

    Attributes:
      tick: which.
      sigma: <true gradient, method's gradient> / |true gradient|^2, with the parts of both that belong to a stage;
        ``None`` for a stage that consumed none.
      sigma_all: the same over all stages; ``None`` unless all consumed one. Above 0, the step goes downhill (eq. 6.10).
      bytes_in_flight: what each stage has waiting after the tick.
    """

    tick: int
    sigma: list[float | None]
    sigma_all: float | None
    bytes_in_flight: list[int]
