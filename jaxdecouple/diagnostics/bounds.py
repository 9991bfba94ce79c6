"""Bounds: what the papers' theorems allow, evaluated from measured quantities. Python and NumPy alone.

Every theorem on the expected decrease of the loss has one form, `Descent`, and so have the averages that follow from
it. What a theorem assumes of the loss is an argument:

* ``lipschitz``: L, the Lipschitz constant of the gradient;
* ``second_moment``: what |stochastic gradient|^2 is at most (M in FDG and the thesis, A in ADL);
* ``error_gradient``: what the norm of the gradient that a stage receives is at most (M in DSP);
* ``variance``: sigma^2, of a stochastic gradient (DSP).

`least_lipschitz`, `least_second_moment` and `least_lemma_1_constant` find in the records of a run the least that these
can be: a constant holds everywhere, and records know where the run has been. Stages are k = 0..K-1, as everywhere here.
The step sizes of the thesis's chapters 2 and 3 are in `asynchronous`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxdecouple.diagnostics.records import GradientRecord
from jaxdecouple.schedules import adl


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """``E f(next) - f <= -share gamma |grad f|^2 + gamma^2 noise`` for learning rates gamma of at most ``limit``.

    Attributes:
      share: of the squared gradient.
      gradient_square: |grad f|^2; of FDG, Z_1.
      noise: of the second term.
      limit: 1 / L, where the theorem needs it.
    """

    share: float
    gradient_square: float
    noise: float
    limit: float = math.inf

    def change(self, rate: float) -> float:
        """What the expected loss changes by at most, in an update."""
        return -self.share * rate * self.gradient_square + rate**2 * self.noise

    @property
    def largest_rate(self) -> float:
        """The rate up to which the expected loss does not grow."""
        vanishing = self.share * self.gradient_square / self.noise if self.noise else math.inf
        return min(self.limit, vanishing)

    def average(self, rates: Sequence[float], excess: float) -> float:
        """What the mean of |grad f|^2 over a run, weighted by the rates, is at most.

        Args:
          rates: of all updates; each at most ``limit``, and not growing.
          excess: f(first) - f(least).

        Raises:
          ValueError: a rate is larger.
        """
        if max(rates) > self.limit * (1 + 1e-12):
            raise ValueError(f"a rate is {max(rates):.3g}, but the theorem holds up to 1 / L = {self.limit:.3g}")
        total = math.fsum(rates)
        return (excess + self.noise * math.fsum(rate**2 for rate in rates)) / (self.share * total)


def fdg_theorem_1(
    gradient_squares: Sequence[float],
    *,
    beta: float,
    lipschitz: float,
    second_moment: float,
    lag: Sequence[int] | None = None,
) -> Descent:
    """FDG, Theorem 1 (eq. 21), in the steady state.

    Args:
      gradient_squares: |full gradient|^2 of each stage, [K].
      beta: the shrinking factor.
      lipschitz, second_moment: L and M.
      lag: t - d_{k,t} of each stage; by default FDG's 2(K-1-k).
    """
    count = len(gradient_squares)
    lag = [2 * (count - 1 - k) for k in range(count)] if lag is None else lag
    shrunk = [beta ** (count - 1 - k) for k in range(count)]
    late = math.fsum(factor**3 * ticks for factor, ticks in zip(shrunk, lag, strict=True))
    return Descent(
        share=1 / 2,
        gradient_square=math.fsum(f * square for f, square in zip(shrunk, gradient_squares, strict=True)),
        noise=lipschitz * second_moment * (math.fsum(shrunk) + late),
        limit=1 / lipschitz,
    )


def adl_theorem_1(
    gradient_square: float,
    *,
    lipschitz: float,
    second_moment: float,
    levels: Sequence[Sequence[int]],
) -> Descent:
    """ADL, Theorem 1 (eq. 24); its `average` is Theorem 2 (eq. 25).

    (The supplement bounds the square of a mean of M vectors by 1/M^2 times the sum of their squares, where convexity
    gives 1/M. With that the second 1/M here would be 1. The formula is the paper's.)

    Args:
      gradient_square: |full gradient|^2.
      lipschitz, second_moment: L and A.
      levels: of staleness, [K][M], as `schedules.staleness` finds them.
    """
    accumulate = len(levels[0])
    return Descent(
        share=1 / 2,
        gradient_square=gradient_square,
        noise=second_moment * lipschitz * _staleness_factor(levels) / accumulate,
        limit=1 / lipschitz,
    )


def adl_theorem_3(
    updates: int,
    *,
    excess: float,
    lipschitz: float,
    second_moment: float,
    levels: Sequence[Sequence[int]],
    epsilon: float = 1.0,
) -> tuple[float, float]:
    """ADL, Theorem 3: a constant rate, and what the least of the updates' E|grad f|^2 then is at most (eq. 26).

    The rate is that of the supplement, from which eq. 26 follows; the paper prints it without the 1/M in its sum.

    Raises:
      ValueError: the rate is above 1 / L; epsilon must be smaller.
    """
    accumulate, factor = len(levels[0]), _staleness_factor(levels)
    rate = epsilon * math.sqrt(accumulate * excess / (updates * second_moment * lipschitz * factor))
    if rate * lipschitz > 1:
        raise ValueError(f"epsilon is {epsilon:g}, which makes the rate {rate:.3g}, above 1 / L; write a smaller one")
    root = math.sqrt(second_moment * lipschitz * excess * factor / (accumulate * updates))
    return rate, (2 + 2 * epsilon**2) / epsilon * root


def adl_least_accumulation(
    num_stages: int,
    rate: float,
    *,
    gradient_square: float,
    lipschitz: float,
    second_moment: float,
    most: int = 1024,
) -> int | None:
    """The least M for which ADL's Theorem 1 says that the loss decreases, with K stages and this rate.

    Levels of staleness are those of eq. 17. ``None``: no M up to ``most`` does, as with a rate above 1 / L.
    """
    if rate * lipschitz >= 1:
        return None
    constants = {"lipschitz": lipschitz, "second_moment": second_moment}
    for accumulate in range(1, most + 1):
        levels = [
            [-((j - lag) // accumulate) if j < lag else 0 for j in range(accumulate)] for lag in adl(num_stages).lag
        ]
        if rate < adl_theorem_1(gradient_square, levels=levels, **constants).largest_rate:
            return accumulate
    return None


def ddg_lemma(
    gradient_square: float,
    num_stages: int,
    *,
    lipschitz: float,
    second_moment: float,
    sigma: float = 1.0,
) -> Descent:
    """DDG, thesis, Lemma 5.4.1 (eq. 5.12); its `average` is Theorem 5.4.1, and with ``sigma`` = K Theorem 5.4.2.

    Args:
      gradient_square: |full gradient|^2.
      num_stages: K.
      lipschitz, second_moment: L and M.
      sigma: how many times the rate K - 1 updates ago may be today's: 1 for a constant rate, K for gamma_0 / (1 + t).
    """
    noise = lipschitz * second_moment * (num_stages + sigma * num_stages**4)
    return Descent(share=1 / 2, gradient_square=gradient_square, noise=noise, limit=1 / lipschitz)


def features_replay_lemma(gradient_square: float, *, sigma: float, lipschitz: float, second_moment: float) -> Descent:
    """Features Replay, thesis, Lemma 6.4.1 (eq. 6.11); its `average` is Theorems 6.4.1 and 6.4.2.

    Args:
      gradient_square: |full gradient|^2.
      sigma: the sufficient-direction constant (eq. 6.10), as `DirectionRecord` has it.
      lipschitz: L.
      second_moment: M, of the method's own direction.

    Raises:
      ValueError: sigma is not above 0: the assumption does not hold.
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma:.3g}: the direction is not downhill, and the theorem says nothing")
    return Descent(share=sigma, gradient_square=gradient_square, noise=lipschitz * second_moment / 2)


def dsp_lemma_1(gaps: Sequence[float], *, lipschitz: float, error_gradient: float) -> list[float]:
    """DSP, Lemma 1: what |DSP's gradient - back-propagation's| is at most, at each stage.

    Args:
      gaps: |backward - forward parameters| of each stage, [K], as `GradientRecord.distance`.
      lipschitz, error_gradient: L and M.
    """
    above = np.cumsum(np.asarray(gaps, float)[::-1])[::-1]
    return (lipschitz * error_gradient * above).tolist()


def dsp_lemma_2(gaps: Sequence[float], *, lipschitz: float, error_gradient: float) -> float:
    """DSP, Lemma 2: what the square of that difference, over all stages, is at most."""
    count = len(gaps)
    weighed = math.fsum((k + 1) / (count + 1) * gap**2 for k, gap in enumerate(gaps))
    return lipschitz**2 * _c_0(error_gradient, count) * weighed / 2


def dsp_theorem_1(
    num_stages: int, layer_wise_staleness: int, *, lipschitz: float, error_gradient: float, variance: float
) -> Descent:
    """DSP, Theorem 1, for SGD: the largest rate (``limit``), and the `average` of |grad f|^2 at the forward parameters.

    Args:
      num_stages: K.
      layer_wise_staleness: the largest m_k.
      lipschitz, error_gradient, variance: L, M and sigma^2.
    """
    late, c_0 = layer_wise_staleness**2, _c_0(error_gradient, num_stages)
    c_1 = -(late + 2) + math.sqrt((late + 2) ** 2 + 2 * c_0 * late)
    limit = c_1 / (lipschitz * c_0 * late) if late else 1 / (2 * lipschitz)  # its limit
    noise = lipschitz * variance * (2 + num_stages * late + num_stages * c_1 / 4) / 2
    return Descent(share=1 / 2, gradient_square=math.nan, noise=noise, limit=limit)


def dsp_theorem_2(
    num_stages: int,
    layer_wise_staleness: int,
    *,
    momentum: float,
    s: float,
    lipschitz: float,
    error_gradient: float,
    variance: float,
) -> Descent:
    """DSP, Theorem 2, for `sum_momentum` with a fixed rate; as `dsp_theorem_1`."""
    rest, late = 1 - momentum, layer_wise_staleness**2
    c_2 = (rest * s - 1) ** 2 / rest**2
    c_3 = _c_0(error_gradient, num_stages) * late * (c_2 + s**2)
    c_4 = 3 + momentum**2 * c_2 + 2 * rest**2 * late * (c_2 + s**2)
    root = -c_4 + math.sqrt(c_4**2 + 4 * rest**2 * c_3)
    limit = root / (2 * rest * c_3 * lipschitz) if c_3 else rest / (c_4 * lipschitz)  # its limit
    c_5 = (2 + momentum**2 * c_2) / rest + 2 * rest * late * (c_2 + s**2) + root / (2 * rest)
    share = 1 / (2 * rest)
    return Descent(share=share, gradient_square=math.nan, noise=share * c_5 * variance * lipschitz, limit=limit)


def clars_largest_rate(
    lipschitz: Sequence[float],
    variance_factors: Sequence[float],
    *,
    batch_size: int,
    momentum: float = 0.0,
    global_lipschitz: float | None = None,
) -> float:
    """The largest gamma, with rates gamma / L_k, of thesis, Theorems 4.3.1 (no momentum) and 4.3.2 (Nesterov's).

    Args:
      lipschitz: L_k of each layer.
      variance_factors: M_k of each layer.
      batch_size: B.
      momentum: beta.
      global_lipschitz: L_g; by default the largest L_k, the least that it can be.
    """
    whole, factor = global_lipschitz or max(lipschitz), max(variance_factors)
    rest = 1 - momentum
    of_layers = min(rest / 8 * min(1.0, batch_size / m) if m else rest / 8 for m in variance_factors)
    noise = math.sqrt(batch_size / factor) if factor else math.inf
    if momentum:
        mean = min(1.0, noise) * min(rest**2 / (4 * momentum**2 * whole), rest / (4 * whole))
    else:
        mean = min(1.0, noise) / (2 * whole)
    return min(of_layers, mean * len(lipschitz) / math.fsum(1 / constant for constant in lipschitz))


def least_lipschitz(records: Iterable[GradientRecord]) -> float:
    """The largest |change of a batch's gradient| / |change of the weights| among records made with ``secants=True``.

    Raises:
      ValueError: there are none.
    """
    found = [record.secant for record in records if record.secant is not None and math.isfinite(record.secant)]
    if not found:
        raise ValueError("no record has a secant; write Diagnostics(..., secants=True)")
    return max(found)


def least_second_moment(records: Iterable[GradientRecord]) -> float:
    """The largest |gradient of a batch|^2 that back-propagation found, over all stages."""
    return max(math.fsum(norm**2 for norm in record.true_norm) for record in records)


def least_lemma_1_constant(records: Iterable[GradientRecord]) -> float:
    """The least L M with which DSP's Lemma 1 holds for all these records and stages."""
    ratios = [0.0]
    for record in records:
        sums = dsp_lemma_1(record.distance, lipschitz=1.0, error_gradient=1.0)
        measured = (part * norm for part, norm in zip(record.difference, record.true_norm, strict=True))
        ratios += [size / gap for size, gap in zip(measured, sums, strict=True) if gap > 0]
    return max(ratios)


def _staleness_factor(levels: Sequence[Sequence[int]]) -> float:
    """``1 + (1/M) sum_k mean level of stage k``."""
    accumulate = len(levels[0])
    return 1 + math.fsum(math.fsum(stage) / accumulate for stage in levels) / accumulate


def _c_0(error_gradient: float, num_stages: int) -> float:
    return error_gradient**2 * num_stages * (num_stages + 1) ** 2
