"""How large a learning rate each layer stands (thesis, section 4.4.1 and Figure 9).

    python -m experiments.large_batch.layer_rates --model=fcn

All layers train with the rate 0.01 but one, whose rate is each of several in turn; counted are the epochs until the
training loss, the mean over an epoch of the losses of its batches, reaches a target. A run has diverged when a loss is
not finite, or when the mean over an epoch is --divergence times the very first loss; it ends there.

The directory gets results.json, table.md, layer_rates.png, and, run by run, metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments import cli as command_line
from experiments import devices
from experiments.large_batch.network import Examples, Network, Rates, Training, layer_labels, order_of, rounded, style
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir, drawing
from experiments.settings import define, option, read
from jaxdecouple.network.trees import PyTree

FLAGS = flags.FLAGS

# Section 4.4.1: the training loss to reach, in nats.
TARGETS = {"fcn": 0.03, "cnn": 0.02, "resnet8": 1.0}
RATES = tuple(10.0**power for power in range(-2, 6))
_PIECE = 10  # steps after which a run that diverges is noticed
_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 60, 80, 100, 150, 200, 300)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateStudy(Training):
    """As `Training`, with one layer's rate in turn."""

    epochs: int = option(300, "passes over the training set, at most", least=1)
    base_rate: float = option(0.01, "learning rate of all layers but one (thesis: 0.01)", above=0)
    rates: tuple[float, ...] = option(RATES, "rates of the one layer, increasing", above=0, example="0.01,0.1,1")
    target: float = option(
        0.0, "training loss to reach, in nats; 0: the thesis's 0.03 fcn, 0.02 cnn, 1.0 resnet8", least=0
    )
    divergence: float = option(10.0, "a run has diverged at so many times its first loss", above=1)

    def check(self) -> None:
        if not self.rates or list(self.rates) != sorted(set(self.rates)):
            given = ",".join(map(_show, self.rates))
            raise ValueError(f"rates is {given!r}; write numbers above 0, increasing, each once, such as 0.01,0.1,1")

    @property
    def loss_to_reach(self) -> float:
        """The given target, or the thesis's for the model."""
        return self.target or TARGETS[self.model]


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


def sweep(
    network: Network,
    examples: Examples,
    settings: RateStudy,
    *,
    on_run: Callable[[Outcome], Any] = lambda outcome: None,
) -> list[Outcome]:
    """Every layer with every rate, in order. With the rate of all others, the runs are one and the same."""
    params, known = network.init(settings.seed, examples[0][:1]), None
    outcomes = []
    for name in network.names:
        for rate in settings.rates:
            rates = {**dict.fromkeys(network.names, settings.base_rate), name: rate}
            run = known if known and rate == settings.base_rate else train(network, params, examples, settings, rates)
            known = run if rate == settings.base_rate else known
            outcomes.append(Outcome(name, rate, *run))
            on_run(outcomes[-1])
    return outcomes


def largest(outcomes: Sequence[Outcome], layer: str, holds: Callable[[Outcome], bool]) -> float | None:
    """The largest rate of a layer of whose run ``holds`` is true."""
    return max((outcome.rate for outcome in outcomes if outcome.layer == layer and holds(outcome)), default=None)


def table(outcomes: Sequence[Outcome], labels: dict[str, str]) -> str:
    """The epochs by layer and rate, in Markdown."""
    rates = sorted({outcome.rate for outcome in outcomes})
    rows = [["layer (weights)", *map(_show, rates), "largest rate that does not diverge", "that reaches the target"]]
    for name, label in labels.items():
        cells = [outcome.text for outcome in outcomes if outcome.layer == name]
        bounds = largest(outcomes, name, _stable), largest(outcomes, name, _reached)
        rows.append([label, *cells, *map(_show, bounds)])
    return markdown(rows)


def _stable(outcome: Outcome) -> bool:
    return not outcome.diverged


def _reached(outcome: Outcome) -> bool:
    return outcome.reached


def _show(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:g}"


def draw(outcomes: Sequence[Outcome], labels: dict[str, str], path: pathlib.Path, title: str, base_rate: float) -> None:
    """Epochs against rate, a line for each layer; above them open marks for the target missed, crosses for divergence.

    Args:
      outcomes: of all runs.
      labels: layer -> what the legend calls it.
      path: of the PNG to write.
      title: of the picture.
      base_rate: of the other layers.
    """
    lengths = [len(outcome.losses) for outcome in outcomes]
    reached = [len(outcome.losses) for outcome in outcomes if outcome.reached]
    most, least = max(lengths), min(reached, default=1)
    step = (most / least) ** 0.1 * 1.1  # of the rows above the line
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    panel = figure.subplots()
    for index, (name, label) in enumerate(labels.items()):
        look = style(index)
        shift = 10 ** (0.07 * (index - (len(labels) - 1) / 2))  # marks of several layers would hide one another
        own = [outcome for outcome in outcomes if outcome.layer == name]
        line = [(outcome.rate * shift, len(outcome.losses) if outcome.reached else math.nan) for outcome in own]
        panel.plot(*zip(*line, strict=True), label=label, **look)
        for outcome in own:
            if not outcome.reached:
                mark, height = ("x", step**3) if outcome.diverged else (look["marker"], step**2)
                colours = {"color": look["color"], "markerfacecolor": "none"}
                panel.plot(outcome.rate * shift, most * height, marker=mark, **colours)
    panel.set(xscale="log", yscale="log", xlabel=f"learning rate of the layer ({base_rate:g} for all others)")
    panel.set(ylabel="epochs to the target", title=title, ylim=(least / step, most * step**4))
    ticks = [tick for tick in _TICKS if least <= tick <= most]
    panel.set_yticks([*ticks, most * step**2, most * step**3], [*map(str, ticks), f">{most}", "diverged"])
    panel.yaxis.set_minor_locator(NullLocator())
    panel.axhline(most * step, color="black", linewidth=0.8)
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), title="layer (weights)", loc="outside right center")
    figure.savefig(path, dpi=120)


def write(
    output: Workdir,
    settings: RateStudy,
    described: dict[str, Any],
    outcomes: Sequence[Outcome],
    labels: dict[str, str],
    seconds: float,
) -> None:
    """The files of a finished sweep."""
    layers = {
        label: {
            "largest_rate_not_diverging": largest(outcomes, name, _stable),
            "largest_rate_reaching_target": largest(outcomes, name, _reached),
            "runs": [
                {"rate": outcome.rate, "epochs": outcome.text, "losses": rounded(outcome.losses, 4)}
                for outcome in outcomes
                if outcome.layer == name
            ],
        }
        for name, label in labels.items()
    }
    output.write_json(
        "results.json",
        {
            "settings": {**described, "target": settings.loss_to_reach},
            "machine": devices.describe(),
            "seconds": round(seconds, 1),
            "layers": layers,
        },
    )
    output.write("table.md", table(outcomes, labels) + "\n")
    count = f"{settings.num_examples} images of " if settings.num_examples else ""
    title = (
        f"{settings.model} on {count}{described['dataset']}: epochs to a training loss of {settings.loss_to_reach:g}"
    )
    with drawing():
        draw(outcomes, labels, output.file("layer_rates.png"), title, settings.base_rate)


def run(settings: RateStudy, workdir: pathlib.Path, *, overwrite: bool = False) -> list[Outcome]:
    """Loads, sweeps and writes.

    Raises:
      ValueError: settings, data or workdir cannot be used.
    """
    Workdir.check(workdir, overwrite=overwrite)
    dataset, examples = settings.load()
    network, described = settings.network(dataset.num_classes), settings.described(dataset)
    labels = layer_labels(network.init(settings.seed, examples[0][:1]))
    output = Workdir(workdir, described, overwrite=overwrite)
    print(
        f"{settings.model} on {len(examples[1])} images of {dataset.name}: {len(labels)} layers, "
        f"{len(settings.rates)} rates, at most {settings.epochs} epochs to the loss {settings.loss_to_reach:g}"
    )
    start = time.perf_counter()
    with command_line.bar(len(labels) * len(settings.rates), "run") as bar:

        def on_run(outcome: Outcome) -> None:
            output.append(
                "metrics.jsonl", {"layer": labels[outcome.layer], "rate": outcome.rate, "epochs": outcome.text}
            )
            bar.update()

        outcomes = sweep(network, examples, settings, on_run=on_run)
    write(output, settings, described, outcomes, labels, time.perf_counter() - start)
    print(f"\n{table(outcomes, labels)}\n")
    return outcomes


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(RateStudy)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="metrics.jsonl in the workdir says what the finished runs came to"):
        settings = read(RateStudy)
        workdir = command_line.workdir(f"layer_rates-{settings.model}")
        run(settings, workdir, overwrite=FLAGS.overwrite)
        print(f"{time.perf_counter() - start:.0f} s; picture, table and numbers are in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
