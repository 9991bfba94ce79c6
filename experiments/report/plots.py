"""Plots: learning curves, and schedules drawn tick by tick."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.training.progress import EpochRecord
from jaxdecouple.schedules import FORWARD, Schedule

matplotlib.use("Agg")  # no display needed

_FORWARD_COLOUR, _BACKWARD_COLOUR, _LOSS_COLOUR = "#4c8bc4", "#e0883a", "#5aa469"


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
    for set_formatter in (panels[1].yaxis.set_major_formatter, panels[1].yaxis.set_minor_formatter):
        set_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for panel in panels:
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
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in (_FORWARD_COLOUR, _BACKWARD_COLOUR, _LOSS_COLOUR)]
    labels = ["forward of batch n", "backward and update", "forward, loss, backward, update"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_schedule(panel: matplotlib.axes.Axes, schedule: Schedule, num_batches: int, ticks: int) -> None:
    for tick, ops in schedule.run(num_batches):
        for stage in range(schedule.num_stages):
            boxes = [op for op in ops if op.stage == stage]
            for position, op in enumerate(boxes):
                width = 0.92 / len(boxes)
                left = tick + 0.04 + position * width
                colour = _FORWARD_COLOUR if op.kind is FORWARD else _BACKWARD_COLOUR
                colour = _LOSS_COLOUR if op.kind is FORWARD and schedule.learns_in_forward(stage) else colour
                panel.add_patch(Rectangle((left, stage - 0.38), width, 0.76, facecolor=colour, edgecolor="white"))
                size = 8 if len(boxes) <= 2 else 5.5
                panel.text(left + width / 2, stage, op.batch, ha="center", va="center", color="white", fontsize=size)
    panel.set(xlim=(0, ticks), ylim=(schedule.num_stages - 0.5, -0.5), xlabel="tick")
    panel.set_xticks(np.arange(ticks) + 0.5, [str(tick) for tick in range(ticks)], fontsize=8)
    panel.set_yticks(range(schedule.num_stages), [f"stage {k}" for k in range(schedule.num_stages)], fontsize=8)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
