"""Speed-ups: by how much sooner a target is reached with more workers (eqs. 2.52 and 3.39)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.asynchronous import figures
from experiments.asynchronous.curves import Curve, colour, draw, label_logarithms, rows_of, shown
from experiments.asynchronous.races import Costs, attempt
from experiments.asynchronous.solving import DTYPES
from experiments.report.workdir import Workdir
from experiments.settings import option
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result
from jaxdecouple.asynchronous.sources import classes, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_serial(workers: Sequence[int]) -> None:
    """Refuses numbers of workers that speed-ups cannot be told of.

    Raises:
      ValueError: 1 is not among them.
    """
    if 1 not in workers:
        raise ValueError(f"workers is {','.join(map(str, workers))}; write 1 too, which speed-ups compare with")


def common_target(curves: Sequence[Curve], of: str) -> float:
    """A value of the column that all the curves reach: the largest of their smallest."""
    return float(max(curve.column(of).min() for curve in curves)) * (1 + 1e-6)


def speedups(curves: Sequence[Curve], target: float, of: str) -> dict[int, float]:
    """For each number of workers the time of one worker by its time; NaN where one of them does not get there."""
    times = {curve.about["workers"]: curve.reaches(target, of, "seconds") for curve in curves}
    serial = times.get(1, math.inf)
    return {
        workers: serial / time if math.isfinite(serial) and 0 < time < math.inf else math.nan
        for workers, time in sorted(times.items())
    }


def described(factors: Mapping[int, float]) -> str:
    """Speed-ups for a sentence."""
    return ", ".join(f"{shown(factor)} with {workers}" for workers, factor in factors.items() if workers > 1)


def columns(factors: Callable[[Curve], float]) -> dict[str, Callable[[Curve], str]]:
    """Columns of a table: the speed-up of a curve, and its share of the ideal one."""

    def share(curve: Curve) -> str:
        ideal = factors(curve) / curve.about["workers"]
        return f"{100 * ideal:.0f} %" if math.isfinite(ideal) else "-"

    return {"speed-up": lambda curve: shown(factors(curve)), "of ideal": share}


def draw_speedups(axes: Axes, named: Mapping[str, Mapping[int, float]]) -> None:
    """Speed-ups against workers, and the ideal line."""
    all_workers = sorted({workers for factors in named.values() for workers in factors})
    axes.plot(all_workers, all_workers, color="grey", linestyle=":", label="ideal")
    for index, (label, factors) in enumerate(named.items()):
        marker = "os^D"[index % 4]
        axes.plot(list(factors), list(factors.values()), marker=marker, color=colour(index), label=label)
    axes.set(xlabel="workers", ylabel="time speed-up")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(all_workers, [str(workers) for workers in all_workers])
    axes.set_yticks(all_workers, [str(workers) for workers in all_workers])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Costs):
    """What is trained, and how; each field is a flag."""

    data: str = option("digits", "npz:PATH, digits or made:NxD", thesis="npz:mnist.npz")
    num_examples: int = option(0, "the first so many training examples; 0: all", thesis=10_000, least=0)
    hidden: int = option(32, "units of the hidden layer", thesis=100, least=1)
    l2: float = option(1e-3, "C, weight of the regularisation", least=0)
    batch_size: int = option(10, "|I|, examples of an update", least=1)
    inner_steps: int = option(1_000, "m, updates of an outer iteration; 0: as many as read n examples", least=0)
    workers: tuple[int, ...] = option((1, 2, 4, 8, 16, 32), "numbers of workers, 1 among them", least=1)
    step_size: float = option(0.05, "eta")
    outer_steps: int = option(10, "S, outer iterations", thesis=50, least=1)
    target: float = option(0.0, "the training loss whose time is taken; 0: the least that all reach", least=0)
    straggler_probability: float = option(0.0, "p: how often a message of worker 0 is late", least=0)
    dtype: str = option("float32", "float64 or float32", choices=DTYPES, thesis="float64")

    def check(self) -> None:
        super().check()
        check_serial(self.workers)
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; write a number above 0, such as 0.05")

    def solver(self) -> Callable[..., Result]:
        """What trains."""
        raise NotImplementedError

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        """A curve for each number of workers.

        Raises:
          ValueError: the data cannot be had, or the step size is too large.
        """
        source = load(self.data, dtype=np.dtype(self.dtype), seed=self.seed).first(self.num_examples)
        if source.is_sparse:
            raise ValueError(f"{source.name} is sparse, and a network needs dense data; write digits or npz:PATH")
        problem = asynchronous.network(source.x, classes(source.y), hidden=self.hidden, l2=self.l2, seed=self.seed)
        shape = {name: getattr(self, name) for name in ("step_size", "batch_size", "outer_steps")}
        shape["inner_steps"] = self.inner_steps or -(-problem.n // self.batch_size)
        curves = []
        for workers in self.workers:
            result = attempt(self.solver(), problem, workers=workers, **shape, **self.options())
            if result is None:
                raise ValueError(f"step_size is {self.step_size}, and {workers} workers diverge; write a smaller one")
            about = {"workers": workers, "n": problem.n, "d": problem.d, "data": source.name}
            curves.append(Curve(about, rows_of(result.trace)))
            last = result.trace[-1]
            print(
                f"{workers} workers: loss {last.objective:.5g} after {last.seconds:.4g} s, delay {last.mean_delay:.1f} "
                f"on average, at most {last.largest_delay}",
                flush=True,
            )
        return curves, {"target": self.reached(curves)}

    def reached(self, curves: Sequence[Curve]) -> float:
        """The training loss whose time is taken."""
        return self.target or common_target(curves, "objective")

    def factors(self, curves: Sequence[Curve]) -> dict[int, float]:
        """Speed-ups by number of workers."""
        return speedups(curves, self.reached(curves), "objective")

    def found(self, curves: Sequence[Curve]) -> str:
        factors = self.factors(curves)
        text = f"to a training loss of {self.reached(curves):.4g} the speed-up is {described(factors)} workers"
        near = [workers for workers, factor in factors.items() if factor >= 0.8 * workers]
        return f"{text}; it is at least 0.8 of the ideal one up to {max(near)} workers." if near else f"{text}."

    def columns(self, curves: Sequence[Curve]) -> figures.Columns:
        factors, target = self.factors(curves), self.reached(curves)
        return {
            "workers": lambda curve: str(curve.about["workers"]),
            f"time to loss {target:.4g} (s)": lambda curve: shown(curve.reaches(target, "objective", "seconds")),
            "epochs to it": lambda curve: shown(curve.reaches(target, "objective", "epochs")),
            **columns(lambda curve: factors[curve.about["workers"]]),
            "mean delay": lambda curve: shown(curve.last("mean_delay")),
            "loss at the end": lambda curve: f"{curve.last('objective'):.5g}",
        }

    def draw(self, curves: Sequence[Curve], picture: Figure) -> None:
        """Loss against time, loss against epochs, and the speed-up."""
        picture.set_size_inches(14, 4.6)
        in_time, in_epochs, factors = picture.subplots(1, 3)
        for panel, x, below in ((in_time, "seconds", "time (s)"), (in_epochs, "epochs", "epochs (gradients by n)")):
            panel.set(xlabel=below, ylabel="training loss (nats, with l2)", yscale="log")
            for index, curve in enumerate(curves):
                draw(panel, curve, x, "objective", str(curve.about["workers"]), color=colour(index))
            panel.axhline(self.reached(curves), color="grey", linestyle=":", linewidth=1)
            panel.grid(alpha=0.3, which="both")
            label_logarithms(panel)
        in_time.legend(title="workers", frameon=False)
        draw_speedups(factors, {"measured": self.factors(curves)})
        about = curves[0].about
        clock = "on a virtual clock" if self.engine == "simulated" else f"engine {self.engine}"
        what = f"{about['n']} examples of {about['data']}, network of {about['d']} parameters"
        picture.suptitle(f"{what}, eta = {self.step_size:g}, {clock}")
