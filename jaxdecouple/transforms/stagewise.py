"""A stagewise optimizer gives each stage its own transform: shrinking in front, accumulation around."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import optax

from jaxdecouple.transforms.accumulation import accumulate_gradients
from jaxdecouple.transforms.counting import count_from
from jaxdecouple.transforms.shrinking import shrink_gradients
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
            "a function (stage, num_stages) -> transform, or an optax transform"
        ) from error
