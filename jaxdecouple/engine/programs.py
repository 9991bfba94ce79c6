"""Which program each stage of a pipeline runs follows from what its schedule says the stages learn from."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import optax

from jaxdecouple.engine.inner_program import InnerProgram
from jaxdecouple.engine.local_program import GreedyProgram, LocalProgram, SyntheticProgram
from jaxdecouple.engine.loss_program import Loss, LossProgram
from jaxdecouple.engine.metrics import MetricFunctions
from jaxdecouple.engine.placement import Placement
from jaxdecouple.engine.stage_program import StageProgram
from jaxdecouple.engine.ties import StageTies
from jaxdecouple.errors import CutWarning
from jaxdecouple.network.adapters import as_layer, is_nnx
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree
from jaxdecouple.schedules import FlushSchedule, RoundSchedule, Schedule, keeps_versions, staleness
from jaxdecouple.transforms import StageOptimizer, transform_of


def programs_for(
    stages: Sequence[Stage],
    schedule: Schedule,
    optimizer: optax.GradientTransformation | StageOptimizer,
    loss: Loss,
    auxiliary: Any,
    auxiliary_optimizer: optax.GradientTransformation | StageOptimizer | None,
    donate: bool,
    metrics: MetricFunctions | None = None,
) -> list[StageProgram]:
    """The program of each stage; arguments as of `Pipeline`.

    Raises:
      ValueError: an optimizer is none, or an auxiliary network is missing or out of place.
    """
    num_stages = len(stages)
    transforms = [transform_of(optimizer, k, num_stages) for k in range(num_stages)]
    last = LossProgram(stages[-1], transforms[-1], loss, donate, metrics)
    lower = zip(stages[:-1], transforms[:-1], strict=True)
    if not schedule.is_local:
        if auxiliary is not None or auxiliary_optimizer is not None:
            raise ValueError(
                f"schedule {schedule.name!r} has no auxiliary networks; leave auxiliary and auxiliary_optimizer out, "
                "or write schedules.dgl or schedules.dni"
            )
        return [*(InnerProgram(*parts, donate) for parts in lower), last]
    networks = _networks(auxiliary, schedule, num_stages)
    theirs = [transform_of(auxiliary_optimizer or optimizer, k, num_stages) for k in range(num_stages - 1)]
    programs: list[StageProgram] = []
    for (stage, transform), network, its_transform in zip(lower, networks, theirs, strict=True):
        if schedule.learning == "greedy":
            programs.append(GreedyProgram(stage, transform, network, its_transform, loss, donate))
        else:
            programs.append(SyntheticProgram(stage, transform, network, its_transform, donate))
    return [*programs, last]


def _networks(auxiliary: Any, schedule: Schedule, num_stages: int) -> list[Layer]:
    """The auxiliary network of each stage below the last."""
    expected = {
        "greedy": "such as jaxdecouple.models.MLPClassifier(num_classes=10)",
        "synthetic": "such as jaxdecouple.models.GradientPredictor(num_classes=10)",
    }[schedule.learning]
    wanted = f"a Flax module, {expected}, or a function (stage, num_stages) -> module"
    if auxiliary is None and num_stages > 1:
        raise ValueError(
            f"schedule {schedule.name!r} needs an auxiliary network in every stage but the last; write "
            f"Pipeline(..., auxiliary=...) with {wanted}"
        )
    if callable(auxiliary) and not (isinstance(auxiliary, nn.Module) or is_nnx(auxiliary)):
        found = [auxiliary(k, num_stages) for k in range(num_stages - 1)]
    else:
        found = [auxiliary] * (num_stages - 1)
    try:
        return [as_layer(network) for network in found]
    except TypeError as error:
        raise ValueError(f"auxiliary gives {error}; write {wanted}") from error


def place(programs: Sequence[StageProgram], ties: Sequence[StageTies], placement: Placement) -> None:
    """Tells each program where its stage is, and which of its parameters it shares with other stages."""
    for k, program in enumerate(programs):
        program.keep = functools.partial(placement.keep, stage=k)
        program.parts = placement.parts
        program.updates.ties = ties[k]


def check_auxiliary(programs: Sequence[StageProgram], logits: PyTree) -> None:
    """Refuses auxiliary networks whose output, known since `init`, has the wrong shape.

    Args:
      programs: of all stages.
      logits: shapes of the whole network's output.

    Raises:
      ValueError: the shape is not that of what the output is held against.
    """
    for program in programs:
        if isinstance(program, LocalProgram):
            program.check_auxiliary(logits)


def check_fit(programs: Sequence[StageProgram], schedule: Schedule) -> None:
    """Refuses shared parameters, weight views (`WeightView`) and accumulation that do not fit the schedule.

    Raises:
      ValueError: stages learn locally; or a backward's weights are corrected that are not today's; or batches wait for
        more updates than the view can look back; or an update comes between the two parts of a split backward, or there
        is a view of its weights.

    Warns:
      CutWarning: an update comes in the middle of a round.
    """
    _warn_of_updates_within_rounds(programs, schedule)
    for k, program in enumerate(programs):
        view = program.updates.view
        if schedule.splits_backward:
            _check_split(k, program, schedule)
        if schedule.is_local and program.updates.ties != StageTies():
            raise ValueError(
                f"stage {k} has parameters that other layers share, but under {schedule.name!r} stages pass no "
                "gradients on; write layers without jaxdecouple.shared, or another schedule"
            )
        if view is None:
            continue
        if schedule.is_local:
            raise ValueError(
                f"the optimizer of stage {k} has a weight view, but under {schedule.name!r} stages learn in their "
                "forward, from weights of today; leave the view out"
            )
        if view.backward is not None and schedule.has_backward(k) and keeps_versions(schedule.weights):
            raise ValueError(
                f"the optimizer of stage {k} corrects backwards, whose weights with {schedule.weights!r} "
                "are those of the forward, and need no correction; write weights='latest'"
            )
        most, every = view.most_staleness, program.updates.every
        found = 0 if most is None else max(staleness(schedule, every)[k])
        if most is not None and found > most:
            raise ValueError(
                f"at stage {k} a gradient is {found} updates old, but its optimizer keeps weights for {most}; write a "
                f"larger accumulate than {every}"
            )


def _warn_of_updates_within_rounds(programs: Sequence[StageProgram], schedule: Schedule) -> None:
    if not isinstance(schedule, FlushSchedule | RoundSchedule) or schedule.splits_backward:
        return
    for k, program in enumerate(programs):
        if any(staleness(schedule, program.updates.every)[k]):
            warnings.warn(
                f"with accumulate={program.updates.every}, stage {k} updates in the middle of a round of "
                f"{schedule.chunks} micro-batches, so {schedule.name!r} is not back-propagation: the numbers depend "
                f"on where the network is cut; write {_whole_rounds(schedule)}",
                CutWarning,
                stacklevel=5,
            )
            return


def _check_split(k: int, program: StageProgram, schedule: Schedule) -> None:
    if program.updates.view is not None:
        raise ValueError(
            f"the optimizer of stage {k} has a weight view, against delays that {schedule.name!r} does not have; leave "
            "the view out"
        )
    if any(staleness(schedule, program.updates.every)[k]):
        raise ValueError(
            f"with accumulate={program.updates.every}, stage {k} would update while batches wait for the gradient of "
            f"their weights; for schedule {schedule.name!r} write {_whole_rounds(schedule)}"
        )


def _whole_rounds(schedule: Schedule) -> str:
    rounds = getattr(schedule, "chunks", "M")
    return f"jd.stagewise(..., accumulate={rounds}): each step feeds a micro-batch, and {rounds} of them make an update"
