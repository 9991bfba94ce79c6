"""The results of a benchmark: a table on screen, the same as Markdown, and a bar chart."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from experiments.measure import throughput
from experiments.measure.operation_times import Round
from experiments.report.markdown import markdown

matplotlib.use("Agg")  # no display needed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one trainer. Fields that only a pipeline has are empty for other trainers.

    Attributes:
      label: of the row.
      batch_size: images per tick; ``accumulate``: ticks per update.
      images_per_second: one measurement per repeat.
      ratios: of these to the one worker's, within each repeat.
      predicted_images_per_second: what the timeline makes of the times of single operations.
      predicted_ratio: the same against the one worker's median.
      rounds: the times of single operations, one measurement per repeat.
      host_seconds: of each measured tick, spent in `Pipeline.step`, all stages together.
      host_processor_seconds: those of them that the host's thread was on a processor.
      compile_seconds, compilations: from the first batch until the pipeline was filled.
      peak_bytes: for each device; empty where not measured.
      staleness: for each stage the staleness of each gradient of a group.
      weights: the policy of a backward pass; ``schedule``: what was dispatched.
      layers_per_stage: the cut.
    """

    label: str
    batch_size: int
    accumulate: int
    images_per_second: list[float]
    ratios: list[float]
    predicted_images_per_second: float | None = None
    predicted_ratio: float | None = None
    rounds: list[Round] = dataclasses.field(default_factory=list)
    host_seconds: list[float] = dataclasses.field(default_factory=list)
    host_processor_seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float
    compilations: int
    peak_bytes: list[int]
    staleness: list[list[int]] = dataclasses.field(default_factory=list)
    weights: str = ""
    schedule: str = ""
    layers_per_stage: list[int]

    @property
    def ratio(self) -> float:
        """Images per second against the one worker: the median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def host_ms(self) -> float | None:
        """Milliseconds per stage and tick that the host spends in `Pipeline.step`, median."""
        if not self.host_seconds:
            return None
        return 1e3 * statistics.median(self.host_seconds) / len(self.layers_per_stage)

    def cells(self) -> list[str]:
        """The row's text, in the order of `HEADER`."""
        rates = self.images_per_second
        return [
            self.label,
            _rate(statistics.median(rates)),
            f"{_rate(min(rates))}..{_rate(max(rates))}",
            f"{self.ratio:.2f}",
            _number(self.predicted_ratio, ".2f"),
            _number(self.host_ms, ".2f"),
            f"{self.compile_seconds:.1f}",
            str(self.compilations),
            " / ".join(f"{peak / 1e6:.0f}" for peak in self.peak_bytes) or "-",
            " / ".join(map(_levels, self.staleness)) or "-",
            " + ".join(map(str, self.layers_per_stage)),
        ]


HEADER = [
    "trainer",
    "images/s",
    "range",
    "ratio to one worker",
    "predicted",
    "host, ms per stage and tick",
    "compilation, s",
    "compilations",
    "peak MB per device",
    "staleness by stage",
    "layers by stage",
]


def as_text(results: Sequence[Result]) -> str:
    """The table for a terminal; long headings in two lines."""
    heads = [_halves(name) for name in HEADER]
    table = [[a for a, _ in heads], [b for _, b in heads], *(result.cells() for result in results)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines[:2], "-" * max(map(len, lines)), *lines[2:]])


def as_markdown(results: Sequence[Result]) -> str:
    """The table for a README."""
    return markdown([HEADER, *(result.cells() for result in results)])


def against(results: Sequence[Result], label: str) -> str:
    """A line: how fast the others are against that row."""
    base = next(result for result in results if result.label == label)
    others = ", ".join(
        f"{result.label} {throughput.ratio(result.images_per_second, base.images_per_second):.2f}"
        for result in results
        if result is not base
    )
    return f"against {label}: {others}"


def bars(results: Sequence[Result], path: pathlib.Path, title: str) -> None:
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


def _rate(value: float) -> str:
    """Without decimals where there are three digits anyway."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _levels(levels: Sequence[int]) -> str:
    """One number where all gradients of a group are equally old, else each of them."""
    return str(levels[0]) if len(set(levels)) == 1 else ",".join(map(str, levels))


def _halves(name: str) -> tuple[str, str]:
    """A long heading in two lines, cut at the space nearest to its middle."""
    spaces = [index for index, character in enumerate(name) if character == " "]
    if len(name) < 10 or not spaces:
        return "", name
    middle = min(spaces, key=lambda index: abs(index - len(name) // 2))
    return name[:middle], name[middle + 1 :]
