"""A profile says how long each layer of a network takes on a device, and how much it sends to the next."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdecouple.charts import table
from jaxdecouple.engine.inner_program import InnerProgram
from jaxdecouple.network.adapters import as_layers
from jaxdecouple.network.layer import Layer, LayerShapes, blaming, once_per_kind, walk
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, describe, shape_of, signature_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What `profile` measured.

    Attributes:
      names: of the layers.
      forward: seconds of each layer's forward, for a batch like the sample.
      backward: seconds of each layer's backward, with a plain gradient step; the first has no input to differentiate.
      sent: bytes of each layer's input, which is what a cut in front of it sends up, and down again as a gradient.
      params: bytes of each layer's parameters.
      sample: shapes and dtypes of the network's input, in words.
      model: a digest of the layers' names, inputs and parameters.
      device: the kind of device.
      jax: the version of JAX.
    """

    names: tuple[str, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    sent: tuple[int, ...]
    params: tuple[int, ...]
    sample: str
    model: str
    device: str
    jax: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        columns = {name: getattr(self, name) for name in ("forward", "backward", "sent", "params")}
        for name, values in columns.items():
            wrong = [value for value in values if not isinstance(value, int | float) or not 0 <= value < math.inf]
            if len(values) != len(self.names) or wrong:
                raise ValueError(
                    f"the profile's {name} is {list(values)}; it needs {len(self.names)} numbers of at least 0, "
                    "one per layer"
                )

    @property
    def costs(self) -> tuple[float, ...]:
        """Seconds of forward and backward of each layer."""
        return tuple(f + b for f, b in zip(self.forward, self.backward, strict=True))

    def _repr_html_(self) -> str:
        """A row for each layer, which notebooks show."""
        columns = zip(self.names, self.forward, self.backward, self.sent, self.params, strict=True)
        rows = [["layer", "", "forward (ms)", "backward (ms)", "input (MB)", "parameters (MB)"]]
        for index, (name, forward, backward, sent, params) in enumerate(columns):
            numbers = (1e3 * forward, 1e3 * backward, 1e-6 * sent, 1e-6 * params)
            rows.append([str(index), name, *(f"{number:.3g}" for number in numbers)])
        return table(rows)

    def check(self, layers: Sequence[Any], sample: PyTree | None = None, device: Any = None) -> None:
        """Refuses another network, another input or another kind of device than those that were measured.

        Raises:
          ValueError: layers, ``sample`` or ``device`` are not those of the profile.
        """
        layers = as_layers(layers)
        names = tuple(layer.name for layer in layers)
        if names != self.names:
            raise ValueError(
                f"the profile is of another model, with {len(self.names)} layers ({_short(self.names)}), but the "
                f"network has {len(names)} ({_short(names)}); measure it with jaxdecouple.profile(layers, sample)"
            )
        if sample is not None:
            given = describe(shape_of(sample))
            if given != self.sample:
                raise ValueError(
                    f"the profile was measured for inputs {self.sample}, but these are {given}; measure again with "
                    "jaxdecouple.profile(layers, sample)"
                )
            if _digest(list(walk(layers, sample))) != self.model:
                raise ValueError(
                    "the profile is of another model: layers of the same names, but with other inputs or parameters; "
                    "measure this one with jaxdecouple.profile(layers, sample)"
                )
        if device is not None and device.device_kind != self.device:
            raise ValueError(
                f"the profile was measured on {self.device!r}, but this is {device.device_kind!r}; measure again "
                "with jaxdecouple.profile(layers, sample, device=device)"
            )

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the profile as JSON."""
        pathlib.Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: str | pathlib.Path) -> Profile:
        """A profile that `save` wrote.

        Raises:
          ValueError: the file cannot be read, or holds something else.
        """
        try:
            fields = json.loads(pathlib.Path(path).read_text())
            return Profile(**fields)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no profile ({error}); write one with profile.save(path)") from error


def profile(
    layers: Sequence[Any], sample: PyTree, *, device: Any = None, repeats: int = 5, seconds: float = 0.05
) -> Profile:
    """Measures the forward and the backward of each layer, alone, as a pipeline would run it; identical layers once.

    Args:
      layers: Flax modules, functions or `Layer` objects, in order.
      sample: an input of the network, [B, ...], of which only shapes and dtypes matter.
      device: where to measure; by default the first of ``jax.devices()``.
      repeats: measurements of each function, whose median counts.
      seconds: about how long one measurement takes, at least one call.

    Raises:
      ValueError: repeats below 1, no layers, or a layer that cannot take what the layer before it puts out.
    """
    layers = as_layers(layers)
    if not layers or repeats < 1:
        raise ValueError(
            f"got {len(layers)} layers and repeats {repeats}; write at least one layer, and repeats of at least 1"
        )
    device = jax.devices()[0] if device is None else device
    network = list(walk(layers, sample))

    def measure(layer: Layer, x: PyTree, first: int) -> tuple[float, float]:
        return _measure(Stage((layer,), first), x, device, repeats, seconds)

    # The first layer stands alone: it computes no gradient of its input.
    measure_later, times = once_per_kind(measure), []
    for each in network:
        with blaming(each.layer.name, each.index, each.x):
            times.append((measure_later if each.index else measure)(each.layer, each.x, each.index))
    return Profile(
        names=tuple(layer.name for layer in layers),
        forward=tuple(forward for forward, _ in times),
        backward=tuple(backward for _, backward in times),
        sent=tuple(_bytes(each.x) for each in network),
        params=tuple(_bytes(each.params) for each in network),
        sample=describe(network[0].x),
        model=_digest(network),
        device=device.device_kind,
        jax=jax.__version__,
    )


def _digest(network: Sequence[LayerShapes]) -> str:
    """Of the layers' names, inputs and parameters."""
    parts = [f"{each.layer.name}: {signature_of(each.x)} {signature_of(each.params)}" for each in network]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _measure(stage: Stage, x: PyTree, device: Any, repeats: int, seconds: float) -> tuple[float, float]:
    # Without donation, a function can be called with the same arguments again and again.
    program = InnerProgram(stage, optax.sgd(1e-3), donate=False)
    with jax.default_device(device):
        x = jax.device_put(_random(x), device)
        state = jax.device_put(program.init(jax.random.key(0), x), device)
        passed = program.forward(state, x, 0, "stash")
        state, residual = passed.state, passed.residual
        assert residual is not None  # of the forward
        gradient = jax.device_put(_random(shape_of(passed.outcome.y)), device)
        gradient = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, gradient)
        forward = _seconds(lambda: program.forward(state, x, 0, "stash"), repeats, seconds)
        backward = _seconds(lambda: program.backward(state, residual, gradient, 0, "stash"), repeats, seconds)
    return forward, backward


def _seconds(call: Callable[[], Any], repeats: int, seconds: float) -> float:
    """The median time of a call. Calls are queued one behind the other, as in a pipeline, and waited for together."""

    def measure(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    measure(1)  # compiles
    # Queued calls hold their results in memory until they are done: not too many of them.
    calls = max(1, min(8, round(seconds / measure(1))))
    return statistics.median(measure(calls) for _ in range(repeats))


def _random(tree: PyTree) -> PyTree:
    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return (
            jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)
            if inexact
            else jnp.zeros(leaf.shape, leaf.dtype)
        )

    return jax.tree.map(values, tree)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
