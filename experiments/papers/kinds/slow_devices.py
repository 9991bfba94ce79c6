"""Devices that take their time: before a stage's work, its device waits, always, or at random.

On CPU devices the wait is a sleep, which takes no core from the others: with a network whose own work is next to
nothing, any number of stages behave as on devices of their own. On accelerators, which cannot sleep, it is a loop on
the device itself. The wait begins when the inputs are there and the device has done its last work, and the work begins
when it ends, since both are in the data flow: an input passes through the waiting function, with a number of the
stage's newest state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdecouple as jd
from jaxdecouple.engine.workspace import Observer, Operation, Workspace
from jaxdecouple.network.trees import PyTree

_TURNS = 1000  # of the loop, while it is calibrated


@dataclasses.dataclass(frozen=True)
class Slowness:
    """How slow the devices are.

    Attributes:
      seconds: of each stage, name of a program's function -> how long its work takes on an even device.
      percent: how much longer it takes when the device is slow.
      probability: with which a device is slow in a tick.
      emulated: whether the device waits for ``seconds`` as well, as the work itself takes next to nothing.
    """

    seconds: Sequence[Mapping[str, float]]
    percent: float
    probability: float
    emulated: bool


class SlowDevices(Observer):
    """Makes the operations of a pipeline wait before they begin."""

    def __init__(self, pipeline: jd.Pipeline, slowness: Slowness, random: np.random.Generator):
        """Slows the devices of ``pipeline``.

        Args:
          pipeline: each stage has a device of its own.
          slowness: how slow.
          random: draws, once for each stage and tick.
        """
        self._slowness = slowness
        self._waits = [_sleep if place.platform == "cpu" else _loop(place) for place in pipeline.placement.devices]
        self._draws = [_Draws(random, slowness.probability) for _ in pipeline.programs]

    def before(self, work: Workspace, operation: Operation, k: int, n: int) -> None:
        """Makes the input of an operation that came last from elsewhere come later."""
        inputs = (work.gradients if operation.startswith("backward") else work.activations)[k]
        seconds, slow = self._slowness.seconds[k][operation], self._draws[k].slow(operation)
        even = seconds if self._slowness.emulated else 0.0
        stage = work.stages[k]
        # Their values may be those of the last work on this device, and then only exist when it is done.
        newest = [packed.arrays[:1] for packed in (stage.packed_params, stage.packed_model_state)]
        # A wait of no time is made as well, so that both cases cost the same besides.
        inputs[n] = self._waits[k](inputs[n], newest, even + slow * seconds * self._slowness.percent / 100)


class _Draws:
    """Whether a device is slow, drawn anew for each tick: for each joined call, or each forward with its backward."""

    def __init__(self, random: np.random.Generator, probability: float):
        self._random, self._probability = random, probability
        self._slow, self._seen = False, {"nothing"}

    def slow(self, name: str) -> bool:
        if name in self._seen or "nothing" in self._seen or name in ("train", "backward_forward"):
            self._seen = set()
            self._slow = bool(self._random.random() < self._probability)
        self._seen.add(name)
        return self._slow


def _sleep(x: PyTree, newest: PyTree, seconds: float) -> PyTree:
    """``x``, so many seconds after it and ``newest`` are there."""
    # What has all it needs, and calls Python, XLA's CPU client runs at once, in the thread that dispatches it: the host
    # would sleep. The token comes from another function, which takes so long that it runs elsewhere.
    return _sleeping(x, _begin(x, newest), seconds)


@jax.jit
def _begin(x: PyTree, newest: PyTree) -> jax.Array:
    dear = jnp.full((128, 128), _token(x, newest))
    return (dear @ dear.T)[0, 0]


@jax.jit
def _sleeping(x: PyTree, token: jax.Array, seconds: jax.Array) -> PyTree:
    def sleep(seconds: Any, token: Any) -> np.ndarray:
        time.sleep(float(seconds))
        return np.zeros((), np.float32)

    return _after(x, jax.pure_callback(sleep, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(seconds), token))


def _loop(device: jax.Device) -> Callable:
    """Like `_sleep`, by computing on the device: its speed is measured first."""

    @jax.jit
    def turn(x: PyTree, newest: PyTree, turns: jax.Array) -> PyTree:
        begin = jnp.eye(64) + 0 * _token(x, newest)
        return _after(x, jax.lax.fori_loop(0, turns, lambda _, y: jnp.sin(y @ begin), begin)[0, 0])

    probe = jax.device_put(jnp.zeros(()), device)
    jax.block_until_ready(turn(probe, (), _TURNS))
    start = time.perf_counter()
    jax.block_until_ready(turn(probe, (), 10 * _TURNS))
    each = (time.perf_counter() - start) / (10 * _TURNS)
    return lambda x, newest, seconds: turn(x, newest, round(seconds / each))


def _token(*trees: PyTree) -> jax.Array:
    """A number that is there when all the trees are."""
    return sum((leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(trees)), jnp.float32(0))


def _after(x: PyTree, token: jax.Array) -> PyTree:
    """``x``, which needs ``token``: a barrier would not do, since what nobody uses passes none."""
    return jax.tree.map(lambda leaf: jnp.where(token == jnp.inf, jnp.zeros_like(leaf), leaf), x)
