"""Dis-dfSDCA against distributed asynchronous SVRG on a step of PCA (thesis, Figure 8): suboptimality against time.

    python -m experiments.asynchronous.figure8

Eq. 3.40 with random unit vectors whose mean was subtracted. With the thesis's mu = 100 every phi_i is convex, since
|x_i|^2 = 1 <= mu - l2. So there is another variant, with mu just above the largest eigenvalue of C plus l2: there the
sum is convex and its parts are not. P(w*) is that of the exact solution. Of each method's step sizes, multiples of the
solver's own, the one is shown that is first at the smallest target, or comes nearest to it.

The directory gets results.json, table.md and figure8.png.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time

import numpy as np
from matplotlib.figure import Figure

from experiments.asynchronous import figures, races, scales
from experiments.asynchronous.curves import Curve, Row, colour, draw, least, report, rows_of, shown, write
from experiments.asynchronous.scales import option
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result
from jaxdecouple.asynchronous.problems.components import Components

CLAIM = (
    "Dis-dfSDCA is faster than distributed asynchronous SVRG, with 4 and with 8 workers, since it computes one "
    "gradient of an example where SVRG computes two, and no full gradients (section 3.5.2)."
)
_FEW = 80  # rows of a curve
NAMES = {"dis_dfsdca": "Dis-dfSDCA", "distributed_asysvrg": "Distributed-AsySVRG"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(races.Costs):
    """What is compared; each field is a flag."""

    straggler_probability: float = option(0.0, "p: how often a message of worker 0 is late", thesis=0.2, least=0)
    n: int = option(20_000, "random vectors", thesis=500_000, least=2)
    d: int = option(50, "their length", thesis=500, least=2)
    mu: float = option(100.0, "mu of the first variant; 0: leave it out", least=0)
    margin: float = option(
        0.5,
        "mu of the second variant is this share above the largest eigenvalue of C plus l2; 0: leave it out",
        least=0,
    )
    l2: float = option(2.5e-3, "lambda; at both scales l2 n is the same", thesis=1e-4)
    workers: tuple[int, ...] = option((4, 8), "K", least=1)
    local_steps: int = option(10, "H, examples of a message of Dis-dfSDCA", thesis=100, least=1)
    batch_size: int = option(10, "examples of a message of SVRG", thesis=100, least=1)
    dual_steps: tuple[float, ...] = option(
        (0.03, 0.1, 0.3, 1.0, 3.0), "step sizes of Dis-dfSDCA, as multiples of the solver's own"
    )
    svrg_steps: tuple[float, ...] = option(
        (1.0, 3.0, 10.0, 30.0), "step sizes of SVRG, as multiples of a tenth of 1 / (L + l2)"
    )
    passes: tuple[float, ...] = option(
        (0.05, 0.5), "messages of an outer iteration, T or m, to try: as many as have this share of n examples"
    )
    epochs: int = option(20, "gradients of single examples in a run, by n", thesis=60, least=3)
    targets: tuple[float, ...] = option((1e-4, 1e-7, 1e-10), "suboptimalities to time, by that of w = 0")

    def check(self) -> None:
        super().check()
        if not (self.mu or self.margin):
            raise ValueError("mu and margin are 0, and nothing is left; write --mu=100 or --margin=0.5")
        if min(*self.dual_steps, *self.svrg_steps, *self.targets, *self.passes) <= 0:
            raise ValueError("dual_steps, svrg_steps, targets and passes are to be numbers above 0; write such")


def vectors(setting: Setting) -> np.ndarray:
    """Random vectors, their mean subtracted, each of norm 1."""
    x = np.random.default_rng(setting.seed).standard_normal((setting.n, setting.d), np.float32).astype(setting.dtype)
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def problems(setting: Setting) -> dict[str, Components]:
    """The variants, by what they are called."""
    x = vectors(setting)
    largest = float(np.linalg.eigvalsh(x.T @ x / setting.n)[-1])
    mus = [setting.mu, (1 + setting.margin) * (largest + setting.l2) if setting.margin else 0.0]
    made = [(mu, asynchronous.pca(x, mu=mu, l2=setting.l2)) for mu in mus if mu]
    kinds = {True: "all parts convex", False: "parts not convex"}
    return {f"mu = {mu:.4g}, {kinds[problem.convex_parts]}": problem for mu, problem in made}


def measure(setting: Setting) -> list[Curve]:
    """All runs, the best of each; suboptimality relative to that at w = 0 is the column "relative"."""
    curves = []
    for variant, problem in problems(setting).items():
        first = float(problem.objective(problem.initial()) - problem.optimum()[1])
        for workers in setting.workers:
            for method in NAMES:
                curve = _best(setting, problem, method, workers, variant, first)
                if curve is None:
                    raise ValueError(f"all step sizes of {method} diverge, {variant}; write smaller ones")
                curves.append(curve)
                print(line(curve, setting.targets), flush=True)
    return curves


def _times(curve: Curve, targets: tuple[float, ...]) -> list[float]:
    return [curve.reaches(target, "relative", "seconds") for target in targets]


def line(curve: Curve, targets: tuple[float, ...]) -> str:
    """A line for a terminal."""
    about = curve.about
    times = (f"{target:g} after {shown(time)} s" for target, time in zip(targets, _times(curve, targets), strict=True))
    who = f"{about['variant']}, {about['workers']} workers, {NAMES[about['method']]}"
    return f"{who}: {', '.join(times)}; at the end {curve.last('relative'):.2e}; took {about['took']} s"


def _best(setting: Setting, problem: Components, method: str, workers: int, variant: str, first: float) -> Curve | None:
    dual = method == "dis_dfsdca"
    constant = float(np.max(problem.smoothness))
    if dual:
        shared = workers * setting.local_steps * problem.curvature
        base = 1 / (problem.l2 * problem.n + 2 * constant + shared)  # that of the solver
    else:
        base = 0.1 / (constant + problem.l2)
    h = setting.local_steps if dual else setting.batch_size
    size = {"local_steps" if dual else "batch_size": h}
    found = []
    for factor, share in itertools.product(setting.dual_steps if dual else setting.svrg_steps, setting.passes):
        inner_steps = max(workers, round(share * setting.n / h))
        of_outer = inner_steps * h / setting.n if dual else 1 + 2 * inner_steps * h / setting.n
        steps = {"inner_steps": inner_steps, "outer_steps": max(1, round(setting.epochs / of_outer))}
        options = {**setting.options(), **size, **steps, "workers": workers}
        solver = getattr(asynchronous, method)
        begun = time.perf_counter()
        result = races.attempt(solver, problem, above=1e3 * abs(first) + 1, step_size=factor * base, **options)
        if result is not None:
            about = {
                "variant": variant,
                "method": method,
                "workers": workers,
                "step_size": factor * base,
                "factor": factor,
            }
            about |= {"inner_steps": inner_steps, "took": round(time.perf_counter() - begun, 1)}
            found.append(Curve(about, _rows(result, first)))
    return least(found, lambda curve: (*_times(curve, sorted(setting.targets)), abs(curve.last("relative"))))


def _rows(result: Result, first: float) -> list[Row]:
    kept = ("outer", "epochs", "seconds", "suboptimality")
    rows = [{name: row[name] for name in kept} for row in rows_of(result.trace)]
    step = max(1, len(rows) // _FEW)  # the beginning as it is, and some of the rest
    rows = [row for at, row in enumerate(rows) if at < _FEW or at % step == 0 or at == len(rows) - 1]
    return [row | {"relative": float(f"{row['suboptimality'] / first:.6g}")} for row in rows]


def found(curves: list[Curve], targets: tuple[float, ...]) -> str:
    """What the numbers say about the claim."""
    parts = []
    for mine in curves:
        if mine.about["method"] == "dis_dfsdca":
            key = mine.about["variant"], mine.about["workers"]
            other = next(c for c in curves if c is not mine and (c.about["variant"], c.about["workers"]) == key)
            times = zip(targets, _times(mine, targets), _times(other, targets), strict=True)
            pairs = [f"{shown(dual)} against {shown(svrg)} to {target:g}" for target, dual, svrg in times]
            parts.append(f"{key[0]}, {key[1]} workers: {', '.join(pairs)}")
    return f"seconds to a suboptimality, by that of w = 0, of Dis-dfSDCA against SVRG: {'; '.join(parts)}."


def as_markdown(curves: list[Curve], targets: tuple[float, ...]) -> str:
    """A row for each run."""
    times = [f"time to {target:g} (s)" for target in targets]
    rows = [["variant", "workers", "method", "eta", "times the solver's", "T or m", *times, "at the end"]]
    for curve in curves:
        about = curve.about
        rows.append(
            [
                about["variant"],
                str(about["workers"]),
                NAMES[about["method"]],
                shown(about["step_size"]),
                shown(about["factor"]),
                str(about["inner_steps"]),
                *map(shown, _times(curve, targets)),
                f"{curve.last('relative'):.2e}",
            ]
        )
    return markdown(rows)


def plot(curves: list[Curve], path: pathlib.Path, title: str) -> None:
    """A panel for each variant and number of workers."""
    keys = list(dict.fromkeys((curve.about["variant"], curve.about["workers"]) for curve in curves))
    variants = list(dict.fromkeys(variant for variant, _ in keys))
    columns = len(keys) // len(variants)
    figure = Figure(figsize=(5.2 * columns, 3.6 * len(variants) + 0.8), layout="constrained")
    panels = figure.subplots(len(variants), columns, squeeze=False)
    for panel, (variant, workers) in zip(panels.ravel(), keys, strict=True):
        panel.set(xlabel="time (s)", ylabel="P(w) - P(w*)", yscale="log", title=f"{variant}, {workers} workers")
        panel.title.set_fontsize(10)
        for index, (method, name) in enumerate(NAMES.items()):
            for curve in curves:
                about = curve.about
                if (about["variant"], about["workers"], about["method"]) == (variant, workers, method):
                    draw(panel, curve, "seconds", "suboptimality", name, color=colour(index), markersize=2)
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def run(setting: Setting, workdir: pathlib.Path, *, overwrite: bool = False) -> str:
    """Measures, writes everything, and returns table.md.

    Raises:
      ValueError: settings that cannot be used.
    """
    setting.check()
    output = Workdir(workdir, scales.described(setting), overwrite=overwrite)
    with scales.precision(setting.dtype):
        curves = measure(setting)
    text = report(CLAIM, found(curves, setting.targets), as_markdown(curves, setting.targets))
    write(output, scales.described(setting), curves, text)
    size = f"n = {setting.n}, d = {setting.d}, l2 = {setting.l2:g}, {setting.engine}"
    plot(curves, output.file("figure8.png"), f"PCA step of eq. 3.40, {size}")
    return text


if __name__ == "__main__":
    figures.start("figure8", Setting, run)
