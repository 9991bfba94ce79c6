"""Dis-dfSDCA against CoCoA+: duality gap against time and epochs, where a worker is sometimes late (thesis, Figure 6).

    python -m experiments.asynchronous.figure6
    python -m experiments.asynchronous.figure6 --data=libsvm:a9a --workers=4

The quadratic loss of eq. 3.38 with l2 = 0.1; the thesis has IJCNN1 on 4 workers, COVTYPE on 8, RCV1 on 16, with H =
100 and 1000. Without those files, --scale=thesis makes data of their sizes. At the small scale there are few examples,
and H and what messages cost are a tenth. Of the step sizes of Dis-dfSDCA the best is shown.

The directory gets results.json, table.md and figure6.png.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

from matplotlib.figure import Figure

from experiments.asynchronous import figures, races, scales
from experiments.asynchronous.curves import Curve, colour, draw, report, shown, write
from experiments.asynchronous.scales import option
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir

CLAIM = (
    "Dis-dfSDCA and CoCoA+ need about as many epochs, both converging linearly, and Dis-dfSDCA needs less time, with "
    "H = 100 and with H = 1000, since CoCoA+ waits for the straggler (section 3.5.1.1)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(races.Costs, races.Shape):
    """What is compared; each field is a flag."""

    data: tuple[str, ...] = option(
        ("made:10000x22:0.41", "made:20000x54:0.22", "made:20000x2000:0.01"),
        "data sets: libsvm:PATH, digits, npz:PATH, made:NxD:DENSITY",
        thesis=("made:49990x22:0.41", "made:581012x54:0.22", "made:677399x47236:0.0016"),
    )
    workers: tuple[int, ...] = option((4, 8, 16), "K for each data set, or one for all", least=1)
    local_steps: tuple[int, ...] = option((10, 100), "H, examples of a message", thesis=(100, 1000), least=1)
    step_sizes: tuple[float, ...] = option(
        (0.0, 1e-3, 1e-4), "eta to try; 0: the solver's own", thesis=(0.0, 1.0, 0.1, 1e-3, 1e-4), least=0
    )
    outer_steps: int = option(30, "S, outer iterations of an epoch each", thesis=100, least=1)
    target: float = option(1e-6, "the duality gap whose time is told")

    def check(self) -> None:
        super().check()
        if len(self.workers) not in (1, len(self.data)):
            raise ValueError(
                f"workers has {len(self.workers)} numbers, and there are {len(self.data)} data sets; write one for "
                "each, or one for all"
            )
        if not self.target > 0:
            raise ValueError(f"target is {self.target}; write a duality gap above 0, such as 1e-6")

    def pairs(self) -> list[tuple[str, int]]:
        """Data sets and their numbers of workers."""
        workers = self.workers * len(self.data) if len(self.workers) == 1 else self.workers
        return list(zip(self.data, workers, strict=True))


def measure(setting: Setting) -> list[Curve]:
    """All runs, the best of each."""
    curves = []
    for name, workers in setting.pairs():
        problem = setting.quadratic(name, dtype=setting.dtype, seed=setting.seed)
        for method in races.NAMES:
            for h in setting.local_steps:
                about = {
                    "data": scales.named(name),
                    "n": problem.n,
                    "d": problem.d,
                    "method": method,
                    "workers": workers,
                    "h": h,
                }
                curve = races.tuned(
                    problem,
                    method,
                    setting.step_sizes,
                    lambda curve: (curve.reaches(setting.target, "gap", "seconds"), curve.last("gap")),
                    about,
                    workers=workers,
                    local_steps=h,
                    outer_steps=setting.outer_steps,
                    **setting.options(),
                )
                if curve is None:
                    raise ValueError(f"all step sizes diverge on {name} with H = {h}; write smaller --step_sizes")
                curves.append(curve)
                print(line(curve, setting.target), flush=True)
    return curves


def line(curve: Curve, target: float) -> str:
    """A line for a terminal."""
    about = curve.about
    seconds, epochs = (curve.reaches(target, "gap", within) for within in ("seconds", "epochs"))
    who = f"{about['data']}, {about['workers']} workers, {races.NAMES[about['method']]}, H = {about['h']}"
    when = f"{shown(seconds)} s, {shown(epochs)} epochs"
    return f"{who}: gap {target:g} after {when}; at the end {curve.last('gap'):.2e}"


def found(curves: list[Curve], target: float) -> str:
    """What the numbers say about the claim."""
    free = [curve for curve in curves if curve.about["method"] == "dis_dfsdca"]
    faster, ratios = 0, []
    for curve in free:
        other = _rival(curve, curves)
        mine, its = (each.reaches(target, "gap", "seconds") for each in (curve, other))
        faster += mine < its
        epochs = [each.reaches(target, "gap", "epochs") for each in (curve, other)]
        if all(map(math.isfinite, epochs)):
            ratios.append(epochs[0] / epochs[1])
    text = f"Dis-dfSDCA reaches a gap of {target:g} before CoCoA+ with the same H in {faster} of {len(free)} cases"
    if ratios:
        span = " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (min(ratios), max(ratios))))
        text += f"; it takes {span} times as many epochs, where both get there"
    return text + "."


def _rival(curve: Curve, curves: list[Curve]) -> Curve:
    same = ("data", "workers", "h")
    return next(
        other
        for other in curves
        if other.about["method"] == "cocoa_plus" and all(other.about[key] == curve.about[key] for key in same)
    )


def as_markdown(curves: list[Curve], target: float) -> str:
    """A row for each run."""
    rows = [
        [
            "data",
            "n x d",
            "workers",
            "method",
            "H",
            "eta",
            f"time to gap {target:g} (s)",
            "epochs to it",
            "gap at the end",
        ]
    ]
    for curve in curves:
        about = curve.about
        rows.append(
            [
                about["data"],
                f"{about['n']} x {about['d']}",
                str(about["workers"]),
                races.NAMES[about["method"]],
                str(about["h"]),
                shown(about.get("step_size", math.nan)),
                shown(curve.reaches(target, "gap", "seconds")),
                shown(curve.reaches(target, "gap", "epochs")),
                f"{curve.last('gap'):.2e}",
            ]
        )
    return markdown(rows)


def plot(curves: list[Curve], path: pathlib.Path, title: str) -> None:
    """A row of two panels for each data set: the gap against time, and against epochs."""
    names = list(dict.fromkeys(curve.about["data"] for curve in curves))
    figure = Figure(figsize=(10, 3.3 * len(names) + 0.8), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    sizes = sorted({curve.about["h"] for curve in curves})
    for row, name in zip(panels, names, strict=True):
        for panel, (x, below) in zip(row, (("seconds", "time (s)"), ("epochs", "epochs")), strict=True):
            panel.set(xlabel=below, ylabel="duality gap", yscale="log")
            for curve in curves:
                if curve.about["data"] == name:
                    label = f"{races.NAMES[curve.about['method']]}, H = {curve.about['h']}"
                    dashes = "--" if curve.about["method"] == "cocoa_plus" else "-"
                    draw(panel, curve, x, "gap", label, linestyle=dashes, color=colour(sizes.index(curve.about["h"])))
            panel.grid(alpha=0.3, which="both")
            workers = next(curve.about["workers"] for curve in curves if curve.about["data"] == name)
            panel.set_title(f"{name}, {workers} workers", fontsize=10)
    figure.suptitle(title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def run(setting: Setting, workdir: pathlib.Path, *, overwrite: bool = False) -> str:
    """Measures, writes everything, and returns table.md.

    Raises:
      ValueError: settings that cannot be used.
    """
    setting.check()
    Workdir.check(workdir, overwrite=overwrite)
    output = Workdir(workdir, scales.described(setting), overwrite=overwrite)
    with scales.precision(setting.dtype):
        curves = measure(setting)
    text = report(CLAIM, found(curves, setting.target), as_markdown(curves, setting.target))
    write(output, scales.described(setting), curves, text)
    low, high = setting.straggler_slowdown
    late = f"worker 0 late with p = {setting.straggler_probability:g} by {low:g} to {high:g} computing times"
    plot(curves, output.file("figure6.png"), f"quadratic loss, l2 = {setting.l2:g}, {setting.engine}; {late}")
    return text


if __name__ == "__main__":
    figures.start("figure6", Setting, run)
