"""A Gantt chart shows what each device does at any time, as a picture or as a trace for a browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxdecouple.charts import FILLS
from jaxdecouple.planning.memory import bytes_over_time
from jaxdecouple.planning.timelines import DeviceBox, Timeline, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 13.0  # inches


def save_gantt(
    timeline: Timeline, path: str | os.PathLike[str], *, start: float | None = None, stop: float | None = None
) -> None:
    """Writes a PNG: one row per device, one box per dispatch with the number of its batch; white is idle time.

    Args:
      timeline: what to draw.
      path: of the PNG.
      start, stop: seconds of the part to draw; by default from the start until the pipeline has filled and shown some
        of its steady state, or the whole run where that is short. A part with very many boxes is cut short.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is nothing between ``start`` and ``stop``.
    """
    try:
        from matplotlib.collections import PatchCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle
    except ImportError:
        raise ImportError("save_gantt draws with matplotlib; write pip install matplotlib") from None
    boxes, start, stop = timeline.window(start, stop)
    unit, scale = unit_of(stop)
    rows = timeline.num_devices
    row = max(0.16, min(0.45, 10 / rows))  # inches
    figure = Figure(figsize=(_WIDTH, 1.7 + row * rows), layout="constrained")
    axes = figure.add_subplot()
    shapes = [Rectangle((b.start / scale, b.device - 0.42), (b.end - b.start) / scale, 0.84) for b in boxes]
    colours = [(FILLS[box.look], _opacity(timeline, box)) for box in boxes]
    axes.add_collection(PatchCollection(shapes, facecolors=colours, edgecolors="white", linewidths=0.5))
    axes.set(xlim=(start / scale, stop / scale), ylim=(rows - 0.5, -0.5), xlabel=f"time ({unit})")
    _write_labels(axes, boxes, scale, size=min(8.0, 40 * row), with_stage=timeline.shares_devices)
    _name_rows(axes, timeline.rows)
    present = {box.look for box in boxes}
    handles = [Patch(color=FILLS[k], label=words) for k, words in timeline.schedule.looks.items() if k in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    title = timeline.title
    if timeline.shares_devices:
        title += "; written stage:batch, a device's higher stages paler"
    axes.set_title(title, fontsize=10, loc="left")
    figure.savefig(path, dpi=120)


def save_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Writes a trace in Chrome's JSON format, which chrome://tracing and ui.perfetto.dev show.

    Devices are the threads of one process and links those of another; times are in microseconds. With sizes, the
    bytes in flight are counters.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        file.write(",\n".join(map(json.dumps, _events(timeline))))
        file.write("\n]}\n")


def _write_labels(axes: Axes, boxes: list[DeviceBox], scale: float, size: float, with_stage: bool) -> None:
    """Batch numbers in ``size`` points, where a box is wide enough for one."""
    left, right = axes.get_xlim()
    inches = 0.88 * _WIDTH / (right - left)  # the rest is for the names of the rows
    for box in boxes:
        low, high = max(box.start / scale, left), min(box.end / scale, right)
        label = f"{box.stage}:{box.label}" if with_stage else box.label
        if (high - low) * inches > len(label) * size * 0.009 + 0.02:
            middle = (low + high) / 2
            axes.text(middle, box.device, label, ha="center", va="center", color="white", fontsize=size, clip_on=True)


def _opacity(timeline: Timeline, box: DeviceBox) -> float:
    """The stages of one device grow paler upwards."""
    stages = [stage for stage, place in enumerate(timeline.devices) if place == box.device]
    return 1 - 0.4 * stages.index(box.stage) / max(1, len(stages) - 1)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // 40)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=8 if len(names) <= 24 else 6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    devices, links = 0, 1  # process ids
    edges = timeline.schedule.num_stages - 1
    yield _metadata("process_name", devices, 0, f"{timeline.schedule.name}: devices")
    for device, name in enumerate(timeline.rows):
        yield _metadata("thread_name", devices, device, name)
    if edges:
        yield _metadata("process_name", links, 0, f"{timeline.schedule.name}: links")
    for edge in range(edges):
        yield _metadata("thread_name", links, 2 * edge, f"activations {edge} -> {edge + 1}")
        yield _metadata("thread_name", links, 2 * edge + 1, f"gradients {edge + 1} -> {edge}")
    arrivals = timeline.arrival.tolist()
    previous = None
    for record, arrival in zip(timeline, arrivals, strict=True):
        args = {"stage": record.stage, "batch": record.batch, "tick": record.tick}
        name = f"{record.kind.value}{record.batch}"
        event = _complete(name, devices, timeline.devices[record.stage], record.start, record.end, args)
        if previous is not None and previous["dispatch"] == record.dispatch:
            previous["event"]["name"] += f" {name}"  # the two of a joined dispatch are one slice
            previous["event"]["args"]["joined_batch"] = record.batch
        else:
            if previous is not None:
                yield previous["event"]
            previous = {"event": event, "dispatch": record.dispatch}
        up = record.kind.value == "F"
        edge = record.stage - 1 if up else record.stage
        crosses = edge >= 0 and record.kind.value != "W"
        seconds = (timeline.times.up if up else timeline.times.down)[edge] if crosses else 0.0
        if seconds:
            yield _complete(f"batch {record.batch}", links, 2 * edge + (not up), arrival - seconds, arrival, args)
    if previous is not None:
        yield previous["event"]
    if timeline.sizes is not None:
        yield from _counters(timeline, devices)


def _counters(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    for device in range(timeline.num_devices):
        for seconds, size in zip(*(column.tolist() for column in bytes_over_time(timeline, device)), strict=True):
            name = f"bytes in flight, device {device}"
            yield {"ph": "C", "name": name, "pid": process, "ts": 1e6 * seconds, "args": {"bytes": size}}


def _metadata(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}


def _complete(name: str, process: int, thread: int, start: float, end: float, args: dict[str, Any]) -> dict[str, Any]:
    times = {"ts": 1e6 * start, "dur": 1e6 * (end - start)}
    return {"ph": "X", "name": name, "pid": process, "tid": thread, **times, "args": args.copy()}
