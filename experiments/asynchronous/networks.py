"""SGD, SVRG and SGD_SVRG train a network: what figures 1 and 3 have in common (section 2.5).

Every method gets as many gradients of single examples. SVRG computes a full gradient in each outer iteration and two
gradients where SGD computes one, so it makes fewer updates; pictures show both ways of counting.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.asynchronous import scales
from experiments.asynchronous.curves import Curve, Row, colour, draw, label_logarithms, report, rounded, shown, write
from experiments.asynchronous.scales import option
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from experiments.training.progress import NonFiniteLoss
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import General, Record, Result
from jaxdecouple.asynchronous.data.sources import Source, classes

METHODS = ("SGD", "SVRG", "SGD_SVRG")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and how; each field is a flag."""

    data: str = option("digits", "npz:PATH, digits or made:NxD", thesis="npz:mnist.npz")
    num_examples: int = option(0, "the first so many training examples; 0: all", thesis=10_000, least=0)
    num_tests: int = option(0, "the first so many test examples; 0: all", thesis=2_000, least=0)
    hidden: int = option(32, "units of the hidden layer", thesis=100, least=1)
    l2: float = option(1e-3, "C, weight of the regularisation", least=0)
    batch_size: int = option(10, "|I|, examples of an update", least=1)
    inner_steps: int = option(
        0, "m, updates of an outer iteration; 0: as many as read n examples", thesis=1_000, least=0
    )
    workers: int = option(4, "workers of SVRG; SGD has one", least=1)
    epochs: int = option(90, "gradients of single examples, by n, for each method", thesis=300, least=1)
    sgd_epochs: int = option(10, "epochs of SGD before SVRG, in SGD_SVRG", least=1)
    sgd_step_sizes: tuple[float, ...] = option(
        (2e-1, 5e-2, 1e-2), "alpha of SGD to try", thesis=(5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
    )
    sgd_decays: tuple[float, ...] = option(
        (0.0, 0.5), "beta of SGD to try", thesis=tuple(round(0.1 * k, 1) for k in range(11)), least=0
    )
    svrg_step_sizes: tuple[float, ...] = option(
        (5e-1, 2e-1, 5e-2), "eta of SVRG to try", thesis=(5e-1, 1e-1, 5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
    )
    tuning_epochs: int = option(0, "compare step sizes after so many epochs; 0: at the end", least=0)
    dtype: str = option("float32", "float64 or float32", thesis="float64")
    seed: int = option(0, "of the network and of the examples that are chosen", least=0)

    def check(self) -> None:
        """Refuses what cannot be used.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        scales.check(self)
        if self.sgd_epochs >= self.epochs:
            raise ValueError(f"sgd_epochs is {self.sgd_epochs} of {self.epochs} epochs; write less, or more --epochs")
        if min(*self.sgd_step_sizes, *self.svrg_step_sizes) <= 0:
            raise ValueError("a step size to try is not above 0; write such as 0.05,0.01")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run.

    Attributes:
      curve: what was measured.
      w: the parameters at the end of each outer iteration.
    """

    curve: Curve
    w: list[jax.Array]

    @property
    def loss(self) -> float:
        """At the end; infinite, if it diverged."""
        loss = self.curve.last("loss")
        return loss if math.isfinite(loss) else math.inf


class Study:
    """A network on some data, and the three methods.

    Attributes:
      setting: how.
      problem: the network with its training examples.
      variance_reduced: ``(problem, step_size=..., batch_size=..., **options)``, the SVRG that is studied.
    """

    def __init__(self, setting: Setting, source: Source, variance_reduced: Callable[..., Result]):
        if source.x_test is None:
            raise ValueError(
                f"{source.name} has no test part, which test errors need; write digits, or npz:PATH with one"
            )
        if source.is_sparse:
            raise ValueError(f"{source.name} is sparse, and a network needs dense data; write digits or npz:PATH")
        self.setting, self.variance_reduced = setting, variance_reduced
        labels, test_labels = classes(source.y), classes(source.y_test)
        options = {"num_classes": int(max(labels.max(), test_labels.max())) + 1, "seed": setting.seed}
        self.problem: General = asynchronous.network(source.x, labels, hidden=setting.hidden, l2=setting.l2, **options)
        self.inner_steps = setting.inner_steps or -(-self.problem.n // setting.batch_size)
        self._parts = {"train": (source.x, labels), "test": (source.x_test, test_labels)}
        self._logits = jax.jit(self.problem.phi.logits)

    def row(self, w: jax.Array, outer: int, epochs: float) -> Row:
        """Loss and errors of parameters."""
        found = {"outer": outer, "epochs": epochs, "loss": float(self.problem.objective(w))}
        for part, (x, y) in self._parts.items():
            found[f"{part}_error"] = float(np.mean(np.asarray(self._logits(w, x)).argmax(axis=1) != y))
        return rounded(found)

    def sgd(self, step_size: float, decay: float, epochs: float) -> Trained:
        """SGD with the polynomial rate, from the beginning."""
        about = {"method": "SGD", "step_size": step_size, "decay": decay}
        start = Trained(Curve(about, [self.row(self.problem.initial(), 0, 0.0)]), [self.problem.initial()])
        own = {"workers": 1, "inner_steps": None, "decay": decay, "outer_steps": math.ceil(epochs - 1e-9)}
        return self._train(asynchronous.sgd, start, step_size, self.setting.seed, own)

    def svrg(self, step_size: float, epochs: float, warm: Trained | None = None) -> Trained:
        """SVRG, from the beginning or from where some epochs of SGD have led."""
        about = {"method": "SGD_SVRG" if warm else "SVRG", "step_size": step_size}
        if warm is None:
            start = Trained(Curve(about, [self.row(self.problem.initial(), 0, 0.0)]), [self.problem.initial()])
        else:
            count = self.setting.sgd_epochs
            start = Trained(Curve(about, warm.curve.rows[: count + 1]), warm.w[: count + 1])
        each = 1 + 2 * self.inner_steps * self.setting.batch_size / self.problem.n
        outer_steps = math.ceil((epochs - start.curve.rows[-1]["epochs"]) / each - 1e-9)
        own = {"workers": self.setting.workers, "inner_steps": self.inner_steps, "outer_steps": outer_steps}
        return self._train(self.variance_reduced, start, step_size, self.setting.seed + 1, own)

    def _train(
        self, solver: Callable[..., Result], start: Trained, step_size: float, seed: int, own: dict[str, Any]
    ) -> Trained:
        """Goes on from ``start``, until the outer iterations are over or the loss is 10 times the first."""
        rows, ws = list(start.curve.rows), list(start.w)
        first, base = rows[0]["loss"], rows[-1]

        def note(record: Record, w: jax.Array) -> None:
            if record.outer:
                rows.append(self.row(w, base["outer"] + record.outer, base["epochs"] + record.epochs))
                ws.append(w)
                if rows[-1]["loss"] is None or rows[-1]["loss"] > 10 * first:
                    raise NonFiniteLoss(f"the loss is {rows[-1]['loss']}")

        try:
            shape = {"batch_size": self.setting.batch_size, "start": ws[-1], "seed": seed, "on_record": note}
            solver(self.problem, step_size=step_size, **shape, **own)
        except NonFiniteLoss:
            rows[-1]["loss"] = None
        return Trained(Curve(start.curve.about, rows), ws)


def compare(study: Study) -> dict[str, Trained]:
    """The best run of each method.

    Raises:
      ValueError: all step sizes of a method diverge.
    """
    setting = study.setting
    sgd = _best("SGD", setting, list(itertools.product(setting.sgd_step_sizes, setting.sgd_decays)), study.sgd)
    steps = [(step,) for step in setting.svrg_step_sizes]
    svrg = _best("SVRG", setting, steps, study.svrg)
    both = _best("SGD_SVRG", setting, steps, lambda step, epochs: study.svrg(step, epochs, sgd))
    return {"SGD": sgd, "SVRG": svrg, "SGD_SVRG": both}


def _best(method: str, setting: Setting, candidates: list[tuple[float, ...]], train: Callable[..., Trained]) -> Trained:
    short = setting.tuning_epochs or setting.epochs
    tried: list[Trained] = []
    for candidate in candidates:
        tried.append(train(*candidate, short))
        print(f"{method}, {', '.join(f'{value:g}' for value in candidate)}: loss {tried[-1].loss:.5g}", flush=True)
    best = min(tried, key=lambda run: run.loss)
    if not math.isfinite(best.loss):
        raise ValueError(f"all step sizes of {method} diverge; write smaller ones")
    return best if short >= setting.epochs else train(*candidates[tried.index(best)], setting.epochs)


def found(runs: dict[str, Trained]) -> str:
    """What the numbers say about the claims."""
    sgd, svrg, both = (runs[method].curve for method in METHODS)
    ends = ", ".join(f"{method} {runs[method].loss:.4g}" for method in METHODS)
    parts = [f"training loss with equally many gradients: {ends}"]
    for within, what in (("epochs", "epochs (gradients by n)"), ("outer", "outer iterations")):
        crossing = _crossing(svrg, sgd, within)
        parts.append(
            f"SVRG is below SGD {f'from {crossing:g} {what} on' if crossing < math.inf else f'at no time, by {what}'}"
        )
    errors = ", ".join(f"{run.about['method']} {100 * run.last('test_error'):.2f} %" for run in (sgd, svrg, both))
    return f"{'; '.join(parts)}; test error at the end: {errors}."


def _crossing(curve: Curve, other: Curve, within: str) -> float:
    """From where on the loss of a curve stays below the other's, as far as both go; infinite, if it is not."""
    places, theirs = curve.column(within), other.column(within)
    inside = places <= theirs[-1]
    below = curve.column("loss") < np.interp(places, theirs, other.column("loss"))
    from_here = np.flip(np.logical_and.accumulate(np.flip(below[inside])))
    return float(places[inside][np.argmax(from_here)]) if from_here.any() else math.inf


def as_markdown(runs: dict[str, Trained]) -> str:
    """A row for each method."""
    rows = [["method", "eta", "beta", "outer iterations", "epochs", "training loss", "training error", "test error"]]
    for method, run in runs.items():
        about, last = run.curve.about, run.curve.rows[-1]
        numbers = [shown(about["step_size"]), shown(about.get("decay", math.nan)), str(last["outer"])]
        errors = [f"{100 * last[name]:.2f} %" for name in ("train_error", "test_error")]
        rows.append([method, *numbers, f"{last['epochs']:.1f}", f"{run.loss:.5g}", *errors])
    return markdown(rows)


def plot(runs: dict[str, Trained], path: pathlib.Path, title: str) -> None:
    """Loss and errors against epochs, and against outer iterations."""
    figure = Figure(figsize=(13.5, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    places = {"epochs": "epochs (gradients of single examples, by n)", "outer": "outer iterations"}
    names = {
        "loss": "training loss (nats, with l2)",
        "train_error": "training error (%)",
        "test_error": "test error (%)",
    }
    for row, (place, below) in zip(panels, places.items(), strict=True):
        for panel, (name, beside) in zip(row, names.items(), strict=True):
            panel.set(xlabel=below, ylabel=beside, yscale="log")
            for index, (method, run) in enumerate(runs.items()):
                curve = run.curve
                if name != "loss":
                    curve = Curve(curve.about, [{**each, name: 100 * each[name]} for each in curve.rows])
                draw(panel, curve, place, name, method, color=colour(index))
            panel.grid(alpha=0.3, which="both")
            label_logarithms(panel)
    figure.suptitle(title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def finish(
    output: Workdir, setting: Setting, runs: dict[str, Trained], claim: str, picture: str, title: str, **more: Any
) -> str:
    """Writes results.json, with ``more`` in it, table.md and the picture; returns table.md."""
    text = report(claim, found(runs), as_markdown(runs))
    write(output, scales.described(setting), [run.curve for run in runs.values()], text, **more)
    plot(runs, output.file(picture), title)
    return text
