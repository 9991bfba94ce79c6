"""The automatic method: measures a network, cuts it, measures the stages, and plans the delays.

A cut by layers measured one by one makes the stages equal; what they then really take, joined operations and transfers
included, is measured on the stages themselves, on their devices, and decides the delays.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jaxdecouple as jd
from experiments.measure.operation_times import OperationMeter, Round, as_times, joined_stages
from experiments.report.workdir import Files, drawing
from jaxdecouple import schedules
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, shape_of
from jaxdecouple.partitioning.profiling import Profile
from jaxdecouple.planning import Plan, Times
from jaxdecouple.schedules import Schedule, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was measured, and what was chosen for it.

    Attributes:
      profile: of the layers; ``None`` where the cut was given.
      fitted: the same, corrected by the times of whole stages.
      stages: the cut.
      times: of the stages.
      plan: the delays.
    """

    profile: Profile | None
    fitted: Profile | None
    stages: tuple[Stage, ...]
    times: Times
    plan: Plan

    @property
    def schedule(self) -> Schedule:
        """The planned one."""
        return self.plan.schedule

    def save(self, output: Files) -> None:
        """Writes ``profile.json``, where layers were measured, and the expected ``timeline.png`` and ``trace.json``."""
        if self.profile is not None:
            self.profile.save(output.file("profile.json"))
        self.save_timeline(output)

    def save_timeline(self, output: Files, suffix: str = "") -> None:
        """Writes the expected ``timeline.png`` and ``trace.json``, with ``suffix`` behind their names."""
        expected = jd.timeline(self.schedule, self.times)
        jd.save_trace(expected, output.file(f"trace{suffix}.json"))
        with drawing():
            jd.save_gantt(expected, output.file(f"timeline{suffix}.png"))

    def explain(self) -> str:
        """Three lines: the cut, the delays, and what other methods would give."""
        weights = self.plan.schedule.weights
        work = " | ".join(_milliseconds(self.times.work(k, weights)) for k in range(self.times.num_stages))
        cut = " | ".join(str(stage.num_layers) for stage in self.stages)
        how = "as given" if self.profile is None else "by the layers' measured times"
        first = (
            f"Cut: {cut} layers, {how}; alone, the stages take {work} ms per batch, and all together "
            f"{_milliseconds(self.plan.seconds_per_batch)} ms: {self.plan.speedup:.2f} times the speed of the stages "
            "one after the other."
        )
        return "\n".join([first, *self.plan.explain().splitlines()[1:]])


def choose(
    layers: Sequence[Any],
    num_stages: int,
    sample: PyTree,
    targets: PyTree,
    devices: Sequence[jax.Device],
    *,
    weights: Weights = "stash",
    jitter: float = 0.0,
    boundaries: Sequence[int] | None = None,
    profile: Profile | None = None,
    repeats: int = 3,
    seconds: float = 0.3,
    **pipeline: Any,
) -> Choice:
    """Measures, cuts and plans.

    Args:
      layers: the network.
      num_stages: K.
      sample: inputs, [B, ...], of which only shapes and dtypes matter.
      targets: of as many examples, as the loss takes them.
      devices: one per stage.
      weights: the policy to plan for.
      jitter: how much later than measured hand-overs may come, in the time of a batch (`jaxdecouple.plan`).
      boundaries: a given cut, which always wins.
      profile: measured before, for the same layers, inputs and kind of device.
      repeats: of the measurements of stages.
      seconds: of one measurement of one function, about.
      **pipeline: further arguments of `Pipeline`: ``optimizer``, ``loss``.

    Raises:
      ValueError: the cut does not fit, or the profile is of another model, input shape or kind of device.
    """

    def measure(stages: tuple[Stage, ...]) -> Times:
        return stage_times(stages, sample, targets, devices, weights, repeats=repeats, seconds=seconds, **pipeline)

    if boundaries:
        profile = fitted = None
        stages = jd.partition(layers, num_stages, sample=sample, boundaries=boundaries)
        times = measure(stages)
    else:
        if profile is None:
            profile = jd.profile(layers, sample, device=devices[0])
        else:
            profile.check(layers, sample, devices[0])
        fitted, stages, times = fit(profile, layers, num_stages, sample, weights, measure)
    plan = jd.plan(times, jitter=jitter, weights=weights)
    return Choice(profile=profile, fitted=fitted, stages=stages, times=times, plan=plan)


def fit(
    profile: Profile,
    layers: Sequence[Any],
    num_stages: int,
    sample: PyTree,
    weights: Weights,
    measure: Callable[[tuple[Stage, ...]], Times],
    rounds: int = 3,
) -> tuple[Profile, tuple[Stage, ...], Times]:
    """Cuts, measures the stages, corrects the layers' times by what their stages took, and cuts again.

    Layers take less time within a stage than one by one, by how much differs along the network.

    Returns:
      The corrected profile, and of all cuts tried the one whose slowest stage was fastest, with its times.
    """
    tried: dict[tuple[int, ...], tuple[float, tuple[Stage, ...], Times]] = {}
    for _ in range(rounds):
        stages = jd.partition(layers, num_stages, sample=sample, costs=profile, weights=weights)
        cut = tuple(stage.first for stage in stages)
        if cut in tried:
            break
        times = measure(stages)
        tried[cut] = max(times.work(k, weights) for k in range(num_stages)), stages, times
        profile = corrected(profile, stages, times)
    _, stages, times = min(tried.values(), key=lambda entry: entry[0])
    return profile, stages, times


def corrected(profile: Profile, stages: Sequence[Stage], times: Times) -> Profile:
    """``profile``, scaled so that the layers of each stage take as long as the stage, joined if it can be."""
    forward, backward = list(profile.forward), list(profile.backward)
    for k, stage in enumerate(stages):
        own = slice(stage.first, stage.first + stage.num_layers)
        below, above = times.forward[k], times.backward[k]
        if k == len(stages) - 1:  # measured as a whole
            whole = (below + above) / (sum(forward[own]) + sum(backward[own]))
            below, above = whole * sum(forward[own]), whole * sum(backward[own])
        elif times.joined is not None:
            above = max(0.0, min(above, times.joined[k] - below))
        forward[own] = _scaled(forward[own], below)
        backward[own] = _scaled(backward[own], above)
    return dataclasses.replace(profile, forward=tuple(forward), backward=tuple(backward))


def _scaled(values: list[float], total: float) -> list[float]:
    return [value * total / sum(values) for value in values] if sum(values) else values


def stage_times(
    stages: Sequence[Stage],
    sample: PyTree,
    targets: PyTree,
    devices: Sequence[jax.Device],
    weights: Weights,
    *,
    repeats: int,
    seconds: float,
    **pipeline: Any,
) -> Times:
    """How long the stages' operations take, dispatched singly, and joined where a schedule can have them joined."""
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shape_of(sample)), targets
    singly = schedules.ddg(len(stages), weights=weights)
    joined = schedules.fdg(len(stages), weights=weights)
    rounds: dict[str, list[Round]] = {}
    built = jd.Pipeline(stages, singly, devices=devices, **pipeline)
    for schedule in (singly, joined):
        meter = OperationMeter(built.with_schedule(schedule), jax.random.key(0), batch)
        meter.round(0.0)  # compiles
        rounds[schedule.name] = [meter.round(seconds) for _ in range(repeats)]
    times = as_times(rounds[singly.name], weights, set(), host=0.0)
    if not joined_stages(joined):
        return times
    together = [statistics.median(column) for column in zip(*(r.batch for r in rounds[joined.name]), strict=True)]
    return dataclasses.replace(times, joined=tuple(together[:-1]))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
