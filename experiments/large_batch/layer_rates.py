"""How large a learning rate each layer stands (thesis, section 4.4.1 and Figure 9).

    python -m experiments.large_batch.layer_rates --model=fcn

All layers train with the rate 0.01 but one, whose rate is each of several in turn; counted are the epochs until the
training loss, the mean over an epoch of the losses of its batches, reaches a target. A run has diverged when a loss is
not finite, or when the mean over an epoch is --divergence times the very first loss; it ends there.

The directory gets results.json, table.md, layer_rates.png, and, run by run, metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import cli as command_line
from experiments.large_batch.network import Examples, Network, Rates, Study, order_of, rounded, style
from experiments.report.workdir import Workdir
from experiments.settings import option
from jaxdecouple.data import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxdecouple.network.trees import PyTree

# Section 4.4.1: the training loss to reach, in nats.
TARGETS = {"fcn": 0.03, "cnn": 0.02, "resnet8": 1.0}
RATES = tuple(10.0**power for power in range(-2, 6))
_PIECE = 10  # steps after which a run that diverges is noticed
_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 60, 80, 100, 150, 200, 300)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateStudy(Study):
    """As `Study`, with one layer's rate in turn."""

    epochs: int = option(300, "passes over the training set, at most", least=1)
    base_rate: float = option(0.01, "learning rate of all layers but one (thesis: 0.01)", above=0)
    rates: tuple[float, ...] = option(RATES, "rates of the one layer, increasing", above=0, example="0.01,0.1,1")
    target: float = option(
        0.0, "training loss to reach, in nats; 0: the thesis's 0.03 fcn, 0.02 cnn, 1.0 resnet8", least=0
    )
    divergence: float = option(10.0, "a run has diverged at so many times its first loss", above=1)

    name = "layer_rates"
    interrupted = "metrics.jsonl in the workdir says what the finished runs came to"

    def check(self) -> None:
        if not self.rates or list(self.rates) != sorted(set(self.rates)):
            given = ",".join(map(_show, self.rates))
            raise ValueError(f"rates is {given!r}; write numbers above 0, increasing, each once, such as 0.01,0.1,1")

    @property
    def loss_to_reach(self) -> float:
        """The given target, or the thesis's for the model."""
        return self.target or TARGETS[self.model]

    def plan(self, count: int, labels: Mapping[str, str]) -> str:
        runs = f"{len(labels)} layers, {len(self.rates)} rates"
        return f"{count} images: {runs}, at most {self.epochs} epochs to the loss {self.loss_to_reach:g}"

    def measure(
        self, network: Network, examples: Examples, labels: Mapping[str, str], output: Workdir
    ) -> list[Outcome]:
        """Every layer with every rate, in order. With the rate of all others, the runs are one and the same."""
        params, known = network.init(self.seed, examples[0][:1]), None
        outcomes = []
        with command_line.bar(len(labels) * len(self.rates), "run") as bar:
            for name, rate in itertools.product(network.names, self.rates):
                rates = {**dict.fromkeys(network.names, self.base_rate), name: rate}
                run = known if known and rate == self.base_rate else train(network, params, examples, self, rates)
                known = run if rate == self.base_rate else known
                outcomes.append(Outcome(name, rate, *run))
                output.append("metrics.jsonl", {"layer": labels[name], "rate": rate, "epochs": outcomes[-1].text})
                bar.update()
        return outcomes

    def results(self, found: Sequence[Outcome], labels: Mapping[str, str]) -> dict[str, Any]:
        layers = {
            label: {
                "largest_rate_not_diverging": largest(found, name, _stable),
                "largest_rate_reaching_target": largest(found, name, _reached),
                "runs": [
                    {"rate": outcome.rate, "epochs": outcome.text, "losses": rounded(outcome.losses, 4)}
                    for outcome in found
                    if outcome.layer == name
                ],
            }
            for name, label in labels.items()
        }
        return {"layers": layers}

    def described(self, dataset: Dataset) -> dict[str, Any]:
        return {**super().described(dataset), "target": self.loss_to_reach}

    def table(self, found: Sequence[Outcome], labels: Mapping[str, str]) -> list[list[str]]:
        """The epochs by layer and rate."""
        rates = sorted({outcome.rate for outcome in found})
        head = ["layer (weights)", *map(_show, rates), "largest rate that does not diverge", "that reaches the target"]
        rows = [head]
        for name, label in labels.items():
            cells = [outcome.text for outcome in found if outcome.layer == name]
            bounds = largest(found, name, _stable), largest(found, name, _reached)
            rows.append([label, *cells, *map(_show, bounds)])
        return rows

    def draw(self, found: Sequence[Outcome], labels: Mapping[str, str], picture: Figure, data: str) -> None:
        """Epochs against rate, a line for each layer; above, open marks for a target missed, crosses for divergence."""
        from matplotlib.ticker import NullLocator  # --help need not wait for it

        lengths = [len(outcome.losses) for outcome in found]
        reached = [len(outcome.losses) for outcome in found if outcome.reached]
        most, least = max(lengths), min(reached, default=1)
        step = (most / least) ** 0.1 * 1.1  # of the rows above the line
        panel = picture.subplots()
        for index, (name, label) in enumerate(labels.items()):
            look = style(index)
            shift = 10 ** (0.07 * (index - (len(labels) - 1) / 2))  # marks of several layers would hide one another
            own = [outcome for outcome in found if outcome.layer == name]
            line = [(outcome.rate * shift, len(outcome.losses) if outcome.reached else math.nan) for outcome in own]
            panel.plot(*zip(*line, strict=True), label=label, **look)
            for outcome in own:
                if not outcome.reached:
                    mark, height = ("x", step**3) if outcome.diverged else (look["marker"], step**2)
                    colours = {"color": look["color"], "markerfacecolor": "none"}
                    panel.plot(outcome.rate * shift, most * height, marker=mark, **colours)
        panel.set(xscale="log", yscale="log", xlabel=f"learning rate of the layer ({self.base_rate:g} for all others)")
        panel.set(ylabel="epochs to the target", ylim=(least / step, most * step**4))
        panel.set_title(f"{data}: epochs to a training loss of {self.loss_to_reach:g}")
        ticks = [tick for tick in _TICKS if least <= tick <= most]
        panel.set_yticks([*ticks, most * step**2, most * step**3], [*map(str, ticks), f">{most}", "diverged"])
        panel.yaxis.set_minor_locator(NullLocator())
        panel.axhline(most * step, color="black", linewidth=0.8)
        panel.grid(alpha=0.3)
        picture.legend(*panel.get_legend_handles_labels(), title="layer (weights)", loc="outside right center")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
      layer: the layer whose rate is its own.
      rate: of this layer.
      losses: mean training loss of each epoch, in nats; the last is that which ended the run.
      reached: whether the target was.
      diverged: whether the run did.
    """

    layer: str
    rate: float
    losses: tuple[float, ...]
    reached: bool
    diverged: bool

    @property
    def text(self) -> str:
        """The epochs it took; ``*`` if it diverged, ``>N`` if N were not enough."""
        return "*" if self.diverged else f"{len(self.losses)}" if self.reached else f">{len(self.losses)}"


def train(
    network: Network, params: PyTree, examples: Examples, settings: RateStudy, rates: Rates
) -> tuple[tuple[float, ...], bool, bool]:
    """One run: the mean loss of each epoch, and whether the target was reached, and whether it diverged."""
    opt_state, losses, first = network.optimizer(rates).init(params), [], math.nan
    for epoch in range(settings.epochs):
        order, steps = order_of(len(examples[1]), settings.batch_size, seed=settings.seed, epoch=epoch), []
        for piece in np.array_split(order, -(-len(order) // _PIECE)):
            params, opt_state, piece_losses = network.epoch(params, opt_state, rates, examples, piece)
            steps.extend(np.asarray(piece_losses, np.float64).tolist())
            if not np.isfinite(steps).all():
                return (*losses, math.nan), False, True
        first = first if epoch else steps[0]
        losses.append(float(np.mean(steps)))
        if losses[-1] > settings.divergence * first:
            return tuple(losses), False, True
        if losses[-1] <= settings.loss_to_reach:
            return tuple(losses), True, False
    return tuple(losses), False, False


def largest(outcomes: Sequence[Outcome], layer: str, holds: Callable[[Outcome], bool]) -> float | None:
    """The largest rate of a layer of whose run ``holds`` is true."""
    return max((outcome.rate for outcome in outcomes if outcome.layer == layer and holds(outcome)), default=None)


def _stable(outcome: Outcome) -> bool:
    return not outcome.diverged


def _reached(outcome: Outcome) -> bool:
    return outcome.reached


def _show(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:g}"


define_flags, main = RateStudy.define_flags, RateStudy.main

if __name__ == "__main__":
    define_flags()
    command_line.start(main)
