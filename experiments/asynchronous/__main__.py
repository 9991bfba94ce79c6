"""Solves a problem with one of the asynchronous methods, or with what they are compared with.

    python -m experiments.asynchronous --method=dis_dfsdca --problem=ridge --data=digits --l2=0.1 --workers=4

The directory gets config.json, metrics.jsonl, summary.json and curves.png.
"""

from __future__ import annotations

import pathlib
import time
import warnings
from typing import Any

import numpy as np
from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.asynchronous.curves import Curve, described, draw, rounded
from experiments.asynchronous.solving import Solving
from experiments.report.workdir import Workdir, check_file
from experiments.settings import define, read
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple.asynchronous import DivergenceWarning, Problem, Record, StepSizeWarning
from jaxdecouple.asynchronous.sources import Source, classes, signs

FLAGS = flags.FLAGS


def run(setting: Solving, workdir: pathlib.Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Solves, and writes config.json, metrics.jsonl, summary.json and curves.png; returns the summary.

    Raises:
      ValueError: settings that cannot be used.
      NonFiniteLoss: the run diverged.
    """
    Workdir.check(workdir, overwrite=overwrite, inputs={"resume": setting.resume})
    checkpoint = pathlib.Path(setting.checkpoint).expanduser()
    in_workdir = checkpoint.absolute().is_relative_to(workdir.expanduser().absolute())
    if setting.checkpoint and not in_workdir:
        check_file("checkpoint", checkpoint)
    with devices.precision(setting.dtype):
        source = setting.load()
        problem = setting.make(source)
        output = Workdir(workdir, described(setting), overwrite=overwrite)
        if setting.checkpoint and in_workdir:
            output.path.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []

        def note(record: Record) -> None:
            rows.append(rounded(record.as_json()))
            output.append("metrics.jsonl", rows[-1])
            print(line(record, setting.outer_steps), flush=True)

        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", flush=True)
            warnings.simplefilter("once", StepSizeWarning)
            warnings.simplefilter("error", DivergenceWarning)
            try:
                result = setting.solve(problem, note)
            except DivergenceWarning as error:
                raise NonFiniteLoss(str(error).replace("step_size;", "--step_size;")) from None
        summary = {
            **rows[-1],
            "step_size": result.step_size,
            "lost": result.lost,
            "n": problem.n,
            "d": problem.d,
            **errors(setting, source, problem, np.asarray(result.w)),
            "took": round(time.perf_counter() - begun, 2),
            "data": source.name,
            **devices.describe(),
        }
    output.write_json("summary.json", summary)
    plot(Curve({}, rows), output.file("curves.png"), title(setting, source))
    return summary


def line(record: Record, outer_steps: int) -> str:
    """A line for a terminal."""
    parts = [f"outer {record.outer:3d}/{outer_steps}", f"epochs {record.epochs:7.2f}"]
    if record.seconds == record.seconds:
        parts.append(f"seconds {record.seconds:9.4f}")
    parts += [f"objective {record.objective:.8g}", f"|gradient|^2 {record.squared_gradient:.3e}"]
    if record.gap is not None:
        parts.append(f"gap {record.gap:.3e}")
    if record.suboptimality is not None:
        parts.append(f"suboptimality {record.suboptimality:.3e}")
    if record.largest_delay:
        parts.append(f"delay {record.mean_delay:.1f}, at most {record.largest_delay}")
    return "  ".join(parts)


def errors(setting: Solving, source: Source, problem: Problem, w: np.ndarray) -> dict[str, float]:
    """Shares of examples whose class is not told right, where the problem has classes."""
    binary = setting.problem in ("logistic", "smoothed_hinge") or setting.labels != "auto"
    if setting.problem == "pca" or not (binary or setting.problem == "network"):
        return {}
    found = {}
    for part, x, y in (("train", source.x, source.y), ("test", source.x_test, source.y_test)):
        if x is None:
            continue
        if setting.problem == "network":
            wrong = np.asarray(problem.phi.logits(w, x)).argmax(axis=1) != classes(y)
        else:
            wrong = np.where(x @ w > 0, 1, -1) != signs(y, setting.positive())
        found[f"{part}_error"] = round(float(np.mean(wrong)), 5)
    return found


def title(setting: Solving, source: Source) -> str:
    """What a picture says above."""
    workers = f"{setting.workers} workers, {setting.engine}"
    return f"{setting.method}, {setting.problem} on {source.name}, l2 = {setting.l2:g}, {workers}"


def plot(curve: Curve, path: pathlib.Path, title: str) -> None:
    """Objective, squared gradient, and gap or suboptimality against epochs, and against seconds if there is a clock."""
    timed = "seconds" in curve.rows[-1]
    wanted = {
        "objective": "objective P(w)",
        "squared_gradient": "squared gradient norm of P",
        "gap": "duality gap",
        "suboptimality": "suboptimality P(w) - P(w*)",
    }
    names = [name for name in wanted if np.isfinite(curve.column(name)).any()]
    places = {"epochs": "epochs (gradients of single examples, by n)"}
    if timed:
        places["seconds"] = "time (s)"
    from matplotlib.figure import Figure  # --help need not wait for it

    figure = Figure(figsize=(4.4 * len(names), 3.6 * len(places) + 0.5), layout="constrained")
    panels = figure.subplots(len(places), len(names), squeeze=False)
    for row, (place, below) in zip(panels, places.items(), strict=True):
        for panel, name in zip(row, names, strict=True):
            positive = (curve.column(name) > 0).any() and not (curve.column(name)[1:] < 0).any()
            panel.set(xlabel=below, ylabel=wanted[name], yscale="log" if positive else "linear")
            draw(panel, curve, place, name)
            panel.grid(alpha=0.3, which="both")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Solving)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="metrics.jsonl holds the outer iterations that were finished"):
        setting = read(Solving)
        workdir = pathlib.Path(FLAGS.workdir or Workdir.unused(f"runs/asynchronous-{setting.method}-{setting.problem}"))
        run(setting, workdir, overwrite=FLAGS.overwrite)
    print(f"everything is in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
