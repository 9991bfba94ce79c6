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
import optax

import jaxdecouple as jd
from experiments.measure import throughput
from experiments.measure.compilations import Compilations
from experiments.measure.operation_times import OperationMeter
from experiments.measure.workload import Workload
from experiments.training import auto
from experiments.training.auto import Choice
from experiments.training.methods import METHODS
from jaxdecouple import schedules
from jaxdecouple.network.stage import Stage
from jaxdecouple.schedules import Schedule

ONE_WORKER, ONE_JIT, ONE_STAGE = "one worker", "one jit, all cores", "one stage"


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
    whole_batches: bool = False,
) -> Entrant:
    """The library's pipeline; with ``accumulate`` M it is fed micro-batches of a M-th of the batch, or whole ones."""
    pipeline = jd.Pipeline(
        stages,
        schedule,
        optimizer=jd.stagewise(optimizer(), accumulate=accumulate),
        auxiliary=auxiliary,
        devices=devices,
    )
    batch_size = workload.batch_size if whole_batches else workload.batch_size // accumulate
    last = len(devices) - 1
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
    return jd.Pipeline(workload.cut(schedule), schedule, optimizer=optimizer_of, auxiliary=auxiliary, devices=devices)


def method(name: str, workload: Workload, devices: Sequence[jax.Device], profile: jd.Profile | None = None) -> Entrant:
    """A method of the papers, with its own M."""
    (schedule, auxiliary), accumulate = _method(name, workload), METHODS[name].accumulate
    label = f"{name} M={accumulate}" if accumulate > 1 else name
    return pipelined(label, workload, workload.cut(schedule, profile), schedule, devices, accumulate, auxiliary)


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
    step, state = training_step(workload.layers(), optimizer(), workload.sample(), device)
    batches = [jax.device_put(batch, device) for batch in workload.distinct(workload.batch_size)]
    with Compilations() as compilations:
        loop = throughput.Loop(step, state, itertools.cycle(batches), fill=2, one_core=one_core)
    return Entrant(label=label, loop=loop, batch_size=workload.batch_size, compilations=compilations, step=step)


def training_step(
    layers: Sequence[Any], transform: optax.GradientTransformation, sample: jax.ShapeDtypeStruct, device: jax.Device
) -> tuple[Any, Any]:
    """``(state, (images, labels)) -> (state, loss)``, compiled, and a state, whose memory it reuses."""
    (network,) = jd.partition(layers, 1, sample=sample)
    key = jax.random.key(0)

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

    params, model_state = network.init(key, sample)
    return step, jax.device_put((params, model_state, transform.init(params)), device)
