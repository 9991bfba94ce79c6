"""A chart is a picture as text, SVG, that fits the width of what shows it: a page, or a notebook.

A page's style may change its colours. A notebook has no style for it, so that what it shows has colours of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 24.0, 12.0, 40.0  # margins
COLOURS = 8  # classes c0 to c7 of the page's style
FILLS = {"forward": "#3d77ad", "backward": "#b25f1a", "loss": "#3f8050", "joined": "#8a6499", "weight": "#866b22"}


class Box(NamedTuple):
    """A box of a Gantt chart, on ``row``, the lowest being 0; ``look`` is one of `FILLS`."""

    row: int
    start: float
    end: float
    look: str
    label: str


def lines(series: Mapping[str, Points], *, x: str, y: str, log: bool = False) -> str:
    """Lines through points, with a legend.

    Args:
      series: label -> (x, y), in order of x. What is not finite is left out, as is what is not above 0 if ``log``.
      x, y: names of the axes.
      log: whether y is drawn by its logarithm.
    """
    shown = {name: _drawable(points, log) for name, points in series.items()}
    every = [point for points in shown.values() for point in points]
    if not every:
        return missing(f"{y}: nothing to draw yet.")
    x_ticks, y_ticks = _ticks([p[0] for p in every]), _ticks([p[1] for p in every], log)
    across = _Scale(x_ticks, LEFT, WIDTH - RIGHT)
    up = _Scale(y_ticks, HEIGHT - BOTTOM, TOP, log)
    parts = [*_axes(across, up, x)]
    for index, (name, points) in enumerate(shown.items()):
        look = f"c{index % COLOURS}"
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        parts.append(f'<polyline class="line {look}" points="{path}"/>')
        if len(points) <= 60:
            parts += [
                f'<circle class="dot {look}" cx="{across(a):.1f}" cy="{up(b):.1f}" r="2.5">'
                f"<title>{escape(name)}: {_short(b)} at {_short(a)}</title></circle>"
                for a, b in points
            ]
    legend = _legend(series) if len(series) > 1 else ""
    return _figure(f"{y} over {x}", y, "".join(parts), WIDTH, HEIGHT, legend)


def gantt(boxes: Iterable[Box], rows: Sequence[str], *, x: str, looks: Mapping[str, str]) -> str:
    """Boxes over time, in rows.

    Args:
      boxes: what to draw; the first starts at the left.
      rows: their names, the first at the bottom.
      x: name of the axis.
      looks: what each look means, for the legend, which has those that are there.
    """
    boxes = list(boxes)
    if not boxes:
        return missing("There is nothing to draw.")
    row, wide = 26.0, 1.6 * WIDTH
    top = [TOP + row * (len(rows) - 1 - index) for index in range(len(rows))]
    height = BOTTOM + TOP + row * len(rows)
    span = [min(box.start for box in boxes), max(box.end for box in boxes)]
    margin = max(LEFT, 7 * max(map(len, rows)) + 12)
    across = _Scale(_ticks(span), margin, wide - RIGHT)
    names = ((top[k] + 0.65 * row, escape(name)) for k, name in enumerate(rows))
    parts = [f'<text class="name" text-anchor="start" x="4" y="{y:.0f}">{name}</text>' for y, name in names]
    parts += _x_axis(across, x, height, wide, margin)
    for box in boxes:
        left, right, y = across(box.start), across(box.end), top[box.row]
        title = f"<title>{escape(box.label)}: {_short(box.start)} to {_short(box.end)}</title>"
        size = f'x="{left:.1f}" y="{y + 2:.1f}" width="{max(0.5, right - left):.1f}" height="{row - 4:.0f}"'
        colours = f'fill="{FILLS[box.look]}" stroke="#ffffff" stroke-width="0.6"'
        parts.append(f'<rect class="box {escape(box.look)}" {colours} {size}>{title}</rect>')
        text = box.label.rpartition(" ")[2]
        if right - left > 7 * len(text):
            middle = f'x="{(left + right) / 2:.1f}" y="{y + 0.65 * row:.1f}"'
            parts.append(f'<text class="in" fill="#ffffff" {middle}>{escape(text)}</text>')
    present = {box.look for box in boxes}
    keys = ((FILLS[look], escape(words)) for look, words in looks.items() if look in present)
    legend = " ".join(f'<span style="color: {fill}">&#9632;</span> {words} &ensp;' for fill, words in keys)
    return _figure(f"operations over {x}", "", "".join(parts), wide, height, legend)


class _Scale:
    """From values to places in the picture."""

    def __init__(self, ticks: Sequence[float], low: float, high: float, log: bool = False):
        self.ticks, self._low, self._high, self._log = ticks, low, high, log
        self._from, self._to = self._place(ticks[0]), self._place(ticks[-1])

    def __call__(self, value: float) -> float:
        part = (self._place(value) - self._from) / ((self._to - self._from) or 1.0)
        return self._low + part * (self._high - self._low)

    def _place(self, value: float) -> float:
        return math.log10(value) if self._log else value


def _drawable(points: Points, log: bool) -> list[tuple[float, float]]:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b) and (b > 0 or not log)]


def _ticks(values: Sequence[float], log: bool = False) -> list[float]:
    """Round numbers that enclose the values: powers of ten, or steps of 1, 2 or 5 times one."""
    low, high = min(values), max(values)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        if last - first <= 1:  # within a decade, powers of ten say nothing
            return [low, *(m * 10.0**first for m in (1, 2, 3, 5, 7, 10) if low < m * 10.0**first < high), high]
        return [10.0**power for power in range(first, last + 1)]
    if low == high:
        low, high = min(0.0, low), high or 1.0
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    if all(float(value).is_integer() for value in values):
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _axes(across: _Scale, up: _Scale, x: str) -> Iterable[str]:
    for tick in up.ticks:
        place = up(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield f'<text class="tick end" x="{LEFT - 6}" y="{place + 4:.1f}">{_short(tick)}</text>'
    yield from _x_axis(across, x, HEIGHT, WIDTH, LEFT)


def _x_axis(across: _Scale, x: str, height: float, width: float, start: float) -> list[str]:
    bottom = height - BOTTOM
    parts = [
        f'<line class="rule" stroke="currentColor" x1="{start}" x2="{width - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    ]
    parts += [f'<text class="tick" x="{across(t):.1f}" y="{bottom + 15}">{_short(t)}</text>' for t in across.ticks]
    return [*parts, f'<text class="axis" x="{(start + width) / 2}" y="{height - 6}">{escape(x)}</text>']


def _legend(names: Iterable[str]) -> str:
    keys = ((k % COLOURS, escape(name)) for k, name in enumerate(names))
    return " ".join(f'<span class="c{k}">&#9632;</span> {name} &ensp;' for k, name in keys)


def _figure(name: str, head: str, body: str, width: float, height: float, legend: str) -> str:
    size = f'class="{"wide" if width > WIDTH else ""}" viewBox="0 0 {width:.0f} {height:.0f}"'
    text = 'font-family="system-ui, sans-serif" font-size="12" text-anchor="middle" fill="currentColor"'
    svg = f'<svg {size} role="img" aria-label="{escape(name)}" {text}>{body}</svg>'
    title = f'<p class="head">{escape(head)}</p>' if head else ""
    reached = ' tabindex="0"' if width > WIDTH else ""  # what may have to be scrolled sideways, by keys as well
    return f"<figure{reached}>{title}{svg}<figcaption>{legend}</figcaption></figure>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the heads of the columns."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def missing(text: str) -> str:
    """A sentence in a picture's place."""
    return f'<p class="missing">{escape(text)}</p>'


def _short(value: float) -> str:
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
