"""When the operations of some ticks really started and ended, beside what the timeline makes of their durations."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence

from jaxdecouple.charts import Box, gantt, missing
from jaxdecouple.planning import Timeline, Times, timeline
from jaxdecouple.reports.run_files import RunFiles
from jaxdecouple.schedules import Schedule, redoes_forward
from jaxdecouple.schedules.schedule import LOOKS

_LOOK_OF = {
    "teach": "backward",
    "train": "loss",
    "learn": "loss",
    "backward_forward": "joined",
    "forward_loss": "loss",
    "input_gradient": "backward",
    "weight_gradient": "weight",
}
_FORWARD = 1 / 3  # of a forward and a backward that are one operation; only their sum matters once the pipeline is full


def timelines(files: RunFiles) -> str:
    """The measured Gantt chart and the predicted one, with their seconds per batch."""
    schedule, marks = files.schedule, files.marks
    if not marks:
        return missing("It was not measured when operations ran; the flag --mark_ticks=12 measures it.")
    looks = schedule.looks if schedule else LOOKS
    chart = functools.partial(gantt, x="time (ms)", looks=looks)
    try:
        spans = [(mark["operation"], mark["stage"], mark["tick"], mark["start"], mark["end"]) for mark in marks]
        boxes = [_box(_look(name), looks, stage, tick, start, end) for name, stage, tick, start, end in spans]
        times = _times(spans, schedule) if schedule else None
    except (KeyError, TypeError, statistics.StatisticsError):
        return missing("What was measured of operations is cut off, or of another version.")
    rows = [f"stage {stage}" for stage in range(1 + max(box.row for box in boxes))]
    ticks = sorted({tick for _, _, tick, _, _ in spans})
    html = f"<h3>Measured: {_pace(spans)}</h3>{chart(boxes, rows)}"
    if schedule is None or times is None:
        return html
    run = timeline(schedule, times, num_batches=ticks[-1] + 2 * schedule.drain + 2)
    predicted = _predicted(run, schedule, ticks)
    return (
        f"{html}<h3>Predicted: {1e3 * run.seconds_per_batch:.3g} ms per batch</h3>{chart(predicted, rows)}"
        "<p>The prediction takes the median of the measured durations, and lets nothing else take time: a device waits "
        "for data alone. What is slower above is the host, transfers, and devices that disturb one another.</p>"
    )


def _pace(spans: Sequence[tuple[str, int, int, float, float]]) -> str:
    """Seconds per batch, from the ends of the last stage's operations."""
    ends = sorted(end for operation, _, _, _, end in spans if operation in ("train", "forward_loss"))
    if len(ends) < 2:
        return "too few operations to tell a pace"
    return f"{1e3 * (ends[-1] - ends[0]) / (len(ends) - 1):.3g} ms per batch"


def _times(spans: Sequence[tuple[str, int, int, float, float]], schedule: Schedule) -> Times:
    """The median duration of each operation of each stage; what never ran alone is a part of what it ran with."""

    def median(stage: int, *operations: str) -> float | None:
        found = [end - start for name, k, _, start, end in spans if k == stage and name in operations]
        return statistics.median(found) if found else None

    forward, backward, joined, weight = [], [], [], []
    redone = redoes_forward(schedule.weights)
    for stage in range(schedule.num_stages):
        whole = median(stage, "train", "learn", "backward_forward", "forward_loss")
        alone, back = median(stage, "forward"), median(stage, "backward", "input_gradient")
        if whole is None:
            if back is None and schedule.splits_backward:
                back = 0.0  # of the first stage, which has no gradient to send down
            if alone is None or back is None:
                raise statistics.StatisticsError(f"stage {stage} has no measured operations")
            whole = alone + back
        if redone and alone is not None and back is not None:
            back = max(0.0, back - alone)  # `Times` has the backward without the forward that it redoes
        forward.append(_FORWARD * whole if alone is None else alone)
        backward.append((1 - _FORWARD) * whole if back is None else back)
        joined.append(median(stage, "backward_forward"))
        if schedule.splits_backward:  # `Times` has the backward with the gradient of the weights, which is a part of it
            weight.append(median(stage, "weight_gradient") or 0.0)
            backward[-1] += weight[-1]
    teach = [median(stage, "teach") or 0.0 for stage in range(schedule.num_stages - 1)]
    together = None if None in joined[:-1] or schedule.num_stages == 1 else joined[:-1]
    return Times(forward=forward, backward=backward, weight=weight or None, joined=together, teach=teach)


def _predicted(run: Timeline, schedule: Schedule, ticks: Sequence[int]) -> list[Box]:
    """The operations of the same ticks, from time 0 on."""
    boxes: list[Box] = []
    last = None
    for record in run:
        if not ticks[0] <= record.tick <= ticks[-1]:
            continue
        joined = last == record.dispatch
        look = "joined" if joined else schedule.look(record.kind, record.stage)
        boxes[len(boxes) - joined :] = [_box(look, schedule.looks, record.stage, record.tick, record.start, record.end)]
        last = record.dispatch
    origin = min(box.start for box in boxes)
    return [box._replace(start=box.start - origin, end=box.end - origin) for box in boxes]


def _look(operation: str) -> str:
    return _LOOK_OF.get(operation, operation)


def _box(look: str, looks: Mapping[str, str], stage: int, tick: int, start: float, end: float) -> Box:
    return Box(stage, 1e3 * start, 1e3 * end, look, f"{looks[look]}, tick {tick}")
