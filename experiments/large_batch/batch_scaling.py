"""Linear scaling of the learning rate with the batch, for Nesterov's momentum and for LARS (thesis, Figure 10).

    python -m experiments.large_batch.batch_scaling

trains with every batch size B of the list at the learning rate gamma_base B / B_base: mNAG (eq. 4.2) and LARS (eq.
4.3), both with a linear warm-up over a tenth of the epochs and a polynomial decay to 0 (Figure 11). The thesis:
ResNet-56 and VGG-11 with batch normalisation on CIFAR-10, 200 epochs, 20 of them warm-up, eta = 0.001:

    python -m experiments.large_batch.batch_scaling --model=resnet56 --dataset=cifar10 --epochs=200 \\
        --batch_sizes=128,512,2048,8192

The directory gets results.json, table.md, run by run metrics.jsonl, and batch_scaling.png.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import cli as command_line
from experiments import devices
from experiments.large_batch import sweeps
from experiments.large_batch.outcomes import Outcome, announce, cell, write
from experiments.large_batch.sweeps import Setting
from experiments.report.markdown import markdown
from experiments.report.workdir import Workdir
from experiments.training.config import Config
from jaxdecouple.data import Dataset

FLAGS = flags.FLAGS
Key = tuple[str, int]  # optimizer's label, batch size

OPTIMIZERS = {"mNAG": "sgd", "LARS": "lars"}


def configs(setting: Setting, dataset: Dataset, *, batch_sizes: Sequence[int], eta: float) -> dict[Key, Config]:
    """The config of each optimizer with each batch size."""
    return {
        (label, size): setting.config(
            dataset,
            size,
            optimizer=optimizer,
            eta=eta if optimizer == "lars" else 0.0,
            warmup_epochs=setting.epochs / 10,
            decay="polynomial",
        )
        for label, optimizer in OPTIMIZERS.items()
        for size in batch_sizes
    }


def as_markdown(setting: Setting, outcomes: Mapping[Key, Outcome]) -> str:
    """A row per batch size: learning rate, updates, and of each optimizer training loss and test error at the end."""
    rows = [["B", "learning rate", "updates", *OPTIMIZERS]]
    for size in dict.fromkeys(size for _, size in outcomes):
        runs = [outcomes[label, size] for label in OPTIMIZERS]
        updates = max((run.records[-1].ticks for run in runs if run.records), default=0) // runs[0].config.accumulate
        rows.append([str(size), f"{setting.rate(size):g}", str(updates), *map(cell, runs)])
    return markdown(rows)


def plot(outcomes: Mapping[Key, Outcome], path: pathlib.Path, title: str, chance: float) -> None:
    """Training loss and test accuracy over epochs, of every optimizer and batch size."""
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
    sweeps.define_flags(Setting())
    flags.DEFINE_list("batch_sizes", ["64", "256", "1024"], "B, images of an update (thesis: 128 to 8192)")
    flags.DEFINE_float("eta", 0.001, "trust coefficient of LARS")
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="metrics.jsonl in the workdir holds the runs that were finished"):
        setting, workdir = sweeps.read_flags(), pathlib.Path(FLAGS.workdir or Workdir.unused("runs/batch_scaling"))
        setting.check()
        sizes = sweeps.numbers("batch_sizes", FLAGS.batch_sizes, int)
        Workdir.check(workdir, overwrite=FLAGS.overwrite)
        devices.request(1)
        devices.compile_once()
        dataset = setting.load()
        chosen = configs(setting, dataset, batch_sizes=sizes, eta=FLAGS.eta)
        for config in chosen.values():
            config.check()
        output = Workdir(workdir, dataclasses.asdict(setting), overwrite=FLAGS.overwrite)
        outcomes = sweeps.train_all(
            chosen, dataset, lambda key, outcome: announce(output, key[0], f"B = {key[1]}", outcome)
        )
        table = as_markdown(setting, outcomes)
        write(output, {**setting.describe(dataset), "eta": FLAGS.eta}, outcomes, table)
        title = f"{setting.title(dataset)}, learning rate {setting.base_rate:g} B / {setting.base_batch}"
        plot(outcomes, output.path / "batch_scaling.png", title, math.log(dataset.num_classes))
    print(f"\n{table}\n\ntraining loss of the last epoch and test error; picture and numbers are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
