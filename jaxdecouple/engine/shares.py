"""A share is a stage's part of what the optimizers sum over all stages, such as the square of a global norm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdecouple.engine.placement import Nowhere, Placement
from jaxdecouple.engine.stage_program import StageProgram
from jaxdecouple.engine.state import StageState
from jaxdecouple.errors import CutWarning
from jaxdecouple.network.trees import PyTree, shape_of
from jaxdecouple.transforms import Dependence


def with_shares(
    stages: Sequence[StageState], programs: Sequence[StageProgram], placement: Placement | Nowhere, *, alone: bool
) -> tuple[StageState, ...]:
    """The new stages with their first shares, 0, where their optimizers sum something over all stages.

    Args:
      stages: as just initialised.
      programs: of the stages.
      placement: where they are.
      alone: whether every stage learns from an objective of its own: then there is nothing to sum over all.

    Raises:
      ValueError: an optimizer fails for gradients and parameters.

    Warns:
      CutWarning: an optimizer depends otherwise on layers of other stages.
    """
    params = [
        jax.eval_shape(program.stage.by_layer, shape_of(stage.packed_params).tree)
        for program, stage in zip(programs, stages, strict=True)
    ]
    found = [_dependence(k, program, params, alone) for k, program in enumerate(programs)]
    mixing = [k for k, dependence in enumerate(found) if dependence.mixes]
    if mixing:
        warnings.warn(
            f"under the optimizer of stage {mixing[0]}, a layer's update depends on the gradients of other layers, as "
            "with a global norm. A stage knows of its own layers alone, so the numbers depend on where the network "
            "is cut. In place of optax.clip_by_global_norm, write jaxdecouple.clip_by_global_norm; for other "
            "transforms, see docs/how_to/optimizers.md",
            CutWarning,
            stacklevel=3,
        )
    if alone:
        return tuple(stages)
    return tuple(
        stage if share is None else stage.replace(share=placement.own(jnp.zeros(share.shape, share.dtype), k))
        for k, (stage, share) in enumerate(zip(stages, (dependence.share for dependence in found), strict=True))
    )


def _dependence(k: int, program: StageProgram, params: Sequence[dict[str, PyTree]], alone: bool) -> Dependence:
    others = [] if alone else [pair for j, own in enumerate(params) for pair in own.items() if j != k]
    own = list(params[k].items())
    some = dict(others[:1] + others[-1:])  # a norm over all layers takes in any
    try:
        return program.updates.dependence(dict(own[:2] + own[-2:]), some)
    except ValueError:  # it is made for just these layers, with a mask for each of them, say
        try:
            return program.updates.dependence(params[k], some)
        except ValueError as error:
            raise ValueError(f"the optimizer of stage {k} {error}") from error
