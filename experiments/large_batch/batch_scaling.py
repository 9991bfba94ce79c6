r"""Linear scaling of the learning rate with the batch, for Nesterov's momentum and for LARS (thesis, Figure 10).

    python -m experiments.large_batch.batch_scaling

trains with every batch size B of the list at the learning rate gamma_base B / B_base: mNAG (eq. 4.2) and LARS (eq.
4.3), both with a linear warm-up over a tenth of the epochs and a polynomial decay to 0 (Figure 11). The thesis:
ResNet-56 and VGG-11 with batch normalisation on CIFAR-10, 200 epochs, 20 of them warm-up, eta = 0.001:

    python -m experiments.large_batch.batch_scaling --model=resnet56 --dataset=cifar10 --epochs=200 \
        --batch_sizes=128,512,2048,8192

The directory gets results.json, table.md, run by run metrics.jsonl, and batch_scaling.png.
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

Key = tuple[str, int]  # optimizer's label, batch size

OPTIMIZERS = {"mNAG": "sgd", "LARS": "lars"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchScaling(Sweep):
    """As `Sweep`, with several batch sizes."""

    batch_sizes: tuple[int, ...] = option(
        (64, 256, 1024), "B, images of an update (thesis: 128 to 8192)", above=0, example="128,512"
    )
    eta: float = option(0.001, "trust coefficient of LARS", least=0)

    def configs(self, dataset: Dataset) -> dict[Key, Config]:
        """The config of each optimizer with each batch size."""
        return {
            (label, size): self.config(
                dataset,
                size,
                optimizer=optimizer,
                eta=self.eta if optimizer == "lars" else 0.0,
                warmup_epochs=self.epochs / 10,
                decay="polynomial",
            )
            for label, optimizer in OPTIMIZERS.items()
            for size in self.batch_sizes
        }


def as_markdown(sweep: Sweep, outcomes: Mapping[Key, Outcome]) -> str:
    """A row per batch size: learning rate, updates, and of each optimizer training loss and test error at the end."""
    rows = [["B", "learning rate", "updates", *OPTIMIZERS]]
    for size in dict.fromkeys(size for _, size in outcomes):
        runs = [outcomes[label, size] for label in OPTIMIZERS]
        updates = max((run.records[-1].ticks for run in runs if run.records), default=0) // runs[0].config.accumulate
        rows.append([str(size), f"{sweep.rate(size):g}", str(updates), *map(cell, runs)])
    return markdown(rows)


def plot(outcomes: Mapping[Key, Outcome], path: pathlib.Path, title: str, chance: float) -> None:
    """Training loss and test accuracy over epochs, of every optimizer and batch size."""
    import matplotlib  # --help need not wait for it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    sizes = sorted({size for _, size in outcomes})
    for (label, size), outcome in outcomes.items():
        colour = matplotlib.colormaps["viridis"](0.9 * sizes.index(size) / max(1, len(sizes) - 1))
        style = {"color": colour, "linestyle": "-" if label == "LARS" else "--", "linewidth": 1.5}
        epochs = [record.epoch for record in outcome.records]
        name = f"{label}, B = {size}" + ("" if outcome.finite else " (diverged)")
        loss.plot(epochs, [record.train_loss for record in outcome.records], label=name, **style)
        accuracy.plot(epochs, [100 * (1 - record.test_error) for record in outcome.records], **style)
    loss.set(xlabel="epoch", ylabel="training loss (nats, mean over the epoch)")
    loss.axhline(chance, color="grey", linestyle=":", linewidth=1)
    loss.set_ylim(bottom=0, top=1.15 * chance)
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    for panel in (loss, accuracy):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    figure.suptitle(f"{title}; dotted: chance")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=120)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(BatchScaling)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="metrics.jsonl in the workdir holds the runs that were finished"):
        sweep = read(BatchScaling)

        def report(dataset: Dataset, outcomes: dict[Key, Outcome], output: Workdir) -> str:
            title = f"{sweep.title(dataset)}, learning rate {sweep.base_rate:g} B / {sweep.base_batch}"
            with drawing():
                plot(outcomes, output.file("batch_scaling.png"), title, math.log(dataset.num_classes))
            return as_markdown(sweep, outcomes)

        run(sweep, "batch_scaling", sweep.configs, lambda key: f"B = {key[1]}", report)


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
