"""Plots: learning curves, schedules tick by tick, what diagnostics found, and the speeds of a benchmark."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.report.tables import Measured
from experiments.training.progress import Diagnosis, EpochRecord
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord
from jaxdecouple.schedules import Schedule
from jaxdecouple.schedules.schedule import LOOKS

matplotlib.use("Agg")  # no display needed

_MOST_DOTS = 60  # of a line of diagnostics; beyond, lines alone
_COLOURS = {"forward": "#4c8bc4", "backward": "#e0883a", "loss": "#5aa469", "weight": "#b8a13a"}


def curves(runs: Mapping[str, Sequence[Sequence[EpochRecord]]], path: pathlib.Path, title: str) -> None:
    """Training loss and test error over epochs: the mean of the seeds, with their range as a band for up to 3 labels.

    Args:
      runs: label -> one list of records per seed.
      path: of the PNG to write.
      title: of the picture.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"]
    for index, (label, seeds) in enumerate(runs.items()):
        epochs = [record.epoch for record in seeds[0]]
        losses = np.array([[record.train_loss for record in records] for records in seeds])
        errors = 100 * np.array([[record.test_error for record in records] for records in seeds])
        for panel, values in zip(panels, (losses, errors), strict=True):
            style = {"color": colours(index % 10), "linestyle": ("-", "--", ":", "-.")[index % 4]}
            panel.plot(epochs, values.mean(axis=0), label=label, linewidth=1.4, marker=".", **style)
            if len(seeds) > 1 and len(runs) <= 3:
                panel.fill_between(epochs, values.min(axis=0), values.max(axis=0), alpha=0.12, color=style["color"])
    panels[0].set(xlabel="epoch", ylabel="training loss (nats, mean over the epoch)", yscale="log")
    panels[1].set(xlabel="epoch", ylabel="test error (%)", yscale="log")
    ticker = matplotlib.ticker
    panels[1].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))  # all nine would cover one another
    panels[1].yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panels[1].yaxis.set_minor_formatter(ticker.NullFormatter())
    for panel in panels:
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3, which="both")
    figure.suptitle(title)
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)


def schedules(named: Mapping[str, Schedule], path: pathlib.Path, num_batches: int = 6) -> None:
    """Each schedule's operations, tick by tick, from the first batch to the end of the flush.

    A tick is an order of dispatch, not a time: boxes of one tick are drawn in the order in which they are dispatched.

    Args:
      named: label -> schedule.
      path: of the PNG to write.
      num_batches: how many batches to feed.
    """
    columns = 1 if len(named) == 1 else 2
    rows = -(-len(named) // columns)
    ticks = max(sum(1 for _ in schedule.run(num_batches)) for schedule in named.values())
    heights = 1.1 + 0.38 * max(schedule.num_stages for schedule in named.values())
    figure = Figure(figsize=(0.8 * ticks * columns + 1.5, heights * rows + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel, (label, schedule) in zip(panels, named.items(), strict=False):
        _draw_schedule(panel, schedule, num_batches, ticks)
        panel.set_title(label, fontsize=10, loc="left")
    for panel in panels[len(named) :]:
        panel.set_axis_off()
    split = any(schedule.splits_backward for schedule in named.values())
    looks = {look: LOOKS[look] for look in _COLOURS if split or look != "weight"}
    handles = [Rectangle((0, 0), 1, 1, color=_COLOURS[look]) for look in looks]
    style: dict[str, Any] = {"ncols": 4, "fontsize": 9, "title_fontsize": 9, "frameon": False}
    note = "boxes hold the number of their batch"
    figure.legend(handles, looks.values(), loc="outside lower center", title=note, **style)
    figure.savefig(path, dpi=120)


def diagnostics(records: Sequence[Diagnosis], path: pathlib.Path, title: str) -> None:
    """A run's diagnostics over the batches fed, in eight panels with a line per stage.

    Args:
      records: of one run, in order.
      path: of the PNG.
      title: of the picture.
    """
    gradients = [record for record in records if isinstance(record, GradientRecord)]
    directions = [record for record in records if isinstance(record, DirectionRecord)]
    figure = Figure(figsize=(17, 7), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    batches, ticks = [record.batch for record in gradients], [record.tick for record in directions]
    _lines(panels[0], batches, [r.staleness for r in gradients], "staleness (updates)")
    _lines(
        panels[1],
        batches,
        [r.weight_gap for r in gradients],
        "distance of the weights from the forward's (relative)",
    )
    _lines(panels[2], batches, [r.difference for r in gradients], "|gradient - true gradient| / |true gradient|")
    _lines(panels[3], batches, [r.mean_absolute for r in gradients], "mean of |gradient - true gradient| by parameter")
    _lines(panels[4], batches, [r.norm for r in gradients], "norm of the gradient (dashed: the true one's)")
    _lines(panels[4], batches, [r.true_norm for r in gradients], panels[4].get_title(), dashed=True)
    _lines(panels[5], batches, [r.cosine for r in gradients], "cosine of the gradient with the true one")
    _lines(panels[6], ticks, [r.sigma for r in directions], "sufficient direction constant, sigma")
    megabytes = [[size / 1e6 for size in r.bytes_in_flight] for r in directions]
    _lines(panels[7], ticks, megabytes, "in flight (MB)")
    for panel in panels:
        panel.set_xlabel("batch" if panel in panels[:6] else "tick")
        panel.grid(alpha=0.3)
    panels[6].axhline(0, color="black", linewidth=0.8)
    for panel, field in ((panels[3], "mean_absolute"), (panels[4], "norm")):
        if any(value for record in gradients for value in getattr(record, field)):
            panel.set_yscale("log")
    figure.suptitle(title)
    handles, labels = panels[7].get_legend_handles_labels()
    if not labels:
        handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=120)


def bars(results: Sequence[Measured], path: pathlib.Path, title: str) -> None:
    """Writes a PNG: each trainer's speed against the one worker, with the range over repeats, and as predicted."""
    figure = Figure(figsize=(9.5, 1.6 + 0.48 * len(results)), layout="constrained")
    panel = figure.subplots()
    places = range(len(results))
    ratios = [result.ratio for result in results]
    reach = [[r.ratio - min(r.ratios) for r in results], [max(r.ratios) - r.ratio for r in results]]
    style = {"error_kw": {"linewidth": 1.2, "capsize": 3}}
    panel.barh([p - 0.19 for p in places], ratios, 0.36, xerr=reach, color="#4c8bc4", label="measured", **style)
    known = [(p + 0.19, r.predicted_ratio) for p, r in zip(places, results, strict=True) if r.predicted_ratio]
    if known:
        label = "predicted from the times of single operations"
        panel.barh(*zip(*known, strict=True), 0.36, color="#e0883a", label=label)
    ends = [max(max(r.ratios), r.predicted_ratio or 0.0) for r in results]
    for place, result, end in zip(places, results, ends, strict=True):
        panel.annotate(f"{result.ratio:.2f}", (end, place), (5, 0), textcoords="offset points", va="center", size=9)
    panel.axvline(1.0, color="#444444", linewidth=0.8, linestyle="--")
    panel.set(xlabel="images per second, as a multiple of the one worker's", xlim=(0, 1.1 * max(ends)))
    panel.set_yticks(places, [result.label for result in results])
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=10, loc="left")
    note = {"range of the repeats": matplotlib.lines.Line2D([], [], color="black", linewidth=1.2)}
    handles, labels = panel.get_legend_handles_labels()
    figure.legend([*handles, *note.values()], [*labels, *note], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_schedule(panel: Axes, schedule: Schedule, num_batches: int, ticks: int) -> None:
    for tick, ops in schedule.run(num_batches):
        for stage in range(schedule.num_stages):
            boxes = [op for op in ops if op.stage == stage]
            for position, op in enumerate(boxes):
                width = 0.92 / len(boxes)
                left = tick + 0.04 + position * width
                colour = _COLOURS[schedule.look(op.kind, stage)]
                panel.add_patch(Rectangle((left, stage - 0.38), width, 0.76, facecolor=colour, edgecolor="white"))
                size = 8 if len(boxes) <= 2 else 5.5
                panel.text(left + width / 2, stage, op.batch, ha="center", va="center", color="white", fontsize=size)
    panel.set(xlim=(0, ticks), ylim=(schedule.num_stages - 0.5, -0.5), xlabel="tick")
    panel.set_xticks(np.arange(ticks) + 0.5, [str(tick) for tick in range(ticks)], fontsize=8)
    panel.set_yticks(range(schedule.num_stages), [f"stage {k}" for k in range(schedule.num_stages)], fontsize=8)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)


def _lines(panel: Axes, x: Sequence[int], rows: Sequence[Sequence[Any]], label: str, dashed: bool = False) -> None:
    colours = matplotlib.colormaps["viridis"]
    panel.set_title(label, fontsize=10)
    if not rows:
        panel.text(0.5, 0.5, "no probe fell into the run", ha="center", transform=panel.transAxes)
        return
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], float)
    for stage, column in enumerate(values.T):
        panel.plot(
            x,
            column,
            color=colours(stage / max(1, values.shape[1] - 1) * 0.9),
            linestyle="--" if dashed else "-",
            marker="." if len(x) <= _MOST_DOTS and not dashed else None,
            linewidth=1.2,
            label=None if dashed else f"stage {stage}",
        )
