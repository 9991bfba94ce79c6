"""A weight view says with which weights a stage computes, where these are not simply today's.

A forward may look ahead to the weights that its gradient will meet (`predict_weights`), or back to those that all
stages have (`two_versions`); a backward may look back to those of its forward (`correct_weights`). What a view needs to
know it learns from the updates. So it is an optimizer that wraps another, and is part of what is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

ForwardView = Callable[[optax.Params, Any, Any], optax.Params]
BackwardView = Callable[[optax.Params, Any], optax.Params]


class WeightView(optax.GradientTransformationExtraArgs):
    """An optimizer with a view. In a loop of one's own, compute gradients at ``forward(params, state, batch)``.

    Keep it outermost but for accumulation (``stagewise(predict_weights(...), accumulate=M)``): a chain hides it.

    Attributes:
      forward: ``(params, state, batch index) -> the weights of a forward``; ``None``: today's.
      backward: ``(params, state) -> the weights of a backward that would use today's``; ``None``: these.
      most_staleness: the highest staleness, in updates, that the view is right for; ``None``: any.
    """

    forward: ForwardView | None
    backward: BackwardView | None
    most_staleness: int | None

    def __new__(
        cls,
        init: Callable[[optax.Params], Any],
        update: Callable[..., tuple[optax.Updates, Any]],
        forward: ForwardView | None = None,
        backward: BackwardView | None = None,
        most_staleness: int | None = None,
    ) -> WeightView:
        given: Any = init
        self = super().__new__(cls, given, update)
        self.forward, self.backward, self.most_staleness = forward, backward, most_staleness
        return self


class LastUpdateState(NamedTuple):
    """State of `predict_weights`: the last update, like the parameters, and the wrapped transform's state."""

    last: optax.Updates
    inner: optax.OptState


def predict_weights(
    inner: optax.GradientTransformation, forward: float, backward: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """Forwards compute with the weights expected when their gradient is used: w_t + s (w_t - w_{t-1}).

    The gradient is that at the predicted weights, under `stash` (SpecTrain's backward predicts again: `backward`). With
    momentum SGD the last update is -lr v, and this is SpecTrain's w - s lr v (Chen et al. 2018). Taking the last
    update, and not the optimizer's moments, works for any optimizer; extrapolated moments of Adam were seen to fail.

    Args:
      inner: the optimizer.
      forward: s, updates to look ahead: the stage's staleness.
      backward: s of the backward, where that uses today's weights (``latest``, ``replay``); ``None``: it does not look
        ahead.

    Raises:
      ValueError: a number is negative.
    """
    _check_distance("forward", forward)
    _check_distance("backward", backward or 0)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> LastUpdateState:
        return LastUpdateState(jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, LastUpdateState]:
        updates, after = inner.update(updates, state.inner, params, **extra)
        return updates, LastUpdateState(updates, after)

    def ahead(distance: float) -> Callable[..., optax.Params]:
        return lambda params, state, batch=None: _moved(params, distance, state.last)

    return WeightView(init, update, ahead(forward), None if backward is None else ahead(backward))


class CorrectionState(NamedTuple):
    """State of `correct_weights`: delta, like the parameters, and the wrapped transform's state."""

    delta: optax.Updates
    inner: optax.OptState


def correct_weights(
    inner: optax.GradientTransformation, tau: float, decay: float = float(np.exp(-2))
) -> optax.GradientTransformationExtraArgs:
    """Backwards compute with what the weights of their forward may have been: w_t - tau delta_t (PipeMare, T2).

    delta_{t+1} = gamma delta_t + (1 - gamma) (w_{t+1} - w_t) is a moving average of the updates, gamma = decay^(1/tau)
    (Yang et al. 2021, whose D = 0.135 is e^-2). No weights are stored: use ``weights="latest"``.

    Args:
      inner: the optimizer.
      tau: updates between a batch's forward and its backward, the stage's staleness; 0: nothing is corrected.
      decay: D, what is left of an update in delta after tau more, in (0, 1).

    Raises:
      ValueError: ``tau`` is negative, or ``decay`` out of range.
    """
    _check_distance("tau", tau)
    if not 0 < decay < 1:
        raise ValueError(f"decay is {decay}; write a number between 0 and 1, such as 0.135")
    if tau == 0:
        return optax.with_extra_args_support(inner)
    inner, gamma = optax.with_extra_args_support(inner), decay ** (1 / tau)

    def init(params: optax.Params) -> CorrectionState:
        return CorrectionState(jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, CorrectionState]:
        updates, after = inner.update(updates, state.inner, params, **extra)
        delta = jax.tree.map(lambda d, u: (gamma * d + (1 - gamma) * u).astype(d.dtype), state.delta, updates)
        return updates, CorrectionState(delta, after)

    return WeightView(init, update, backward=lambda params, state: _moved(params, -tau, state.delta))


def delayed_learning_rate(learning_rate: optax.ScalarOrSchedule, tau: float, annealing_steps: int) -> optax.Schedule:
    """PipeMare's T1: lr_t / tau^(1 - min(t / T, 1)), small at first where gradients are old (Yang et al. 2021).

    Args:
      learning_rate: a number, or a function of the update's index t.
      tau: the stage's staleness in updates; below 1, the rate is as it is (the paper's tau is never 0).
      annealing_steps: T, updates after which the rate is as it is.

    Raises:
      ValueError: ``tau`` is negative, or ``annealing_steps`` below 1.
    """
    _check_distance("tau", tau)
    if annealing_steps < 1:
        raise ValueError(f"annealing_steps is {annealing_steps}; write after how many updates the rate is full")

    def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        full = learning_rate(count) if callable(learning_rate) else learning_rate
        return full / max(tau, 1.0) ** (1 - jnp.minimum(count / annealing_steps, 1))

    return rate


class VersionsState(NamedTuple):
    """State of `two_versions`.

    Attributes:
      count: int32 scalar, updates so far.
      previous: the parameters before the last update.
      inner: the state of the wrapped transform.
    """

    count: jax.Array
    previous: optax.Params
    inner: optax.OptState


def two_versions(inner: optax.GradientTransformation, accumulate: int) -> WeightView:
    """All stages compute a group of M batches with one version of the weights: w_{t+1} = w_t - lr g(w_{t-1}).

    PipeDream-2BW (Narayanan et al. 2021): the t-th group uses the weights before the last update but one,
    even at stages that have made that already; so every gradient has a delay of exactly one update, for two versions of
    the weights in memory. Write ``stagewise(two_versions(inner, M), accumulate=M)``, under `pipedream` with M at least
    its lag, K - 1 (the paper asks for M >= K).

    Args:
      inner: the optimizer.
      accumulate: M, as of `stagewise`.

    Raises:
      ValueError: ``accumulate`` is below 1.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; write how many batches make an update, at least 1")
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> VersionsState:
        return VersionsState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params), inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, VersionsState]:
        if params is None:
            raise ValueError("two_versions needs the parameters; write update(grads, state, params)")
        updates, after = inner.update(updates, state.inner, params, **extra)
        return updates, VersionsState(jnp.asarray(optax.safe_increment(state.count)), params, after)

    def forward(params: optax.Params, state: VersionsState, batch: Any) -> optax.Params:
        # Before the first update there is one version: that at hand, whatever it was initialised from.
        done = (state.count > 0) & (state.count > batch // accumulate - 1)
        return jax.tree.map(lambda old, new: jnp.where(done, old, new), state.previous, params)

    return WeightView(init, update, forward, most_staleness=1)


def _moved(params: optax.Params, distance: float, direction: optax.Updates) -> optax.Params:
    return jax.tree.map(lambda p, d: (p + distance * d).astype(p.dtype), params, direction)


def _check_distance(name: str, distance: float) -> None:
    if not distance >= 0:
        raise ValueError(f"{name} is {distance}; write a number of updates, at least 0")
