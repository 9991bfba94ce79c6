"""How much the examples' gradients disagree, layer by layer, as training goes on (thesis, section 4.4.3 and Figure 12).

    python -m experiments.large_batch.gradient_variance --model=fcn

All layers train with one constant rate. Before training and after each epoch, of every layer k

    M_k = (1/n) sum_i |grad_k f_i|^2 / |(1/n) sum_i grad_k f_i|^2

exactly, on the first --norm_sample training images: 1 if all examples ask for the same step, n if they cancel out.

The directory gets results.json, table.md and gradient_variance.png.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.large_batch.network import Examples, Network, Training, layer_labels, order_of, rounded, style
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir, drawing
from experiments.settings import define, option, read
from experiments.training.progress import NonFiniteLoss
from jaxdecouple.network.trees import PyTree

FLAGS = flags.FLAGS

_CHUNK = 1000  # examples of one mean gradient; sums of more would lose digits in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceStudy(Training):
    """As `Training`, with one rate for all layers."""

    learning_rate: float = option(0.001, "of all layers, constant (thesis: 0.001)", above=0)
    norm_sample: int = option(0, "training images to measure on, the first, at least 2; 0: all", least=0)
    chunk_size: int = option(32, "examples whose gradients are in memory at once", least=1)

    def check(self) -> None:
        if self.norm_sample == 1:
            raise ValueError("norm_sample is 1; write at least 2, or 0 for all training images")


@dataclasses.dataclass(frozen=True)
class Factors:
    """What was measured after one epoch.

    Attributes:
      epoch: 0 before training.
      train_loss: mean over the epoch, in nats; ``None`` before training.
      factors: M_k of each layer, by its name.
    """

    epoch: int
    train_loss: float | None
    factors: dict[str, float]


def variance_factors(network: Network, params: PyTree, examples: Examples, *, chunk_size: int = 32) -> dict[str, float]:
    """M_k of each layer, by its name, on all of ``examples``.

    Args:
      network: what is trained.
      params: its parameters.
      examples: inputs [n, ...] and labels [n].
      chunk_size: how many examples' gradients are in memory at once.
    """
    count = len(examples[1])
    norms = jd.per_example_gradient_norms(network.loss, params, examples, sample_size=None, chunk_size=chunk_size)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), params)
    for start in range(0, count, _CHUNK):
        chunk = jax.tree.map(lambda leaf, start=start: leaf[start : start + _CHUNK], examples)
        size, gradient = len(chunk[1]), network.gradient(params, chunk)
        total = jax.tree.map(lambda a, b, size=size: a + size * np.asarray(b, np.float64), total, gradient)
    factors = {}
    for name in network.names:
        of_examples = _sum(norms[name], lambda norms: np.square(norms).mean())
        of_mean = _sum(total[name], lambda gradient: np.square(gradient / count).sum())
        with np.errstate(divide="ignore", invalid="ignore"):  # no gradient, no factor
            factors[name] = float(np.divide(of_examples, of_mean))
    return factors


def measure(network: Network, examples: Examples, settings: VarianceStudy, *, bar: Any = None) -> list[Factors]:
    """Trains, and measures before training and after each epoch.

    Raises:
      NonFiniteLoss: the run diverged.
    """
    sample = jax.tree.map(lambda leaf: leaf[: settings.norm_sample or None], examples)
    params = network.init(settings.seed, examples[0][:1])
    rates = dict.fromkeys(network.names, settings.learning_rate)
    opt_state = network.optimizer(rates).init(params)
    records = [Factors(0, None, variance_factors(network, params, sample, chunk_size=settings.chunk_size))]
    for epoch in range(settings.epochs):
        order = order_of(len(examples[1]), settings.batch_size, seed=settings.seed, epoch=epoch)
        params, opt_state, losses = network.epoch(params, opt_state, rates, examples, order)
        loss = float(np.asarray(losses, np.float64).mean())
        if not np.isfinite(loss):
            raise NonFiniteLoss(f"the training loss of epoch {epoch + 1} is {loss}; write a lower --learning_rate")
        factors = variance_factors(network, params, sample, chunk_size=settings.chunk_size)
        records.append(Factors(epoch + 1, loss, factors))
        if bar is not None:
            bar.update()
    return records


def table(records: Sequence[Factors], labels: dict[str, str]) -> str:
    """M_k by epoch and layer, in Markdown."""
    rows = [["epoch", "training loss", *(f"layer {label}" for label in labels.values())]]
    for record in records:
        loss = "-" if record.train_loss is None else f"{record.train_loss:.3f}"
        rows.append([str(record.epoch), loss, *(f"{record.factors[name]:.3g}" for name in labels)])
    return markdown(rows)


def draw(records: Sequence[Factors], labels: dict[str, str], path: pathlib.Path, title: str) -> None:
    """M_k over epochs, a line for each layer.

    Args:
      records: of all epochs.
      labels: layer -> what the legend calls it.
      path: of the PNG to write.
      title: of the picture.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    for index, (name, label) in enumerate(labels.items()):
        values = [record.factors[name] for record in records]
        panel.plot([record.epoch for record in records], values, label=label, markersize=4, **style(index))
    panel.set(yscale="log", xlabel="epochs of training", ylabel="gradient variance factor $M_k$", title=title)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3, which="both")
    figure.legend(*panel.get_legend_handles_labels(), title="layer (weights)", loc="outside right center")
    figure.savefig(path, dpi=120)


def write(
    output: Workdir,
    settings: VarianceStudy,
    described: dict[str, Any],
    records: Sequence[Factors],
    labels: dict[str, str],
    seconds: float,
) -> None:
    """The files of a finished measurement."""
    output.write_json(
        "results.json",
        {
            "settings": described,
            "machine": devices.describe(),
            "seconds": round(seconds, 1),
            "train_loss": rounded([record.train_loss for record in records[1:]]),
            "variance_factors": {
                label: rounded([record.factors[name] for record in records]) for name, label in labels.items()
            },
        },
    )
    output.write("table.md", table(records, labels) + "\n")
    count = f"{settings.num_examples} images of " if settings.num_examples else ""
    title = f"{settings.model} on {count}{described['dataset']}, learning rate {settings.learning_rate:g}"
    with drawing():
        draw(records, labels, output.file("gradient_variance.png"), title)


def run(settings: VarianceStudy, workdir: pathlib.Path, *, overwrite: bool = False) -> list[Factors]:
    """Loads, trains, measures and writes.

    Raises:
      ValueError: settings, data or workdir cannot be used.
      NonFiniteLoss: the run diverged.
    """
    Workdir.check(workdir, overwrite=overwrite)
    dataset, examples = settings.load()
    if settings.norm_sample > len(examples[1]):
        raise ValueError(
            f"norm_sample is {settings.norm_sample}, but there are {len(examples[1])} training images; write "
            f"{len(examples[1])} or less, or 0 for all"
        )
    network, described = settings.network(dataset.num_classes), settings.described(dataset)
    labels = layer_labels(network.init(settings.seed, examples[0][:1]))
    output = Workdir(workdir, described, overwrite=overwrite)
    print(
        f"{settings.model} on {len(examples[1])} images of {dataset.name}: {settings.epochs} epochs, M_k on "
        f"{settings.norm_sample or len(examples[1])} of them"
    )
    start = time.perf_counter()
    with command_line.bar(settings.epochs, "epoch") as bar:
        records = measure(network, examples, settings, bar=bar)
    write(output, settings, described, records, labels, time.perf_counter() - start)
    print(f"\n{table(records, labels)}\n")
    return records


def _sum(layer: PyTree, function: Callable[[np.ndarray], np.floating]) -> np.floating:
    return sum(function(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(layer))


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(VarianceStudy)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="nothing was written"):
        settings = read(VarianceStudy)
        workdir = command_line.workdir(f"gradient_variance-{settings.model}")
        run(settings, workdir, overwrite=FLAGS.overwrite)
        print(f"{time.perf_counter() - start:.0f} s; picture, table and numbers are in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
