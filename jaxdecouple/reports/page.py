"""A page shows a run in any browser: one file that needs no network, no script and no other file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxdecouple.charts import lines, missing, table
from jaxdecouple.reports.run_files import RunFiles
from jaxdecouple.reports.timelines import timelines

_STYLE = (pathlib.Path(__file__).parent / "style.css").read_text()
_REFRESH = 15  # seconds after which a browser looks again at the page of a run that is under way


def report(run_directory: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes a page about a run, finished or under way, and gives its path.

    Args:
      run_directory: the workdir of `experiments.train`.
      path: of the page; by default ``report.html`` in the run's directory.

    Raises:
      ReportError: the directory holds no run.
    """
    files = RunFiles.read(run_directory)
    path = files.path / "report.html" if path is None else pathlib.Path(path).expanduser()
    partial = path.with_name(f"{path.name}.partial")  # a browser that reads meanwhile sees the page before
    partial.write_text(page(files), encoding="utf-8")
    partial.replace(path)
    return path


def page(files: RunFiles) -> str:
    """The page, as HTML."""
    title = _title(files)
    sections = {
        "Curves": _curves(files),
        "Schedule": _schedule(files),
        "Timeline": timelines(files),
        "Staleness and cut": _stages(files),
        "Diagnostics": _diagnostics(files),
        "Settings": _table(files.config),
        "Machine": _table({name: files.setup[name] for name in _MACHINE if name in files.setup}),
    }
    links = " ".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{_anchor(n)}"><h2>{n}</h2>{html}</section>' for n, html in sections.items())
    refresh = "" if files.finished else f'<meta http-equiv="refresh" content="{_REFRESH}">'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="description" content="{escape(title)}">{refresh}'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><header><h1>{escape(title)}</h1><p>{_standing(files)}</p>"
        f'<nav aria-label="sections">{links}</nav></header>'
        f"<main>{_remarks(files)}{body}</main></body></html>\n"
    )


_MACHINE = ("device", "platform", "devices", "machine", "python", "jax")


def _title(files: RunFiles) -> str:
    config, schedule = files.config, files.schedule
    method = schedule.name if schedule else config.get("method", "a run")
    return f"{method}, K = {config.get('num_stages', '?')}: {config.get('model', '?')} on {config.get('dataset', '?')}"


def _standing(files: RunFiles) -> str:
    """How far the run is, and how good."""
    epochs, last = files.config.get("epochs", "?"), files.metrics[-1] if files.metrics else {}
    found = "Finished."
    if not files.finished:
        where = f"after epoch {last.get('epoch', '?')} of {epochs}" if last else f"in the first of {epochs} epochs"
        found = f"Under way, or stopped, {where}."
    reached = {**last, **files.summary}
    if isinstance(reached.get("perplexity"), int | float):
        found += f" Perplexity {reached['perplexity']:.4g}."
    elif isinstance(reached.get("test_error"), int | float):
        found += f" Test error {100 * reached['test_error']:.2f} %."
    if files.speed and isinstance(speed := files.speed[-1].get("images_per_second"), int | float):
        found += f" {speed:.0f} {_unit(files)} per second."
    return found


def _unit(files: RunFiles) -> str:
    """What ``images_per_second`` counts: of texts, sequences."""
    return "sequences" if any("perplexity" in record for record in files.metrics) else "images"


def _curves(files: RunFiles) -> str:
    """A chart for the losses, and one for each other number of an epoch."""
    names = [name for name in dict.fromkeys(key for record in files.metrics for key in record) if name not in _TIME]
    losses = {_words(name): _points(files.metrics, name) for name in names if name.endswith("loss")}
    charts = [lines(losses, x="epoch", y="loss", log=True)]
    for name in names:
        if not name.endswith("loss"):
            charts.append(lines({_words(name): _points(files.metrics, name)}, x="epoch", y=_words(name)))
    speed = f"{_unit(files)} per second"
    charts.append(lines({speed: _points(files.speed, "images_per_second")}, x="epoch", y=speed))
    return _grid(charts)


_TIME = ("epoch", "ticks")


def _schedule(files: RunFiles) -> str:
    schedule = files.schedule
    if schedule is None:
        return missing("The run does not say what it dispatched, or says it in another version's way.")
    words = [f"policy of weights: {schedule.weights}"]
    for name in ("p", "q", "order", "chunks"):
        if hasattr(schedule, name):
            words.append(f"{name}: {getattr(schedule, name)}")
    return f"<p>{escape('; '.join(words))}. Boxes hold the number of their batch.</p>{schedule._repr_html_()}"


def _stages(files: RunFiles) -> str:
    staleness, layers = files.setup.get("staleness"), files.setup.get("layers_per_stage")
    if not isinstance(staleness, list) or not isinstance(layers, list):
        return missing("The run does not say.")
    rows = [["stage", "layers", "staleness of each gradient of a group (updates)"]]
    rows += [[str(k), str(n), ", ".join(map(str, s))] for k, (n, s) in enumerate(zip(layers, staleness, strict=False))]
    return table(rows)


def _diagnostics(files: RunFiles) -> str:
    """A chart for each thing that probes find, with a line per stage."""
    gradients = [record for record in files.diagnostics if record.get("probe") == "GradientRecord"]
    directions = [record for record in files.diagnostics if record.get("probe") == "DirectionRecord"]
    if not gradients and not directions:
        return missing("No probes were made; the flag --diagnose_every=10 makes them.")
    shown = {
        "staleness": ("staleness (updates)", False),
        "weight_gap": ("distance of the weights from the forward's", False),
        "difference": ("distance from the true gradient", False),
        "norm": ("norm of the gradient", True),
    }
    charts = [lines(_by_stage(gradients, name, "batch"), x="batch", y=y, log=log) for name, (y, log) in shown.items()]
    charts.append(lines(_by_stage(directions, "sigma", "tick"), x="tick", y="sufficient direction constant"))
    megabytes = _by_stage(directions, "bytes_in_flight", "tick", scale=1e-6)
    charts.append(lines(megabytes, x="tick", y="in flight (MB)"))
    return _grid(charts)


def _by_stage(
    records: Sequence[Mapping[str, Any]], name: str, x: str, scale: float = 1.0
) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for stage, value in enumerate(record.get(name) or ()):
            if isinstance(value, int | float):
                found.setdefault(f"stage {stage}", []).append((record[x], scale * value))
    return found


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    values = [(record.get("epoch"), record.get(name)) for record in records]
    return [(a, b) for a, b in values if isinstance(a, int | float) and isinstance(b, int | float)]


def _table(values: Mapping[str, Any]) -> str:
    rows = [[name, "" if value in ("", []) else str(value)] for name, value in values.items()]
    return table([["name", "value"], *rows]) if rows else missing("The run does not say.")


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid-of-charts">{"".join(charts)}</div>'


def _remarks(files: RunFiles) -> str:
    return "".join(f'<p class="missing">{escape(remark)}</p>' for remark in files.remarks)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
