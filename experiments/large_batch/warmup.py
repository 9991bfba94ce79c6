"""Does large-batch training need a warm-up? LARS with and without one against CLARS without (thesis, Figure 13).

    python -m experiments.large_batch.warmup

trains with every trust coefficient eta of the list: CLARS, LARS, and LARS with 5, 10 and 20 epochs of linear warm-up,
after which the learning rate stays what it is. The thesis: ResNet-56 and VGG-11 with batch normalisation on CIFAR-10,
B = 8192, gamma_scale = 6.4, 20 epochs, eta from {1e-4, 1e-3, 1e-2, 1e-1}:

    python -m experiments.large_batch.warmup --model=resnet56 --dataset=cifar10 --batch_size=8192

The directory gets results.json, table.md, run by run metrics.jsonl, and warmup.png.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping

from experiments import cli as command_line
from experiments.large_batch.sweeps import Outcome, Sweep, cell, run
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir, drawing
from experiments.settings import define, option, read
from experiments.training.config import Config
from jaxdecouple.data import Dataset

Key = tuple[str, float]  # label of a method, eta

_COLOURS = {"CLARS": "#d62728", "LARS": "#222222"}
_WARMED = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup(Sweep):
    """As `Sweep`, with several trust coefficients and lengths of the warm-up."""

    batch_size: int = option(512, "B, images of an update (thesis: 8192)", least=1)
    etas: tuple[float, ...] = option(
        (1e-4, 1e-3, 1e-2, 1e-1), "trust coefficients, each tried with every method", above=0, example="0.001,0.01"
    )
    warmups: tuple[float, ...] = option(
        (5.0, 10.0, 20.0), "epochs of linear warm-up from 1 % of the learning rate, for LARS", least=0, example="5,10"
    )

    def configs(self, dataset: Dataset) -> dict[Key, Config]:
        """The config of every method with every eta."""
        methods = {"CLARS": ("clars", 0.0), "LARS": ("lars", 0.0)}
        methods |= {f"LARS, warm-up {epochs:g} epochs": ("lars", epochs) for epochs in self.warmups if epochs}
        return {
            (label, eta): self.config(
                dataset, self.batch_size, optimizer=optimizer, eta=eta, warmup_epochs=epochs, decay="constant"
            )
            for label, (optimizer, epochs) in methods.items()
            for eta in self.etas
        }


def best(outcomes: Mapping[Key, Outcome]) -> dict[str, Key]:
    """Of each method the eta with the least training loss at the end."""
    chosen: dict[str, Key] = {}
    for key, outcome in outcomes.items():
        if key[0] not in chosen or outcome.final_loss < outcomes[chosen[key[0]]].final_loss:
            chosen[key[0]] = key
    return chosen


def as_markdown(outcomes: Mapping[Key, Outcome], chance: float) -> str:
    """A row per method, a column per eta: training loss of the last epoch and test error; lost, if above chance."""
    etas = list(dict.fromkeys(eta for _, eta in outcomes))
    chosen = best(outcomes)
    rows = [["method", *(f"eta = {eta:g}" for eta in etas)]]
    for label in chosen:
        cells = []
        for eta in etas:
            outcome = outcomes[label, eta]
            text = cell(outcome)
            if outcome.finite and outcome.final_loss > chance:
                text = f"lost: {text}"
            cells.append(f"**{text}**" if chosen[label] == (label, eta) else text)
        rows.append([label, *cells])
    return markdown(rows)


def plot(outcomes: Mapping[Key, Outcome], path: pathlib.Path, title: str, chance: float) -> None:
    """Training loss and test accuracy over epochs, each method with its best eta; and the final loss by eta."""
    from matplotlib.figure import Figure  # --help need not wait for it
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    loss, accuracy, by_eta = figure.subplots(1, 3)
    warmed = iter(_WARMED)
    for index, (label, key) in enumerate(best(outcomes).items()):
        colour = _COLOURS.get(label) or next(warmed)
        style = {"color": colour, "marker": "o", "markersize": 3.5, "linewidth": 1.4}
        records = outcomes[key].records
        epochs = [record.epoch for record in records]
        loss.plot(epochs, [record.train_loss for record in records], label=f"{label} (eta = {key[1]:g})", **style)
        accuracy.plot(epochs, [100 * (1 - record.test_error) for record in records], **style)
        runs = sorted((eta, run.final_loss) for (method, eta), run in outcomes.items() if method == label)
        by_eta.plot([eta for eta, _ in runs], [loss if loss <= chance else math.nan for _, loss in runs], **style)
        shift = 10 ** (0.06 * (index - 2))  # marks of several methods would hide one another
        lost = [eta * shift for eta, loss in runs if not loss <= chance]
        by_eta.plot(lost, [1.06 * chance] * len(lost), linestyle="", marker="x", color=colour)
    loss.set(xlabel="epoch", ylabel="training loss (nats, mean over the epoch)")
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    by_eta.set(xlabel="eta", ylabel="training loss of the last epoch (nats)", xscale="log")
    for panel in (loss, by_eta):
        panel.axhline(chance, color="grey", linestyle=":", linewidth=1)
        panel.set_ylim(bottom=0, top=1.15 * chance)
    for panel in (loss, accuracy):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (loss, accuracy, by_eta):
        panel.grid(alpha=0.3)
    figure.suptitle(f"{title}; dotted: chance; x: above chance, or diverged")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Warmup)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="metrics.jsonl in the workdir holds the runs that were finished"):
        sweep = read(Warmup)

        def report(dataset: Dataset, outcomes: dict[Key, Outcome], output: Workdir) -> str:
            chance, rate = math.log(dataset.num_classes), sweep.rate(sweep.batch_size)
            title = f"{sweep.title(dataset)}, B = {sweep.batch_size}, learning rate {rate:g}"
            with drawing():
                plot(outcomes, output.file("warmup.png"), title, chance)
            return as_markdown(outcomes, chance)

        run(sweep, "warmup", sweep.configs, lambda key: f"eta = {key[1]:g}", report)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
