"""How much the examples' gradients disagree, layer by layer, as training goes on (thesis, section 4.4.3 and Figure 12).

    python -m experiments.large_batch.gradient_variance --model=fcn

All layers train with one constant rate. Before training and after each epoch, of every layer k

    M_k = (1/n) sum_i |grad_k f_i|^2 / |(1/n) sum_i grad_k f_i|^2

exactly, on the first --norm_sample training images: 1 if all examples ask for the same step, n if they cancel out.

The directory gets results.json, table.md and gradient_variance.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lazy_loader
import numpy as np

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.large_batch.network import Examples, Network, Study, order_of, rounded, style
from experiments.report.workdir import Workdir
from experiments.settings import option
from experiments.training.stopping import NonFiniteLoss

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from jaxdecouple.network.trees import PyTree
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")

_CHUNK = 1000  # examples of one mean gradient; sums of more would lose digits in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceStudy(Study):
    """As `Study`, with one rate for all layers."""

    learning_rate: float = option(0.001, "of all layers, constant (thesis: 0.001)", above=0)
    norm_sample: int = option(0, "training images to measure on, the first, at least 2; 0: all", least=0)
    chunk_size: int = option(32, "examples whose gradients are in memory at once", least=1)

    name = "gradient_variance"

    def check(self) -> None:
        if self.norm_sample == 1:
            raise ValueError("norm_sample is 1; write at least 2, or 0 for all training images")

    def check_examples(self, count: int) -> None:
        if self.norm_sample > count:
            raise ValueError(
                f"norm_sample is {self.norm_sample}, but there are {count} training images; write {count} or less, or "
                "0 for all"
            )

    def plan(self, count: int, labels: Mapping[str, str]) -> str:
        return f"{count} images: {self.epochs} epochs, M_k on {self.norm_sample or count} of them"

    def measure(
        self, network: Network, examples: Examples, labels: Mapping[str, str], output: Workdir
    ) -> list[Factors]:
        """Trains, and measures before training and after each epoch.

        Raises:
          NonFiniteLoss: the run diverged.
        """
        sample = jax.tree.map(lambda leaf: leaf[: self.norm_sample or None], examples)
        params = network.init(self.seed, examples[0][:1])
        rates = dict.fromkeys(network.names, self.learning_rate)
        opt_state = network.optimizer(rates).init(params)
        records = [Factors(0, None, variance_factors(network, params, sample, chunk_size=self.chunk_size))]
        with command_line.bar(self.epochs, "epoch") as bar:
            for epoch in range(self.epochs):
                order = order_of(len(examples[1]), self.batch_size, seed=self.seed, epoch=epoch)
                params, opt_state, losses = network.epoch(params, opt_state, rates, examples, order)
                loss = float(np.asarray(losses, np.float64).mean())
                if not np.isfinite(loss):
                    raise NonFiniteLoss(
                        f"the training loss of epoch {epoch + 1} is {loss}; write a lower --learning_rate"
                    )
                factors = variance_factors(network, params, sample, chunk_size=self.chunk_size)
                records.append(Factors(epoch + 1, loss, factors))
                bar.update()
        return records

    def results(self, found: Sequence[Factors], labels: Mapping[str, str]) -> dict[str, Any]:
        factors = {label: rounded([record.factors[name] for record in found]) for name, label in labels.items()}
        return {"train_loss": rounded([record.train_loss for record in found[1:]]), "variance_factors": factors}

    def table(self, found: Sequence[Factors], labels: Mapping[str, str]) -> list[list[str]]:
        """M_k by epoch and layer."""
        rows = [["epoch", "training loss", *(f"layer {label}" for label in labels.values())]]
        for record in found:
            loss = "-" if record.train_loss is None else f"{record.train_loss:.3f}"
            rows.append([str(record.epoch), loss, *(f"{record.factors[name]:.3g}" for name in labels)])
        return rows

    def draw(self, found: Sequence[Factors], labels: Mapping[str, str], picture: Figure, data: str) -> None:
        """M_k over epochs, a line for each layer."""
        panel = picture.subplots()
        for index, (name, label) in enumerate(labels.items()):
            values = [record.factors[name] for record in found]
            panel.plot([record.epoch for record in found], values, label=label, markersize=4, **style(index))
        panel.set(yscale="log", xlabel="epochs of training", ylabel="gradient variance factor $M_k$")
        panel.set_title(f"{data}, learning rate {self.learning_rate:g}")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3, which="both")
        picture.legend(*panel.get_legend_handles_labels(), title="layer (weights)", loc="outside right center")


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


def _sum(layer: PyTree, function: Callable[[np.ndarray], np.floating]) -> np.floating:
    return sum(function(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(layer))


define_flags, main = VarianceStudy.define_flags, VarianceStudy.main

if __name__ == "__main__":
    define_flags()
    command_line.start(main)
