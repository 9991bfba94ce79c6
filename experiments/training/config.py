"""A config is everything that determines the result of a run; each field is a command-line flag."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import lazy_loader

import jaxdecouple as jd
from experiments.settings import Settings, choose, option
from experiments.training.methods import AUTO, METHODS, WITH_AUTO, Method
from jaxdecouple.schedules import Schedule, ends_group, missed_updates

if TYPE_CHECKING:
    import flax.linen as nn
    import jax
    import optax

    from jaxdecouple.data import Dataset, StreamedDataset, TextData
    from jaxdecouple.transforms import StageOptimizer
else:  # when they are needed: --help need not wait for JAX
    jax, optax = lazy_loader.load("jax"), lazy_loader.load("optax")

OPTIMIZERS = ("sgd", "adam", "adamw", "lars", "clars")
LAYER_WISE = ("lars", "clars")
LARGEST_SAMPLE = 512  # thesis, section 4.4.4
DTYPES = ("float32", "bfloat16")
DECAYS = ("step", "cosine", "polynomial", "constant")
LOGS = ("csv", "tensorboard", "wandb")


def _as_float32(logits: jax.Array) -> jax.Array:
    return logits.astype(jax.numpy.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving(Settings):
    """How often a run is saved. Unless ``save_every`` is 0, so is each epoch that ends with the lowest error so far."""

    save_every: int = option(
        500, "ticks between two checkpoints; 0: only when the run is stopped", least=0, group="the run"
    )
    keep: int = option(3, "checkpoints to keep: the newest, and besides them that of the best epoch", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging(Settings):
    """What is told of a run besides its results, and where."""

    log: tuple[str, ...] = option(
        (), f"also log to: {', '.join(LOGS)}; several with commas between", choices=LOGS, group="the run", common=True
    )
    mark_ticks: int = option(
        0, "ticks in which it is noted when each operation really runs, for ./run.sh report; 0: none", least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """The settings of one training run. The help texts say units and sources."""

    method: str = option(
        "fdg",
        f"training method: {', '.join(METHODS)}, or auto: measured cut and delays",
        choices=WITH_AUTO,
        group="method",
        common=True,
    )
    num_stages: int = option(2, "K, stages the network is cut into, one device each", least=1, common=True)
    model: str = option(
        "resnet20",
        "mlp, cnn, vgg11, 13, 16, 19, resnet<6n+2> (CIFAR form), resnet<9n+2>_bottleneck, preact_resnet<9n+2>, "
        "resnet18, 34, 50, 101, 152, wrn28_10, resnext29, se_resnet18, mobilenet_v2, densenet121; of texts: gpt_nano, "
        "gpt_micro, gpt_mini, gpt2_small, medium, large, xl",
        group="network and data",
        common=True,
    )
    dtype: str = option("float32", f"of the computation: {' or '.join(DTYPES)}; parameters are float32", choices=DTYPES)
    split_blocks: bool = option(False, "residual networks and transformers may be cut inside their blocks as well")
    dataset: str = option(
        "digits",
        "digits, npz:PATH, folder:PATH, tiny_imagenet:PATH, imagenet:PATH, streamed:PATH, or a name of "
        "tensorflow-datasets such as cifar10; texts: pydoc, text:FILE or tokens:FILE.npy",
        common=True,
    )
    tokens: str = option("bytes", "texts: bytes, characters, or the file of a tokenizer (tokenizer.json)")
    context: int = option(64, "texts: tokens of a sequence", least=1)
    test_sequences: int = option(0, "texts: sequences to test on; 0: all of the last tenth", least=0)
    positions: str = option("learned", "language models: learned or rotary", choices=("learned", "rotary"))
    dropout: float = option(0.0, "language models: rate", least=0, below=1)
    tied: bool = option(False, "language models: embedding and head have one matrix")
    data_dir: str = option("", "where tensorflow-datasets keeps its files, and PATHs start; empty: its own default")
    image_size: int = option(
        0, "height and width of streamed images, in pixels; 0: 224, or that of the data set", least=0
    )
    data_threads: int = option(
        0, "threads that decode streamed images; 0: one per core. No result depends on them", least=0
    )
    epochs: int = option(10, "passes over the training set", least=1, group="training", common=True)
    batch_size: int = option(
        128, "examples fed per tick: where --accumulate is above 1, a micro-batch", least=1, common=True
    )
    accumulate: int = option(
        0, "M, batches of an update (ADL eq. 16); 0: 4 for adl, gpipe, 1f1b, zero_bubble, else 1", least=0, common=True
    )
    beta: float = option(1.0, "gradient shrinking factor in (0, 1] (FDG eq. 15); 1: none", group="method", common=True)
    weights: str = option(
        "", "weights of a backward pass: stash, remat, replay or latest; empty: the method's own", common=True
    )
    order: str = option("", "within a tick: forward_first or backward_first (fdg, adl, dsp); empty: the method's own")
    p: tuple[int, ...] = option((), "dsp: activation queues p_0,...,p_{K-1}, in ticks (DSP 3.3); empty: 1,...,1,0")
    m: tuple[int, ...] = option((), "dsp: layer-wise staleness m_0,...,m_{K-1}, in ticks; empty: 2(K-1),...,2,0")
    boundaries: tuple[int, ...] = option((), "layer indices at which a new stage starts; empty: equal operation counts")
    jitter: float = option(0.0, "auto: how late activations and gradients may come, in the time of a batch", least=0)
    optimizer: str = option(
        "sgd", f"one of {', '.join(OPTIMIZERS)}", choices=OPTIMIZERS, group="optimizer", common=True
    )
    learning_rate: float = option(0.1, "peak learning rate", above=0, common=True)
    auxiliary_learning_rate: float = option(
        0.0,
        "of auxiliary networks; 0: dgl's learn as their stages do, dni's by Adam at 3e-5 (Jaderberg et al.)",
        least=0,
    )
    dni_labels: bool = option(
        True, "dni: gradient predictors are told the labels (thesis, 5.5.1), or not (thesis, 6.5.1; DSP)"
    )
    momentum: float = option(0.9, "sgd, lars, clars: momentum; adam, adamw: beta1", least=0, below=1)
    counters: str = option(
        "own",
        "updates that Adam's bias correction and the learning-rate schedule count: own, those of the stage; global, "
        "also those that it misses while the pipeline fills (thesis, Algorithm 10 and eq. 5.9)",
        choices=("own", "global"),
    )
    eta: float = option(
        0.0, "lars, clars: trust coefficient (thesis, eqs. 4.3, 4.7); 0: 0.001 for lars, 0.01 for clars", least=0
    )
    scale_biases: bool = option(True, "lars, clars: biases and normalisation are scaled too (the thesis's code: false)")
    norm_sample: int = option(
        0, "clars: examples whose gradient norms are measured, of an update's last batch; 0: at most 512", least=0
    )
    norm_statistics: str = option(
        "batch",
        "clars: gradient norms are measured with the statistics of the batch, held constant, or the running averages",
        choices=("batch", "running"),
    )
    nesterov: bool = option(False, "Nesterov momentum (DDG, FR experiments: true)")
    weight_decay: float = option(5e-4, "of all parameters; added to the gradient, for adamw to the update", least=0)
    decay: str = option("step", f"learning-rate schedule after the warm-up: {', '.join(DECAYS)}", choices=DECAYS)
    decay_epochs: tuple[float, ...] = option(
        (), "step: epochs after which the rate drops; empty: at 1/2 and 3/4", above=0, example="150,225"
    )
    decay_factor: float = option(0.1, "step: what the rate is multiplied with at a drop", above=0)
    decay_power: float = option(2.0, "polynomial: rate (1 - progress)^power (thesis, Fig. 11)", above=0)
    warmup_epochs: float = option(0.0, "epochs of linear warm-up from 1 % of the learning rate (ADL: 3)", least=0)
    warmup_rate: float = option(
        0.0, "learning rate of the whole warm-up (FDG: 0.01 for 3 epochs); 0: a linear rise", least=0
    )
    augment: bool = option(True, "random crops, and flips where the images allow it", group="data and tests")
    normalise: str = option(
        "channels",
        "images by: channels, the data set's means and deviations; fdg, its code's; image, each by its own (DSP)",
    )
    drop_last: bool = option(False, "leave out an epoch's last, smaller batch")
    eval_batch_size: int = option(500, "examples per test batch", least=1)
    diagnose_every: int = option(
        0,
        "ticks between two probes of staleness, of the distance from the true gradient and of direction; 0: none",
        least=0,
        group="the run",
        common=True,
    )
    direction_batches: int = option(
        1,
        "training batches over which probes of direction take the true gradient (thesis eq. 6.10): 0: the training "
        "set; 1: the one being fed, which says little",
        least=0,
    )
    init_from: str = option(
        "", "weights to start from: model.msgpack, or the workdir, of a run of the same model; K and method may differ"
    )
    seed: int = option(
        0, "of the initial network, the order of the data, augmentation and dropout", least=0, below=2**32, common=True
    )

    def check(self) -> None:
        """Refuses what cannot be trained; ranges have been checked."""
        choose("normalise", self.normalise, jd.data.NORMALISATIONS)
        self._check_task()
        layers = self.layers(10)
        if self.num_stages > len(layers):  # before a schedule of so many is made
            raise ValueError(
                f"num_stages is {self.num_stages}, but {self.model} can be cut into {len(layers)} stages at most; "
                "write that many, or --split_blocks where it has blocks"
            )
        for name in ("weights", "order", "p", "m", "jitter"):
            if getattr(self, name) and name not in self._method.takes:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but method {self.method} has no such setting")
        self._check_local_learning()
        for name, (setting, values) in _ONLY_WITH.items():
            given, chosen = getattr(self, name), getattr(self, setting)
            if chosen not in values and given != _DEFAULTS[name]:
                raise ValueError(
                    f"{name} is {given}, but {setting} {chosen} has no such setting; write --{setting}="
                    f"{' or '.join(values)}, or leave it out"
                )
        self._check_epochs()
        if self.nesterov and not self.momentum and not self.optimizer.startswith("adam"):
            raise ValueError("nesterov is given, but momentum is 0; write --momentum=0.9, or leave --nesterov out")
        if self.counters == "global" and self.method == AUTO:
            raise ValueError(
                "counters is global, but method auto finds its delays only when a run begins; leave it out, or write "
                "a method with delays of its own"
            )
        if self.direction_batches != 1 and not self.diagnose_every:
            raise ValueError(
                f"direction_batches is {self.direction_batches}, but diagnose_every is 0: nothing is probed; write "
                "--diagnose_every=100, or leave it out"
            )
        if self.norm_sample > self.batch_size:
            raise ValueError(
                f"norm_sample is {self.norm_sample}, but batches have {self.batch_size} examples; write at most that "
                "many, or 0"
            )
        if self.p or self.m:
            if len(self.p) != self.num_stages or len(self.m) != self.num_stages:
                raise ValueError(
                    f"p is {self.p} and m is {self.m}; with num_stages={self.num_stages}, write both, with "
                    f"{self.num_stages} numbers each"
                )
        self.schedule(), self.stage_optimizer(1.0)  # these refuse the rest

    def _check_task(self) -> None:
        """Refuses a model that is not of the data's kind, and settings of the other kind."""
        text, model = jd.data.is_text(self.dataset), self.model in jd.models.GPT_SIZES
        if text != model:
            needed = "a language model, such as --model=gpt_nano" if text else "a text, such as --dataset=pydoc"
            raise ValueError(f"model is {self.model}, and dataset {self.dataset}; write {needed}")
        for name in _OF_IMAGES if text else _OF_TEXTS:
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but {self.dataset} has "
                    f"{'a text' if text else 'images'}, and no such setting; leave it out"
                )

    def _check_epochs(self) -> None:
        if self.warmup_rate and not self.warmup_epochs:
            raise ValueError(f"warmup_rate is {self.warmup_rate}, but warmup_epochs is 0; write both, or neither")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but the run has {self.epochs} epochs; write at most that many"
            )
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise ValueError(f"decay_epochs is {self.decay_epochs}; write increasing epochs, such as 150,225,275")
        if self.decay_epochs and self.decay_epochs[-1] >= self.epochs:
            raise ValueError(
                f"decay_epochs is {self.decay_epochs}, but the run has {self.epochs} epochs; write epochs below that"
            )

    def _check_local_learning(self) -> None:
        if self._method.auxiliary is None and self.auxiliary_learning_rate:
            raise ValueError(
                f"auxiliary_learning_rate is {self.auxiliary_learning_rate}, but method {self.method} has no auxiliary "
                "networks; leave it out"
            )
        if self._method.auxiliary is not None and self.beta != 1:
            raise ValueError(f"beta is {self.beta}, but {self.method}'s stages pass no gradients on; leave it out")
        if self._method.auxiliary is not None and self.optimizer == "clars":
            raise ValueError(f"optimizer is clars, but gradient norms are not measured under {self.method}; write lars")

    @property
    def steps_per_update(self) -> int:
        """M: the given one, or the method's own."""
        return self.accumulate or self._method.accumulate

    def measures_norms(self, batch: int) -> bool:
        """Whether gradient norms are measured before batch ``batch`` is fed: for an update that it ends."""
        return self.optimizer == "clars" and ends_group(batch, self.steps_per_update)

    @property
    def _method(self) -> Method:
        return WITH_AUTO[self.method]

    def schedule(self) -> Schedule:
        """The method's schedule; for ``auto``, the one that stands in for it until it is planned."""
        settings = {name: getattr(self, name) for name in self._method.takes if getattr(self, name)}
        return self._method.schedule(self.num_stages, self.steps_per_update, **settings)

    def layers(self, num_classes: int, image_size: int = 32) -> list[Any]:
        """The model, as a sequence of modules, for images of about this height."""
        form: dict[str, Any] = {"small_images": image_size < 64, "split_blocks": self.split_blocks}
        if jd.data.is_text(self.dataset):
            form |= {"context": self.context, "positions": self.positions}
            form |= {"dropout": self.dropout, "tied": self.tied}
        if self.dtype == "float32":
            return jd.models.by_name(self.model, num_classes, **form)
        # The loss, and what the last stage sends down, are computed from float32 logits.
        return [*jd.models.by_name(self.model, num_classes, **form, dtype=jax.numpy.dtype(self.dtype)), _as_float32]

    def auxiliary(self, num_classes: int) -> nn.Module | None:
        """The auxiliary network of a stage that learns locally; ``None`` for methods that have none."""
        network, told = self._method.auxiliary, num_classes if self.dni_labels else None
        return network and network(told, dtype=None if self.dtype == "float32" else jax.numpy.dtype(self.dtype))

    def auxiliary_optimizer(self, batches_per_epoch: float) -> StageOptimizer | None:
        """The optimizer of the auxiliary networks; ``None`` if they have none, or that of their stages."""
        if self.method == "dni":  # gradients are small numbers: with the stages' own rate, predictors overshoot
            inner = optax.adam(self.auxiliary_learning_rate or 3e-5)
            return jd.stagewise(inner, accumulate=self.steps_per_update)
        if not self.auxiliary_learning_rate:
            return None
        scaled = dataclasses.replace(self, learning_rate=self.auxiliary_learning_rate)
        return scaled.stage_optimizer(batches_per_epoch)

    def load_data(self) -> Dataset | StreamedDataset | TextData:
        """The data set.

        Raises:
          ValueError: it cannot be had, or not at this size.
        """
        if jd.data.is_text(self.dataset):
            return jd.data.load_text(
                self.dataset,
                context=self.context,
                tokens=self.tokens,
                data_dir=self.data_dir or None,
                most_test=self.test_sequences,
            )
        return jd.data.load(
            self.dataset,
            data_dir=self.data_dir or None,
            image_size=self.image_size,
            num_threads=self.data_threads,
        )

    def learning_rates(self, batches_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the update index."""
        updates_per_epoch = batches_per_epoch / self.steps_per_update

        def updates(epochs: float) -> int:
            return round(epochs * updates_per_epoch)

        warmup, total = updates(self.warmup_epochs), max(1, updates(self.epochs))
        if self.decay == "cosine":
            after = optax.cosine_decay_schedule(self.learning_rate, max(1, total - warmup))
        elif self.decay == "constant":
            after = optax.constant_schedule(self.learning_rate)
        elif self.decay == "polynomial":
            steps = max(1, total - warmup)
            after = optax.polynomial_schedule(self.learning_rate, 0.0, self.decay_power, steps)
        else:
            drops = self.decay_epochs or (self.epochs / 2, 3 * self.epochs / 4)
            factors = {updates(epoch) - warmup: self.decay_factor for epoch in drops}
            after = optax.piecewise_constant_schedule(self.learning_rate, factors)
        if not warmup:
            return after
        if self.warmup_rate:
            rise = optax.constant_schedule(self.warmup_rate)
        else:
            rise = optax.linear_schedule(0.01 * self.learning_rate, self.learning_rate, warmup)
        return optax.join_schedules([rise, after], [warmup])

    def stage_optimizer(self, batches_per_epoch: float) -> StageOptimizer:
        """The optimizer of each stage, shrinking and accumulation included."""
        rate, decay = self.learning_rates(batches_per_epoch), optax.add_decayed_weights(self.weight_decay)
        if self.optimizer == "sgd":
            inner = optax.chain(decay, optax.sgd(rate, momentum=self.momentum or None, nesterov=self.nesterov))
        elif self.optimizer == "adam":
            inner = optax.chain(decay, optax.adam(rate, b1=self.momentum, nesterov=self.nesterov))
        elif self.optimizer in LAYER_WISE:
            inner = getattr(jd, self.optimizer)(
                rate,
                **({"eta": self.eta} if self.eta else {}),
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                mask=True if self.scale_biases else jd.weight_mask,
            )
        else:
            inner = optax.adamw(rate, b1=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)
        return jd.stagewise(inner, beta=self.beta, accumulate=self.steps_per_update, missed=self.missed_updates())

    def missed_updates(self) -> tuple[int, ...]:
        """The updates that each stage counts before its first; none if it counts its own alone."""
        return missed_updates(self.schedule(), self.steps_per_update) if self.counters == "global" else ()


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_OF_TEXTS = ("tokens", "context", "test_sequences", "positions", "dropout", "tied")
_OF_IMAGES = ("image_size", "data_threads", "augment", "normalise")
_ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {  # settings that have an effect with some values of another alone
    "decay_epochs": ("decay", ("step",)),
    "decay_factor": ("decay", ("step",)),
    "decay_power": ("decay", ("polynomial",)),
    "eta": ("optimizer", LAYER_WISE),
    "scale_biases": ("optimizer", LAYER_WISE),
    "norm_sample": ("optimizer", ("clars",)),
    "norm_statistics": ("optimizer", ("clars",)),
    "dni_labels": ("method", ("dni",)),
}
