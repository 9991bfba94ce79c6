"""A network trained as a whole on one device, each of its layers with a learning rate of its own."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import lazy_loader
import numpy as np
from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir, drawing
from experiments.settings import Settings, define, option, read
from jaxdecouple import data
from jaxdecouple.data import Dataset

if TYPE_CHECKING:
    import flax.linen as nn
    import jax
    import optax
    from matplotlib.figure import Figure

    from jaxdecouple.network.trees import PyTree
else:  # when they are needed: --help need not wait for JAX
    jax, optax = lazy_loader.load("jax"), lazy_loader.load("optax")

MODELS = ("fcn", "cnn", "resnet8")
Examples: TypeAlias = "tuple[jax.Array, jax.Array]"
Rates: TypeAlias = "Mapping[str, float | jax.Array]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """What is trained, and on what."""

    model: str = option("fcn", f"one of {', '.join(MODELS)}: thesis section 4.4.1", choices=tuple(MODELS))
    dataset: str = option("digits", "as for experiments.train")
    data_dir: str = option("", "as for experiments.train")
    num_examples: int = option(0, "train on the first so many images; 0: all", least=0)
    epochs: int = option(10, "passes over the training set, at most", least=1)
    batch_size: int = option(128, "B, images of a batch (thesis: 128)", least=1)
    momentum: float = option(0.9, "beta of Nesterov's momentum (eq. 4.6)", least=0, below=1)
    seed: int = option(0, "of the initial network and of the order of the data", least=0, below=2**32)

    def load(self) -> tuple[Dataset, Examples]:
        """The data set, and its first ``num_examples`` training images, normalised, with their labels.

        Raises:
          ValueError: the data cannot be had, or there are too few of them.
        """
        dataset = data.load(self.dataset, data_dir=self.data_dir or None)
        images, labels = dataset.x_train, dataset.y_train
        if self.num_examples > len(labels):
            raise ValueError(
                f"num_examples is {self.num_examples}, but {dataset.name} has {len(labels)} training images; write "
                f"{len(labels)} or less, or 0 for all"
            )
        count = self.num_examples or len(labels)
        if self.batch_size > count:
            raise ValueError(f"batch_size is {self.batch_size}, but there are {count} training images; write {count}")
        preprocess = data.Preprocess.for_dataset(dataset, augment=False)
        chunks = [preprocess.eval(images[i : min(i + 5000, count)]) for i in range(0, count, 5000)]
        return dataset, (jax.numpy.concatenate(chunks), jax.numpy.asarray(labels[:count]))

    def network(self, num_classes: int) -> Network:
        """The model."""
        return Network(layers_of(self.model, num_classes), self.momentum)

    def described(self, dataset: Dataset) -> dict[str, Any]:
        """The settings for a report: the data set by its name, not by where its file lies."""
        return dataclasses.asdict(dataclasses.replace(self, dataset=dataset.name, data_dir=""))


class Network:
    """A sequence of modules, their mean softmax cross entropy, and mini-batch SGD with Nesterov's momentum.

    What it computes is compiled once for each shape of its inputs, not for each rate.

    Attributes:
      stage: all layers; its parameters are a dict from ``names`` to those of a layer.
      momentum: beta of the thesis's eq. 4.6.
    """

    def __init__(self, layers: Sequence[Any], momentum: float = 0.9):
        from jaxdecouple.network.jax_internals import fast_in_loops

        self.stage = jd.Stage(tuple(map(jd.as_layer, layers)))
        self.momentum = momentum
        self.gradient = jax.jit(jax.grad(self.loss))
        self._epoch = jax.jit(functools.partial(fast_in_loops, self._scan))

    @property
    def names(self) -> tuple[str, ...]:
        """The key of each layer in the parameters, in order."""
        return self.stage.keys

    def init(self, seed: int, x: jax.Array) -> PyTree:
        """The parameters, for inputs [B, ...] like ``x``.

        Raises:
          ValueError: a layer has no parameters, or has batch statistics.
        """
        params, model_state = self.stage.init(jax.random.key(seed), x)
        if model_state or set(params) != set(self.names):
            raise ValueError(
                f"the layers are {', '.join(self.names)}; write layers that have parameters, all of them, and no other "
                "state, as batch normalisation has"
            )
        return params

    def loss(self, params: PyTree, batch: Examples) -> jax.Array:
        """The mean loss of a batch of inputs [B, ...] and labels [B], in nats."""
        x, labels = batch
        logits, _ = self.stage.apply(params, {}, x, key=jax.random.key(0), batch=0, train=True)
        return jd.softmax_cross_entropy(logits, labels)

    def optimizer(self, rates: Rates) -> optax.GradientTransformation:
        """Nesterov's momentum (eq. 4.6) with the rate of each layer; its state does not depend on the rates."""
        each = {name: optax.sgd(rates[name], momentum=self.momentum, nesterov=True) for name in self.names}
        return optax.partition(each, lambda params: {name: name for name in params})

    def epoch(
        self, params: PyTree, opt_state: PyTree, rates: Rates, examples: Examples, order: np.ndarray
    ) -> tuple[PyTree, PyTree, jax.Array]:
        """One step for each row of ``order``: an epoch or a part of it.

        Args:
          params, opt_state: from `init` and from the optimizer's ``init``, or from the epoch before.
          rates: of each layer, by its name.
          examples: the training set.
          order: [steps, B], indices of the examples of each batch.

        Returns:
          New parameters and optimizer state, and the loss of each batch before its step, [steps].
        """
        return self._epoch(params, opt_state, {name: float(rates[name]) for name in self.names}, examples, order)

    def _scan(
        self, params: PyTree, opt_state: PyTree, rates: Rates, examples: Examples, order: jax.Array
    ) -> tuple[PyTree, PyTree, jax.Array]:
        optimizer = self.optimizer(rates)

        def step(carry: tuple[PyTree, PyTree], rows: jax.Array) -> tuple[tuple[PyTree, PyTree], jax.Array]:
            params, opt_state = carry
            batch = jax.tree.map(lambda all_of_them: all_of_them[rows], examples)
            loss, gradient = jax.value_and_grad(self.loss)(params, batch)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), order)
        return params, opt_state, losses


class Study(Training):
    """Trains a network, and says and draws what it found of each of its layers, by their names.

    Attributes:
      name: of the picture, and of the directory below runs/.
      interrupted: what to say of the results after Ctrl-C.
    """

    name: ClassVar[str]
    interrupted: ClassVar[str] = "nothing was written"

    def check_examples(self, count: int) -> None:
        """Refuses so many training images."""

    def plan(self, count: int, labels: Mapping[str, str]) -> str:
        """What will be done with so many images, in words."""
        raise NotImplementedError

    def measure(self, network: Network, examples: Examples, labels: Mapping[str, str], output: Workdir) -> Any:
        """Trains; what was found."""
        raise NotImplementedError

    def results(self, found: Any, labels: Mapping[str, str]) -> dict[str, Any]:
        """The same for results.json."""
        raise NotImplementedError

    def table(self, found: Any, labels: Mapping[str, str]) -> list[list[str]]:
        """The same as a table."""
        raise NotImplementedError

    def draw(self, found: Any, labels: Mapping[str, str], picture: Figure, data: str) -> None:
        """The same as a picture; ``data`` are the images in words."""
        raise NotImplementedError

    def run(self, workdir: pathlib.Path, *, overwrite: bool = False) -> Any:
        """Loads, trains and writes; what was found.

        Raises:
          ValueError: settings, data or workdir cannot be used.
          NonFiniteLoss: the run diverged.
        """
        Workdir.check(workdir, overwrite=overwrite)
        dataset, examples = self.load()
        self.check_examples(len(examples[1]))
        network, described = self.network(dataset.num_classes), self.described(dataset)
        labels = layer_labels(network.init(self.seed, examples[0][:1]))
        output = Workdir(workdir, described, overwrite=overwrite)
        print(f"{self.model} on {self.plan(len(examples[1]), labels)}")
        start = time.perf_counter()
        found = self.measure(network, examples, labels, output)
        about = {"machine": devices.describe(), "seconds": round(time.perf_counter() - start, 1)}
        output.write_json("results.json", {"settings": described, **about, **self.results(found, labels)})
        table = markdown(self.table(found, labels))
        output.write("table.md", table + "\n")
        with drawing():
            from matplotlib.figure import Figure  # --help need not wait for it

            picture = Figure(figsize=(9, 4.8), layout="constrained")
            count = f"{self.num_examples} images of " if self.num_examples else ""
            self.draw(found, labels, picture, f"{self.model} on {count}{dataset.name}")
            picture.savefig(output.file(f"{self.name}.png"), dpi=120)
        print(f"\n{table}\n")
        return found

    @classmethod
    def define_flags(cls) -> None:
        """The flags of the program. Not at import: its functions serve other programs too."""
        define(cls)
        command_line.define_workdir()

    @classmethod
    def main(cls, argv: list[str]) -> None:
        """The program."""
        start = time.perf_counter()
        with command_line.frame(argv, interrupted=cls.interrupted):
            study = read(cls)
            workdir = command_line.workdir(f"{cls.name}-{study.model}")
            study.run(workdir, overwrite=flags.FLAGS.overwrite)
            print(f"{time.perf_counter() - start:.0f} s; picture, table and numbers are in {workdir}")


def layers_of(model: str, num_classes: int) -> Sequence[nn.Module]:
    """One of the networks of thesis section 4.4.1, by their number of layers and their activation.

    Its widths are not known; those of the convolutions are small, to train in minutes on a CPU. The residual network is
    cut inside its blocks, so that each of its eight layers with weights is a module.
    """
    import flax.linen as nn

    from jaxdecouple import models

    if model == "fcn":
        return models.mlp(num_classes, hidden=(128,) * 4, activation=nn.sigmoid)
    if model == "cnn":
        return models.cnn(num_classes, channels=(8, 16, 16), hidden=(64,), activation=nn.sigmoid)
    return models.resnet8(num_classes, normalise=False, split_blocks=True)


def order_of(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The examples of each batch of epoch 0, 1, ..., [steps, B]; the last ones are left out if they fill no batch."""
    index = np.arange(num_examples, dtype=np.int32)
    batches = data.epoch_batches(index, index, batch_size, seed=seed, epoch=epoch, drop_last=True)
    return np.stack([rows for rows, _ in batches])


def layer_labels(params: dict[str, PyTree]) -> dict[str, str]:
    """What to call each layer: its number, from the input on, and the shape of its weights."""
    return {name: f"{number} ({_weight_shape(layer)})" for number, (name, layer) in enumerate(params.items(), 1)}


def style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the layer of this index, from 0 on."""
    import matplotlib

    return {
        "color": matplotlib.colormaps["tab10"](index % 10),
        "linestyle": ("-", "--", ":", "-.")[index % 4],
        "marker": "osD^vP<>"[index % 8],
    }


def rounded(values: Sequence[float], digits: int = 6) -> list[float | None]:
    """For JSON: so many significant digits, and ``None`` where a value is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def _weight_shape(layer: PyTree) -> str:
    weights = max(jax.tree.leaves(layer), key=lambda leaf: leaf.ndim)
    return "x".join(map(str, weights.shape))
