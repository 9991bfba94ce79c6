"""Memory: the most bytes that each device holds at once while a pipeline trains.

No platform reports this for every device (CPU devices keep no statistics, and a GPU's peak is that of the whole
process), so it is counted: before each dispatch, the arrays alive on its device, and what the compiled function adds,
its outputs and temporary buffers, as XLA reports them. Dispatches are waited for one by one; what a host that runs
ahead allocates early is not in it, nor what an allocator wastes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxdecouple import Pipeline
from jaxdecouple.engine.state import State


def peak_bytes(
    pipeline: Pipeline,
    state: State,
    batches: Iterable[tuple[Any, Any]],
    step: Callable[[State, tuple[Any, Any]], tuple[State, Any]] | None = None,
) -> list[int]:
    """The peak over ``batches`` of each device of ``pipeline``, in bytes, the state included.

    Args:
      pipeline: built for this purpose; its compiled functions are watched from now on.
      state: of it; used up.
      batches: on the host, so that only what the pipeline makes of them counts.
      step: a tick of ``pipeline``, by default its own ``step``.

    Returns:
      One number per distinct device, in the order of the stages.
    """
    devices = list(dict.fromkeys(pipeline.placement.devices))
    meter = _Meter(state)
    for program, device in zip(pipeline.programs, pipeline.placement.devices, strict=True):
        program.functions = _Watched(meter, device, program.functions)
    for batch in batches:
        state, _ = (step or pipeline.step)(state, batch)
    return [meter.peaks[device] for device in devices]


class _Watched(dict):
    """The compiled functions of a program, each watched from when it is put in."""

    def __init__(self, meter: _Meter, device: jax.Device, functions: dict[Any, Callable]):
        super().__init__()
        self._meter, self._device = meter, device
        for key, function in functions.items():
            self[key] = function

    def __setitem__(self, key: Any, function: Callable) -> None:
        super().__setitem__(key, self._meter.watch(function, self._device))


class _Meter:
    """Watches compiled functions. Arrays that were alive before, other than the state's, do not count."""

    def __init__(self, state: State):
        mine = {id(leaf) for leaf in jax.tree.leaves(state)}
        self._others = {id(array): array for array in jax.live_arrays() if id(array) not in mine}
        self.peaks: dict[jax.Device, int] = collections.defaultdict(int)

    def watch(self, function: Callable, device: jax.Device) -> Callable:
        added: dict[Any, int] = {}  # by the arguments' shapes

        def call(*args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            key = structure, tuple((getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) for leaf in leaves)
            if key not in added:
                added[key] = _added_bytes(function, args)
            self.peaks[device] = max(self.peaks[device], self._alive(device) + added[key])
            return jax.block_until_ready(function(*args))

        return call

    def _alive(self, device: jax.Device) -> int:
        alive = [
            array
            for array in jax.live_arrays()
            if id(array) not in self._others and not array.is_deleted() and array.devices() == {device}
        ]
        # Arrays can share a buffer: a batch that stays where it is, for one.
        return sum({array.unsafe_buffer_pointer(): array.nbytes for array in alive if not _is_key(array)}.values())


def _is_key(array: jax.Array) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _added_bytes(function: Callable, args: tuple) -> int:
    """What a call holds beyond its arguments: outputs that reuse none of them, and temporary buffers."""
    analysis = function.lower(*args).compile().memory_analysis()
    return analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
