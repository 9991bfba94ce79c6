"""Entrants: the trainers that a benchmark compares, built alike: one network, one optimizer, one set of random images.

Inputs are on the first stage's device and labels on the last's before anything is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdecouple as jd
from experiments.measure import throughput
from experiments.measure.compilations import Compilations
from experiments.measure.operation_times import OperationMeter
from experiments.settings import Settings, option
from experiments.training import auto
from experiments.training.auto import Choice
from experiments.training.methods import METHODS, WITH_AUTO
from jaxdecouple import schedules
from jaxdecouple.network.stage import Stage
from jaxdecouple.schedules import Schedule

ONE_WORKER, ONE_JIT, ONE_STAGE = "one worker", "one jit, all cores", "one stage"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(Settings):
    """What is trained while something is measured: a network, random images, stages, and for how long."""

    model: str = option("resnet20", "mlp, resnet<6n+2>, or resnet18, 34, 50, 101, 152 (ImageNet form)")
    num_stages: int = option(2, "K, stages; they share devices where there are fewer", least=1)
    batch_size: int = option(128, "images of an update; a multiple of 4 for gpipe and adl", least=1)
    image_size: int = option(32, "pixels along each side; below 64, ResNets get a small stem", least=1)
    num_classes: int = option(10, "outputs", least=1)
    dtype: str = option(
        "float32", "of the computation: float32 or bfloat16; parameters are float32", choices=("float32", "bfloat16")
    )
    methods: tuple[str, ...] = option((), f"methods to measure: {', '.join(WITH_AUTO)}; empty: all", choices=WITH_AUTO)
    boundaries: tuple[int, ...] = option(
        (), "layer indices at which a new stage starts; empty: stages of equal cost", example="3,6"
    )
    one_device: bool = option(False, "put all stages on one device, where decoupling cannot help")
    repeats: int = option(5, "rounds of measurements", least=1)
    seconds: float = option(4.0, "about how long the measurement of one rate takes", above=0)
    memory: bool = option(True, "count peak memory, which compiles everything once more")
    profile: str = option("", "file of measured layers, read if there, else written")

    def check(self) -> None:
        """Refuses what cannot be measured; ranges have been checked."""
        for method in self.chosen:
            parts = METHODS[method].accumulate
            if self.batch_size % parts:
                raise ValueError(
                    f"batch_size is {self.batch_size}, which {method} splits into {parts} micro-batches; write a "
                    f"multiple of {parts}, or --methods without {method}"
                )
        cut(self, schedules.fdg(self.num_stages))  # refuses the model, and a cut that does not fit

    @property
    def chosen(self) -> list[str]:
        """The methods to measure, in the order of the table; ``auto`` is apart."""
        return [name for name in METHODS if not self.methods or name in self.methods]

    def layers(self) -> list[Any]:
        """The model, which can be cut inside its blocks."""
        small, dtype = self.image_size < 64, jnp.dtype(self.dtype)
        return jd.models.by_name(self.model, self.num_classes, small_images=small, split_blocks=True, dtype=dtype)

    def sample(self, batch_size: int | None = None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of inputs, [B, H, W, 3]."""
        return jax.ShapeDtypeStruct(
            (batch_size or self.batch_size, self.image_size, self.image_size, 3), jnp.dtype("float32")
        )

    def distinct(self, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A few batches to feed in turn: random images, [B, H, W, 3] float32, and labels, [B] int32; on the host."""
        random = np.random.default_rng(0)
        shape = self.sample(batch_size).shape
        return [
            (random.standard_normal(shape, np.float32), random.integers(self.num_classes, size=batch_size, dtype="i4"))
            for _ in range(4)
        ]


def cut(workload: Workload, schedule: Schedule, profile: jd.Profile | None = None) -> tuple[Stage, ...]:
    """The network's stages for a schedule: the given cut, or else stages of equal cost, as measured if it was.

    Raises:
      ValueError: the network cannot be cut so, or the profile is of another one.
    """
    return jd.partition(
        workload.layers(),
        workload.num_stages,
        sample=workload.sample(),
        boundaries=workload.boundaries or None,
        costs=None if workload.boundaries else profile,
        weights=schedule.weights,
    )


def profile(workload: Workload, device: jax.Device) -> jd.Profile | None:
    """The network's layers as measured: the file's, or measured now, and then written there. ``None`` for a given cut.

    Raises:
      ValueError: the file's is of another model, input or device.
    """
    if workload.boundaries:
        return None
    path = pathlib.Path(workload.profile) if workload.profile else None
    if path is not None and path.exists():
        found = jd.Profile.load(path)
        found.check(workload.layers(), workload.sample(), device)
        return found
    found = jd.profile(workload.layers(), workload.sample(), device=device)
    if path is not None:
        found.save(path)
    return found


def optimizer() -> optax.GradientTransformation:
    """As in the experiments. The rate is small: random labels cannot be learned, and nothing should overflow."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entrant:
    """A trainer, compiled, and filled.

    Attributes:
      label: of its row.
      loop: what is timed.
      batch_size: images per tick.
      compilations: from the first batch until it was filled.
      accumulate: M, ticks per update.
      pipeline: with ``meter``, of its operations; ``None`` for a training step without the library.
      step: that training step.
    """

    label: str
    loop: throughput.Loop
    batch_size: int
    compilations: Compilations
    accumulate: int = 1
    pipeline: jd.Pipeline | None = None
    meter: OperationMeter | None = None
    step: Any = None


def pipelined(
    label: str,
    workload: Workload,
    stages: Sequence[Stage],
    schedule: Schedule,
    devices: Sequence[jax.Device],
    accumulate: int = 1,
    auxiliary: Any = None,
) -> Entrant:
    """The library's pipeline; with ``accumulate`` M it is fed micro-batches of a M-th of the batch."""
    pipeline = jd.Pipeline(
        stages,
        schedule,
        optimizer=jd.stagewise(optimizer(), accumulate=accumulate),
        auxiliary=auxiliary,
        devices=devices,
    )
    batch_size, last = workload.batch_size // accumulate, len(devices) - 1
    state = pipeline.init(jax.random.key(0), workload.sample(batch_size))
    put = pipeline.placement.put
    batches = [(put(x, 0), put(y, last)) for x, y in workload.distinct(batch_size)]
    fill = 2 * schedule.drain + 2 * accumulate + 2
    with Compilations() as compilations:
        loop = throughput.Loop(pipeline.step, state, itertools.cycle(batches), fill=fill, unit=accumulate)
    return Entrant(
        label=label,
        loop=loop,
        batch_size=batch_size,
        compilations=compilations,
        accumulate=accumulate,
        pipeline=pipeline,
        meter=OperationMeter(pipeline, jax.random.key(0), batches[0], group=accumulate),
    )


def pipeline_of(name: str, workload: Workload, devices: Sequence[jax.Device]) -> jd.Pipeline:
    """The pipeline of a method of the papers, with its own M."""
    schedule, auxiliary = _method(name, workload)
    optimizer_of = jd.stagewise(optimizer(), accumulate=METHODS[name].accumulate)
    return jd.Pipeline(cut(workload, schedule), schedule, optimizer=optimizer_of, auxiliary=auxiliary, devices=devices)


def method(name: str, workload: Workload, devices: Sequence[jax.Device], profile: jd.Profile | None = None) -> Entrant:
    """A method of the papers, with its own M."""
    (schedule, auxiliary), accumulate = _method(name, workload), METHODS[name].accumulate
    label = f"{name} M={accumulate}" if accumulate > 1 else name
    return pipelined(label, workload, cut(workload, schedule, profile), schedule, devices, accumulate, auxiliary)


def _method(name: str, workload: Workload) -> tuple[Schedule, Any]:
    """Its schedule, and the auxiliary network of its stages, if they have one."""
    network = METHODS[name].auxiliary
    auxiliary = network and network(workload.num_classes, dtype=jnp.dtype(workload.dtype))
    return METHODS[name].schedule(workload.num_stages), auxiliary


def choose_automatically(workload: Workload, devices: Sequence[jax.Device]) -> Choice:
    """The cut and the schedule that measured layers and stages call for."""
    return auto.choose(
        workload.layers(),
        workload.num_stages,
        workload.sample(),
        workload.distinct(workload.batch_size)[0][1],
        devices,
        boundaries=workload.boundaries or None,
        profile=profile(workload, devices[0]),
        optimizer=optimizer(),
    )


def one_stage(workload: Workload, devices: Sequence[jax.Device]) -> Entrant:
    """The library's pipeline with K = 1: what the engine costs, without decoupling."""
    stages = jd.partition(workload.layers(), 1, sample=workload.sample())
    return pipelined(ONE_STAGE, workload, stages, schedules.backprop(1), devices[:1])


def whole_network(label: str, workload: Workload, device: jax.Device, one_core: bool = False) -> Entrant:
    """One compiled training step for the whole network, as one would write it without the library."""
    step, state = training_step(workload, device)
    batches = [jax.device_put(batch, device) for batch in workload.distinct(workload.batch_size)]
    with Compilations() as compilations:
        loop = throughput.Loop(step, state, itertools.cycle(batches), fill=2, one_core=one_core)
    return Entrant(label=label, loop=loop, batch_size=workload.batch_size, compilations=compilations, step=step)


def training_step(workload: Workload, device: jax.Device) -> tuple[Any, Any]:
    """``(state, (images, labels)) -> (state, loss)``, compiled, and a state, whose memory it reuses."""
    (network,) = jd.partition(workload.layers(), 1, sample=workload.sample())
    transform, key = optimizer(), jax.random.key(0)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: tuple[Any, Any, Any], batch: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        params, model_state, opt_state = state
        images, labels = batch

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            logits, new_state = network.apply(params, model_state, images, key=key, batch=0, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

        (loss, model_state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = transform.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state), loss

    params, model_state = network.init(key, workload.sample())
    return step, jax.device_put((params, model_state, transform.init(params)), device)
