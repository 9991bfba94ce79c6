"""A stagewise optimizer gives each stage its own transform: shrinking in front, accumulation around, and a clock.

Shrinking scales a delayed gradient down by how many stages it passed (FDG, section III-B). The clock is what bias
corrections and learning-rate schedules go by: the number of the update.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
import optax.tree_utils

from jaxdecouple.transforms.accumulation import accumulate_gradients
from jaxdecouple.transforms.weight_views import WeightView

StageOptimizer = Callable[[int, int], optax.GradientTransformation]


def stagewise(
    optimizer: optax.GradientTransformation | StageOptimizer,
    *,
    beta: float = 1.0,
    accumulate: int = 1,
    missed: Sequence[int] = (),
) -> StageOptimizer:
    """The function ``(stage, num_stages) -> transform`` that a pipeline takes.

    Args:
      optimizer: one optax transform for all stages, or itself a function of ``(stage, num_stages)``.
      beta: FDG's shrinking factor in (0, 1]: stage k's gradient is scaled by beta^(K-1-k) before ``optimizer``.
      accumulate: M: an update uses the mean of M consecutive batches' gradients (ADL, eq. 16).
      missed: for each stage, the updates that it misses while the pipeline fills, `schedules.missed_updates`. Adam's
        bias correction and learning-rate schedules then count them too, as time in thesis, Algorithm 10 and eq. 5.9.
        Left out, each stage counts its own updates alone.

    Raises:
      ValueError: beta outside (0, 1], or M < 1; when a stage's transform is made, beta or ``missed`` around a weight
        view, or ``missed`` for another number of stages.
    """
    shrink_gradients(beta)  # refuses bad values now, not at init
    accumulate_gradients(optax.identity(), accumulate)

    def for_stage(stage: int, num_stages: int) -> optax.GradientTransformation:
        inner = transform_of(optimizer, stage, num_stages)
        if missed:
            if len(missed) != num_stages:
                raise ValueError(f"missed is {tuple(missed)}, but there are {num_stages} stages; write one for each")
            if isinstance(inner, WeightView):
                raise ValueError(
                    f"missed is {tuple(missed)}, and the optimizer of stage {stage} has a weight view, which it would "
                    "hide; write jd.count_from within it"
                )
            inner = count_from(inner, missed[stage])
        distance = num_stages - 1 - stage
        if beta != 1 and distance:
            if isinstance(inner, WeightView):
                raise ValueError(
                    f"beta is {beta}, and the optimizer of stage {stage} has a weight view, which a chain hides; "
                    "write shrink_gradients within it: predict_weights(optax.chain(shrink_gradients(...), ...))"
                )
            inner = optax.chain(shrink_gradients(beta, distance), inner)
        return accumulate_gradients(inner, accumulate)

    return for_stage


def transform_of(
    optimizer: optax.GradientTransformation | StageOptimizer, stage: int, num_stages: int
) -> optax.GradientTransformation:
    """The transform of a stage, from one for all stages or from a function of the stage.

    Raises:
      ValueError: it is no optax transform.
    """
    library, name = getattr(optimizer, "__module__", "").split(".")[0], getattr(optimizer, "__qualname__", "function")
    if callable(optimizer) and library in ("optax", "jaxdecouple") and "<locals>" not in name:
        # optax.sgd itself would take the stage for its learning rate.
        raise ValueError(f"the optimizer is the function {library}.{name}; call it, as in {library}.{name}(0.1)")
    if callable(optimizer):
        _check_arguments(optimizer)
    transform = optimizer(stage, num_stages) if callable(optimizer) else optimizer
    if isinstance(transform, optax.MultiSteps):
        raise ValueError(
            f"the optimizer of stage {stage} is an optax.MultiSteps; to average M gradients, write "
            "jd.stagewise(transform, accumulate=M) with the transform within it"
        )
    if not isinstance(transform, optax.GradientTransformation):
        raise ValueError(
            f"the optimizer of stage {stage} is a {type(transform).__name__}; write an optax transform such as "
            "optax.sgd(0.1), or a function (stage, num_stages) -> transform"
        )
    return transform


def _check_arguments(optimizer: StageOptimizer) -> None:
    try:
        inspect.signature(optimizer).bind(0, 1)
    except TypeError as error:
        raise ValueError(
            f"the optimizer is a function that cannot be called with a stage and the number of stages ({error}); write "
            "an optax transform, a function (stage, num_stages) -> transform, or, of a schedule of learning rates, "
            "optax.adam(schedule)"
        ) from error


def count_from(inner: optax.GradientTransformation, missed: int) -> optax.GradientTransformationExtraArgs:
    """``inner``, as if ``missed`` updates with a gradient of 0 had come before its first.

    A stage below the last has no gradient while the pipeline fills. In the papers' algorithms time goes on meanwhile:
    Adam-DDG divides by 1 - beta_1^{t+1}, with the t that all stages share (thesis, Algorithm 10), and the learning rate
    is gamma_t (eq. 5.9). Moments stay 0, so only the counters of ``inner`` begin later.

    Args:
      inner: the transform; every ``count`` in its state begins at ``missed``.
      missed: how many; `schedules.missed_updates` knows.

    Raises:
      ValueError: ``missed`` is below 0.
    """
    if missed < 0:
        raise ValueError(f"missed is {missed}; write how many updates came before the first, at least 0")
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        known = optax.tree_utils.tree_get_all_with_path(state, "count")
        return optax.tree_utils.tree_set(state, count=jnp.asarray(missed, jnp.int32)) if known else state

    return optax.GradientTransformationExtraArgs(init, inner.update) if missed else inner


def shrink_gradients(beta: float, distance: int = 1) -> optax.GradientTransformation:
    """Multiplies gradients by ``beta ** distance`` (FDG, eq. 17).

    FDG multiplies by beta wherever a gradient enters a stage (eq. 15). Back-propagation is linear in the incoming
    gradient, so scaling stage k's gradient by beta^(K-1-k), with distance K-1-k, is the same. Chain it before weight
    decay and momentum, neither of which the paper shrinks. Optimizers that do not see the scale of a gradient (Adam,
    LARS) undo it.

    Args:
      beta: shrinking factor, in (0, 1]; 1 changes nothing.
      distance: how many stages lie between this one and the loss, at least 0.

    Raises:
      ValueError: beta or distance out of range.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is {beta}; write a shrinking factor in (0, 1], 1 for no shrinking")
    if distance < 0:
        raise ValueError(f"distance is {distance}; write the number of stages between this one and the loss, >= 0")
    return optax.identity() if beta == 1 or distance == 0 else optax.scale(float(beta) ** int(distance))
