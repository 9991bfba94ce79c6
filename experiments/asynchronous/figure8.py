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
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.asynchronous import figures, races
from experiments.asynchronous.curves import Curve, Row, by, colour, draw, rows_of, shown
from experiments.report.workdir import Workdir
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result
from jaxdecouple.asynchronous.algorithms import step_sizes
from jaxdecouple.asynchronous.problems.components import Components

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 80  # rows of a curve
NAMES = {"dis_dfsdca": "Dis-dfSDCA", "distributed_asysvrg": "Distributed-AsySVRG"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure8(races.Costs):
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

    name = "figure8"
    claim = (
        "Dis-dfSDCA is faster than distributed asynchronous SVRG, with 4 and with 8 workers, since it computes one "
        "gradient of an example where SVRG computes two, and no full gradients (section 3.5.2)."
    )

    def check(self) -> None:
        super().check()
        if not (self.mu or self.margin):
            raise ValueError("mu and margin are 0, and nothing is left; write --mu=100 or --margin=0.5")
        if min(*self.dual_steps, *self.svrg_steps, *self.targets, *self.passes) <= 0:
            raise ValueError("dual_steps, svrg_steps, targets and passes are to be numbers above 0; write such")

    def vectors(self) -> np.ndarray:
        """Random vectors, their mean subtracted, each of norm 1."""
        x = np.random.default_rng(self.seed).standard_normal((self.n, self.d), np.float32).astype(self.dtype)
        x -= x.mean(axis=0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x

    def problems(self) -> dict[str, Components]:
        """The variants, by what they are called."""
        x = self.vectors()
        largest = float(np.linalg.eigvalsh(x.T @ x / self.n)[-1])
        mus = [self.mu, (1 + self.margin) * (largest + self.l2) if self.margin else 0.0]
        made = [(mu, asynchronous.pca(x, mu=mu, l2=self.l2)) for mu in mus if mu]
        kinds = {True: "all parts convex", False: "parts not convex"}
        return {f"mu = {mu:.4g}, {kinds[problem.convex_parts]}": problem for mu, problem in made}

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        """All runs, the best of each; suboptimality by that at w = 0 is the column "relative"."""
        curves = []
        for variant, problem in self.problems().items():
            for workers, method in itertools.product(self.workers, NAMES):
                curve = self._best(problem, {"variant": variant, "method": method, "workers": workers})
                curves.append(curve)
                times = ", ".join(f"{target:g} after {shown(time)} s" for target, time in self._times(curve).items())
                who = f"{variant}, {workers} workers, {NAMES[method]}"
                last = f"at the end {curve.last('relative'):.2e}; took {curve.about['took']} s"
                print(f"{who}: {times}; {last}", flush=True)
        return curves, {}

    def _times(self, curve: Curve) -> dict[float, float]:
        return {target: curve.reaches(target, "relative", "seconds") for target in self.targets}

    def _best(self, problem: Components, about: dict[str, Any]) -> Curve:
        dual, workers = about["method"] == "dis_dfsdca", about["workers"]
        h = self.local_steps if dual else self.batch_size
        solver = getattr(asynchronous, about["method"])
        first = float(problem.objective(problem.initial()) - problem.optimum()[1])
        constant = float(np.max(problem.smoothness))
        if dual:
            base = step_sizes.dual_free_default(problem, h=h, workers=workers)  # that of the solver
        else:
            base = 0.1 / (constant + problem.l2)
        found = []
        for factor, share in itertools.product(self.dual_steps if dual else self.svrg_steps, self.passes):
            inner_steps = max(workers, round(share * self.n / h))
            of_outer = inner_steps * h / self.n if dual else 1 + 2 * inner_steps * h / self.n
            steps = {"inner_steps": inner_steps, "outer_steps": max(1, round(self.epochs / of_outer))}
            size = {"local_steps" if dual else "batch_size": h, "workers": workers, "step_size": factor * base}
            begun = time.perf_counter()
            result = races.attempt(solver, problem, above=1e3 * abs(first) + 1, **self.options(), **size, **steps)
            if result is not None:
                own = {"step_size": factor * base, "factor": factor, "inner_steps": inner_steps}
                own["took"] = round(time.perf_counter() - begun, 1)
                found.append(Curve(about | own, _rows(result, first)))
        if not found:
            raise ValueError(f"all step sizes of {about['method']} diverge, {about['variant']}; write smaller ones")
        times = [sorted(self._times(curve).items()) for curve in found]
        scores = [
            ([time for _, time in of], abs(curve.last("relative"))) for of, curve in zip(times, found, strict=True)
        ]
        return found[scores.index(min(scores))]

    def found(self, curves: Sequence[Curve]) -> str:
        parts = []
        for (variant, workers), pair in by(curves, "variant", "workers").items():
            dual, svrg = (self._times(curve) for curve in pair)
            times = [f"{shown(dual[at])} against {shown(svrg[at])} to {at:g}" for at in self.targets]
            parts.append(f"{variant}, {workers} workers: {', '.join(times)}")
        return f"seconds to a suboptimality, by that of w = 0, of Dis-dfSDCA against SVRG: {'; '.join(parts)}."

    def columns(self, curves: Sequence[Curve]) -> figures.Columns:
        def time_to(target: float) -> Any:
            return lambda curve: shown(self._times(curve)[target])

        return {
            "variant": lambda curve: curve.about["variant"],
            "workers": lambda curve: str(curve.about["workers"]),
            "method": lambda curve: NAMES[curve.about["method"]],
            "eta": lambda curve: shown(curve.about["step_size"]),
            "times the solver's": lambda curve: shown(curve.about["factor"]),
            "T or m": lambda curve: str(curve.about["inner_steps"]),
            **{f"time to {target:g} (s)": time_to(target) for target in self.targets},
            "at the end": lambda curve: f"{curve.last('relative'):.2e}",
        }

    def draw(self, curves: Sequence[Curve], picture: Figure) -> None:
        """A panel for each variant and number of workers."""
        groups, rows = by(curves, "variant", "workers"), len(by(curves, "variant"))
        picture.set_size_inches(5.2 * len(groups) // rows, 3.6 * rows + 0.8)
        panels = picture.subplots(rows, len(groups) // rows, squeeze=False)
        for panel, ((variant, workers), pair) in zip(panels.ravel(), groups.items(), strict=True):
            panel.set(xlabel="time (s)", ylabel="P(w) - P(w*)", yscale="log", title=f"{variant}, {workers} workers")
            panel.title.set_fontsize(10)
            for index, curve in enumerate(pair):
                name = NAMES[curve.about["method"]]
                draw(panel, curve, "seconds", "suboptimality", name, color=colour(index), markersize=2)
            panel.grid(alpha=0.3)
        size = f"n = {self.n}, d = {self.d}, l2 = {self.l2:g}, {self.engine}"
        picture.suptitle(f"PCA step of eq. 3.40, {size}")
        picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def _rows(result: Result, first: float) -> list[Row]:
    kept = ("outer", "epochs", "seconds", "suboptimality")
    rows = [{name: row[name] for name in kept} for row in rows_of(result.trace)]
    step = max(1, len(rows) // _FEW)  # the beginning as it is, and some of the rest
    rows = [row for at, row in enumerate(rows) if at < _FEW or at % step == 0 or at == len(rows) - 1]
    return [row | {"relative": float(f"{row['suboptimality'] / first:.6g}")} for row in rows]


if __name__ == "__main__":
    Figure8.start()
