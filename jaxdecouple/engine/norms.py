"""Norms of single examples' gradients, measured stage by stage: forwards from the first on, then backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from jaxdecouple.engine.placement import Placement
from jaxdecouple.engine.remote_program import RemoteProgram
from jaxdecouple.engine.stage_program import StageProgram
from jaxdecouple.engine.state import StageState
from jaxdecouple.network.trees import PyTree
from jaxdecouple.schedules import Schedule
from jaxdecouple.transforms import Statistics


def measured(
    programs: Sequence[StageProgram | RemoteProgram],
    placement: Placement,
    schedule: Schedule,
    stages: Sequence[StageState],
    batch: tuple[PyTree, PyTree],
    chunk_size: int,
    statistics: Statistics,
) -> tuple[StageState, ...]:
    """The stages with the gradient norms of the batch's examples; see `Pipeline.measure_gradient_norms`.

    Raises:
      ValueError: ``statistics`` is none of `Statistics`; or the stages learn locally.
    """
    if statistics not in get_args(Statistics):
        raise ValueError(f"statistics is {statistics!r}; write one of {', '.join(get_args(Statistics))}")
    if schedule.is_local:
        raise ValueError(
            f"under schedule {schedule.name!r} stages learn from objectives of their own, of which single examples' "
            "gradients are not measured; take an optimizer that needs none, such as jaxdecouple.lars"
        )
    inputs, targets = batch
    last, at, activations = len(programs) - 1, list(stages), [placement.put(inputs, 0)]
    for k, program in enumerate(programs):
        if statistics == "batch":
            at[k] = program.at_batch_statistics(stages[k], activations[k])
        if k < last:
            activations.append(placement.send(program.predict(at[k], activations[k]), k, k + 1))
    found, given = list(stages), placement.put(targets, last)
    for k, program in reversed(list(enumerate(programs))):
        given, norms = program.measure_norms(at[k], activations[k], given, chunk_size)
        found[k] = stages[k].replace(packed_gradient_norms=norms)
        if k:
            given = placement.send(given, k, k - 1)
    return tuple(found)
