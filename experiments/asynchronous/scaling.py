"""The speed-up of AsySVRG on a network: what figures 2 and 4 have in common (section 2.5)."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from experiments.asynchronous import scales
from experiments.asynchronous.curves import Curve, colour, draw, label_logarithms, report, rows_of, shown, write
from experiments.asynchronous.races import Costs, attempt
from experiments.asynchronous.scales import option
from experiments.asynchronous.speedups import common_target, described, draw_speedups, speedups
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Result
from jaxdecouple.asynchronous.data.sources import classes, load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Costs):
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
    dtype: str = option("float32", "float64 or float32", thesis="float64")

    def check(self) -> None:
        super().check()
        if 1 not in self.workers:
            raise ValueError(
                f"workers is {','.join(map(str, self.workers))}; write 1 too, which speed-ups compare with"
            )
        if not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; write a number above 0, such as 0.05")


def measure(setting: Setting, solver: Callable[..., Result]) -> list[Curve]:
    """A curve for each number of workers.

    Raises:
      ValueError: the data cannot be had, or the step size is too large.
    """
    source = load(setting.data, dtype=np.dtype(setting.dtype), seed=setting.seed).first(setting.num_examples)
    if source.is_sparse:
        raise ValueError(f"{source.name} is sparse, and a network needs dense data; write digits or npz:PATH")
    labels = classes(source.y)
    problem = asynchronous.network(source.x, labels, hidden=setting.hidden, l2=setting.l2, seed=setting.seed)
    shape = {"step_size": setting.step_size, "batch_size": setting.batch_size, "outer_steps": setting.outer_steps}
    shape["inner_steps"] = setting.inner_steps or -(-problem.n // setting.batch_size)
    curves = []
    for workers in setting.workers:
        result = attempt(solver, problem, workers=workers, **shape, **setting.options())
        if result is None:
            raise ValueError(f"step_size is {setting.step_size}, and {workers} workers diverge; write a smaller one")
        about = {"workers": workers, "n": problem.n, "d": problem.d, "data": source.name}
        curves.append(Curve(about, rows_of(result.trace)))
        last = result.trace[-1]
        print(
            f"{workers} workers: loss {last.objective:.5g} after {last.seconds:.4g} s, delay {last.mean_delay:.1f} on "
            f"average, at most {last.largest_delay}",
            flush=True,
        )
    return curves


def found(curves: list[Curve], target: float) -> str:
    """What the numbers say about the claim."""
    factors = speedups(curves, target, "objective")
    text = f"to a training loss of {target:.4g} the speed-up is {described(factors)} workers"
    near = [workers for workers, factor in factors.items() if factor >= 0.8 * workers]
    return f"{text}; it is at least 0.8 of the ideal one up to {max(near)} workers." if near else f"{text}."


def as_markdown(curves: list[Curve], target: float) -> str:
    """A row for each number of workers."""
    factors = speedups(curves, target, "objective")
    rows = [
        [
            "workers",
            f"time to loss {target:.4g} (s)",
            "epochs to it",
            "speed-up",
            "of ideal",
            "mean delay",
            "loss at the end",
        ]
    ]
    for curve in curves:
        workers = curve.about["workers"]
        share = factors[workers] / workers
        numbers = [shown(curve.reaches(target, "objective", within)) for within in ("seconds", "epochs")]
        ideal = f"{100 * share:.0f} %" if math.isfinite(share) else "-"
        ends = [shown(curve.last("mean_delay")), f"{curve.last('objective'):.5g}"]
        rows.append([str(workers), *numbers, shown(factors[workers]), ideal, *ends])
    return markdown(rows)


def plot(curves: list[Curve], target: float, path: pathlib.Path, title: str) -> None:
    """Loss against time, loss against epochs, and the speed-up."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    in_time, in_epochs, factors = figure.subplots(1, 3)
    for panel, (x, below) in ((in_time, ("seconds", "time (s)")), (in_epochs, ("epochs", "epochs (gradients by n)"))):
        panel.set(xlabel=below, ylabel="training loss (nats, with l2)", yscale="log")
        for index, curve in enumerate(curves):
            draw(panel, curve, x, "objective", str(curve.about["workers"]), color=colour(index))
        panel.axhline(target, color="grey", linestyle=":", linewidth=1)
        panel.grid(alpha=0.3, which="both")
        label_logarithms(panel)
    in_time.legend(title="workers", frameon=False)
    draw_speedups(factors, {"measured": speedups(curves, target, "objective")})
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def run(
    setting: Setting, solver: Callable[..., Result], workdir: pathlib.Path, overwrite: bool, name: str, claim: str
) -> str:
    """Measures, writes everything, and returns table.md.

    Raises:
      ValueError: settings that cannot be used.
    """
    setting.check()
    output = Workdir(workdir, scales.described(setting), overwrite=overwrite)
    with scales.precision(setting.dtype):
        curves = measure(setting, solver)
    target = setting.target or common_target(curves, "objective")
    text = report(claim, found(curves, target), as_markdown(curves, target))
    write(output, scales.described(setting), curves, text, target=target)
    about = curves[0].about
    clock = "on a virtual clock" if setting.engine == "simulated" else f"engine {setting.engine}"
    what = f"{about['n']} examples of {about['data']}, network of {about['d']} parameters"
    title = f"{what}, eta = {setting.step_size:g}, {clock}"
    plot(curves, target, output.file(f"{name}.png"), title)
    return text
