"""The picture of a run's diagnostics: what was found at each stage, over the batches fed."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdecouple.diagnostics import DirectionRecord, GradientRecord

matplotlib.use("Agg")  # no display needed

_MOST_DOTS = 60  # beyond, lines alone


def picture(records: Sequence[GradientRecord | DirectionRecord], path: pathlib.Path, title: str) -> None:
    """Writes a PNG of six panels, a line per stage.

    Args:
      records: of one run, in order.
      path: of the PNG.
      title: of the picture.
    """
    gradients = [record for record in records if isinstance(record, GradientRecord)]
    directions = [record for record in records if isinstance(record, DirectionRecord)]
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    batches, ticks = [record.batch for record in gradients], [record.tick for record in directions]
    _lines(panels[0], batches, [r.staleness for r in gradients], "staleness (updates)")
    _lines(
        panels[1],
        batches,
        [r.weight_gap for r in gradients],
        "distance of the weights from the forward's (relative)",
    )
    _lines(panels[2], batches, [r.difference for r in gradients], "|gradient - true gradient| / |true gradient|")
    _lines(panels[3], batches, [r.norm for r in gradients], "norm of the gradient (dashed: the true one's)")
    _lines(panels[3], batches, [r.true_norm for r in gradients], panels[3].get_title(), dashed=True)
    _lines(panels[4], ticks, [r.sigma for r in directions], "sufficient direction constant, sigma")
    megabytes = [[size / 1e6 for size in r.bytes_in_flight] for r in directions]
    _lines(panels[5], ticks, megabytes, "in flight (MB)")
    for panel in panels:
        panel.set_xlabel("batch" if panel in panels[:4] else "tick")
        panel.grid(alpha=0.3)
    panels[4].axhline(0, color="black", linewidth=0.8)
    if any(value for record in gradients for value in record.norm):
        panels[3].set_yscale("log")
    figure.suptitle(title)
    handles, labels = panels[5].get_legend_handles_labels()
    if not labels:
        handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=120)


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
