"""SGD, SVRG and SGD_SVRG train a network: what figures 1 and 3 have in common (section 2.5).

Every method gets as many gradients of single examples. SVRG computes a full gradient in each outer iteration and two
gradients where SGD computes one, so it makes fewer updates; pictures show both ways of counting.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.asynchronous import figures
from experiments.asynchronous.curves import Curve, Row, colour, draw, label_logarithms, rounded, shown
from experiments.asynchronous.solving import DTYPES
from experiments.settings import option
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import ConvergenceWarning, General, Record, Result
from jaxdecouple.asynchronous.sources import Source, classes

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(figures.Figure):
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
    dtype: str = option("float32", "float64 or float32", choices=DTYPES, thesis="float64")
    seed: int = option(0, "of the network and of the examples that are chosen", least=0)

    def check(self) -> None:
        super().check()
        if self.sgd_epochs >= self.epochs:
            raise ValueError(f"sgd_epochs is {self.sgd_epochs} of {self.epochs} epochs; write less, or more --epochs")
        if min(*self.sgd_step_sizes, *self.svrg_step_sizes) <= 0:
            raise ValueError("a step size to try is not above 0; write such as 0.05,0.01")

    def found(self, curves: Sequence[Curve]) -> str:
        sgd, svrg, _ = curves
        ends = ", ".join(f"{curve.about['method']} {curve.last('loss'):.4g}" for curve in curves)
        parts = [f"training loss with equally many gradients: {ends}"]
        for within, what in (("epochs", "epochs (gradients by n)"), ("outer", "outer iterations")):
            crossing = _crossing(svrg, sgd, within)
            when = f"from {crossing:g} {what} on" if crossing < math.inf else f"at no time, by {what}"
            parts.append(f"SVRG is below SGD {when}")
        errors = ", ".join(f"{curve.about['method']} {100 * curve.last('test_error'):.2f} %" for curve in curves)
        return f"{'; '.join(parts)}; test error at the end: {errors}."

    def columns(self, curves: Sequence[Curve]) -> figures.Columns:
        return {
            "method": lambda curve: curve.about["method"],
            "eta": lambda curve: shown(curve.about["step_size"]),
            "beta": lambda curve: shown(curve.about.get("decay", math.nan)),
            "outer iterations": lambda curve: str(curve.rows[-1]["outer"]),
            "epochs": lambda curve: f"{curve.last('epochs'):.1f}",
            "training loss": lambda curve: f"{curve.last('loss'):.5g}",
            "training error": lambda curve: f"{100 * curve.last('train_error'):.2f} %",
            "test error": lambda curve: f"{100 * curve.last('test_error'):.2f} %",
        }

    def draw(self, curves: Sequence[Curve], picture: Figure) -> None:
        """Loss and errors against epochs, and against outer iterations."""
        picture.set_size_inches(13.5, 7.6)
        panels = picture.subplots(2, 3)
        places = {"epochs": "epochs (gradients of single examples, by n)", "outer": "outer iterations"}
        names = {"loss": "loss (nats, with l2)", "train_error": "training error (%)", "test_error": "test error (%)"}
        for row, (place, below) in zip(panels, places.items(), strict=True):
            for panel, (name, beside) in zip(row, names.items(), strict=True):
                panel.set(xlabel=below, ylabel=beside, yscale="log")
                for index, curve in enumerate(curves):
                    if name != "loss":
                        curve = Curve(curve.about, [{**each, name: 100 * each[name]} for each in curve.rows])
                    draw(panel, curve, place, name, curve.about["method"], color=colour(index))
                panel.grid(alpha=0.3, which="both")
                label_logarithms(panel)
        picture.suptitle(self.title(curves[0].about))
        picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

    def title(self, about: Any) -> str:
        """Of the picture."""
        shape = f"{about['features']}-{self.hidden}-{about['num_classes']}"
        return f"{shape} on {about['n']} examples of {about['data']}, l2 = {self.l2:g}"


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
      plain: likewise, the SGD.
    """

    def __init__(
        self,
        setting: Training,
        source: Source,
        variance_reduced: Callable[..., Result],
        sgd: Callable[..., Result] | None = None,
    ):
        import jax  # --help need not wait for it

        if source.x_test is None:
            raise ValueError(
                f"{source.name} has no test part, which test errors need; write digits, or npz:PATH with one"
            )
        if source.is_sparse:
            raise ValueError(f"{source.name} is sparse, and a network needs dense data; write digits or npz:PATH")
        self.setting, self.variance_reduced, self.plain = setting, variance_reduced, sgd or asynchronous.sgd
        labels, test_labels = classes(source.y), classes(source.y_test)
        options = {"num_classes": int(max(labels.max(), test_labels.max())) + 1, "seed": setting.seed}
        self.problem: General = asynchronous.network(source.x, labels, hidden=setting.hidden, l2=setting.l2, **options)
        self.inner_steps = setting.inner_steps or -(-self.problem.n // setting.batch_size)
        self._parts = {"train": (source.x, labels), "test": (source.x_test, test_labels)}
        self._logits = jax.jit(self.problem.phi.logits)
        self._about = {"data": source.name, "n": self.problem.n, "d": self.problem.d, "features": source.x.shape[1]}
        self._about["num_classes"] = options["num_classes"]

    def row(self, w: jax.Array, outer: int, epochs: float) -> Row:
        """Loss and errors of parameters."""
        found = {"outer": outer, "epochs": epochs, "loss": float(self.problem.objective(w))}
        for part, (x, y) in self._parts.items():
            found[f"{part}_error"] = float(np.mean(np.asarray(self._logits(w, x)).argmax(axis=1) != y))
        return rounded(found)

    def sgd(self, step_size: float, decay: float, epochs: float) -> Trained:
        """SGD with the polynomial rate, from the beginning."""
        about = {**self._about, "method": "SGD", "step_size": step_size, "decay": decay}
        start = Trained(Curve(about, [self.row(self.problem.initial(), 0, 0.0)]), [self.problem.initial()])
        own = {"workers": 1, "inner_steps": None, "decay": decay, "outer_steps": math.ceil(epochs - 1e-9)}
        return self._train(self.plain, start, step_size, self.setting.seed, own)

    def svrg(self, step_size: float, epochs: float, warm: Trained | None = None) -> Trained:
        """SVRG, from the beginning or from where some epochs of SGD have led."""
        about = {**self._about, "method": "SGD_SVRG" if warm else "SVRG", "step_size": step_size}
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

        shape = {"batch_size": self.setting.batch_size, "start": ws[-1], "seed": seed, "on_record": note}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # SGD does not
            try:
                solver(self.problem, step_size=step_size, **shape, **own)
            except NonFiniteLoss:
                rows[-1]["loss"] = None
        return Trained(Curve(start.curve.about, rows), ws)


def compare(study: Study) -> list[Curve]:
    """The best run of SGD, SVRG and SGD_SVRG.

    Raises:
      ValueError: all step sizes of a method diverge.
    """
    setting = study.setting
    sgd = _best("SGD", setting, list(itertools.product(setting.sgd_step_sizes, setting.sgd_decays)), study.sgd)
    steps = [(step,) for step in setting.svrg_step_sizes]
    svrg = _best("SVRG", setting, steps, study.svrg)
    both = _best("SGD_SVRG", setting, steps, lambda step, epochs: study.svrg(step, epochs, sgd))
    return [run.curve for run in (sgd, svrg, both)]


def _best(
    method: str, setting: Training, candidates: list[tuple[float, ...]], train: Callable[..., Trained]
) -> Trained:
    short = setting.tuning_epochs or setting.epochs
    tried: list[Trained] = []
    for candidate in candidates:
        tried.append(train(*candidate, short))
        print(f"{method}, {', '.join(f'{value:g}' for value in candidate)}: loss {tried[-1].loss:.5g}", flush=True)
    best = min(tried, key=lambda run: run.loss)
    if not math.isfinite(best.loss):
        raise ValueError(f"all step sizes of {method} diverge; write smaller ones")
    return best if short >= setting.epochs else train(*candidates[tried.index(best)], setting.epochs)


def _crossing(curve: Curve, other: Curve, within: str) -> float:
    """From where on the loss of a curve stays below the other's, as far as both go; infinite, if it is not."""
    places, theirs = curve.column(within), other.column(within)
    inside = places <= theirs[-1]
    below = curve.column("loss") < np.interp(places, theirs, other.column("loss"))
    from_here = np.flip(np.logical_and.accumulate(np.flip(below[inside])))
    return float(places[inside][np.argmax(from_here)]) if from_here.any() else math.inf
