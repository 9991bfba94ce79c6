"""Whatever is no part of JAX's public interface, or differs between its versions (0.10 to 0.12), stands here.

* What ``jax.vjp`` keeps for the backward: the weights, which it reads verbatim, are taken out and put in again.
* Jaxprs, which are what JAX records of a function: read for what depends on what, and rewritten where XLA is slow.
* Copies between devices, without the 50 microseconds of Python that ``jax.device_put`` takes for each array.
* The store of JAX's coordinator, in which processes leave one another notes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Literal, jaxpr_as_fun

try:
    from jax._src.lib import xla_client as _xla  # pyright: ignore[reportPrivateImportUsage]

    _copy_arrays = _xla.batched_copy_array_to_devices_with_sharding
    _put_array = _xla.batched_device_put
    _reuse = _xla.ArrayCopySemantics.REUSE_INPUT
except (ImportError, AttributeError):  # another version of JAX: `jax.device_put` does the same
    _copy_arrays = None

PyTree = Any

# Callbacks whose caller wants nothing back.
_REPORTS = ("debug_callback", "debug_print")

# What may be taken apart and put together again anywhere. A shard_map, for one, has axes that exist within it alone.
_TRANSPARENT = ("jit", "pjit", "scan", "checkpoint", "remat", "remat2", "closed_call", "core_call")


__all__ = [
    "attach_weights",
    "bind",
    "coordinator_store",
    "copy_to_device",
    "dependents",
    "depends",
    "detach_weights",
    "fast_in_loops",
    "jaxpr_as_fun",
    "put_on_device",
    "quiet",
    "transfer_address",
]


def detach_weights(vjp: Any) -> Any:
    """Takes the weights out of the result of ``jax.vjp(function, weights, x)``."""
    # `args_res` holds, for each argument, what the backward reads of it verbatim. From JAX 0.11 on
    # jax.vjp(..., saveable_args=) documents the same; assigning works in all versions.
    vjp.args_res = [None, vjp.args_res[1]]
    return vjp


def attach_weights(vjp: Any, weights: PyTree) -> Any:
    """Puts weights, these or others, into such a result again."""
    vjp.args_res = [weights, vjp.args_res[1]]
    return vjp


def copy_to_device(arrays: list[jax.Array], sharding: jax.sharding.SingleDeviceSharding) -> list[jax.Array]:
    """Arrays on one device, copied to another; asynchronous."""
    number = len(arrays)
    if _copy_arrays is not None:
        devices = [sharding._internal_device_list] * number
        with contextlib.suppress(TypeError):  # random keys, tracers and other things that are no plain arrays
            return _copy_arrays(arrays, devices, [sharding] * number, [_reuse] * number)
    return jax.device_put(arrays, sharding)


def put_on_device(arrays: list[Any], sharding: jax.sharding.SingleDeviceSharding) -> list[jax.Array]:
    """Arrays of NumPy, or of JAX, on a device; asynchronous."""
    if _copy_arrays is None or not all(type(array) is np.ndarray for array in arrays):
        return jax.device_put(arrays, sharding)
    found = []
    for array in arrays:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        array = np.ascontiguousarray(array, dtype)
        aval = ShapedArray(array.shape, dtype)
        found.append(_put_array(aval, sharding, [array], list(sharding.device_set), True))
    return found


def coordinator_store() -> Any:
    """The client of the store that `jax.distributed.initialize` opens: ``key_value_set`` and the like."""
    from jax._src import distributed

    return distributed.global_state.client


def transfer_address() -> str:
    """The address of this process for transfers between CPU devices; empty where none was set."""
    return jax.config.values.get("jax_cross_host_transfer_socket_address") or ""


def depends(jaxpr: Any, given: Sequence[bool]) -> list[bool]:
    """For each output of ``jaxpr``, whether it depends on one of the inputs that ``given`` marks.

    Loops and calls are looked into: what a loop over layers computes from their weights alone depends on no activation.
    """
    return _marks(jaxpr.outvars, dependents(jaxpr, given))


def dependents(jaxpr: Any, given: Sequence[bool]) -> set[Any]:
    """The variables of ``jaxpr`` that depend on one of the inputs that ``given`` marks, these included."""
    marked = {variable for variable, mark in zip(jaxpr.invars, given, strict=True) if mark}
    for equation in jaxpr.eqns:
        through = _depends_through(equation, _marks(equation.invars, marked))
        marked.update(variable for variable, mark in zip(equation.outvars, through, strict=True) if mark)
    return marked


def _marks(variables: Sequence[Any], marked: set[Any]) -> list[bool]:
    return [not isinstance(variable, Literal) and variable in marked for variable in variables]


def bind(equation: Any, args: Sequence[Any]) -> Sequence[jax.Array]:
    """The outputs of one equation of a record."""
    return _bind(equation.primitive, equation.params, args)


def _bind(primitive: Any, params: dict[str, Any], args: Sequence[Any]) -> Sequence[jax.Array]:
    outputs = primitive.bind(*args, **primitive.get_bind_params(params))
    return outputs if primitive.multiple_results else [outputs]


def quiet(closed: Any, wanted: Sequence[bool]) -> Any:
    """A recorded function with its ``wanted`` outputs alone, which reports nothing.

    What does not help to compute an output, such as ``jax.debug.print``, is left out, in loops and calls as well.
    """
    jaxpr = _without_reports(closed.jaxpr)
    outputs = [variable for variable, wants in zip(jaxpr.outvars, wanted, strict=True) if wants]
    needed, kept = {variable for variable in outputs if not isinstance(variable, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if any(variable in needed for variable in equation.outvars):
            kept.append(equation)
            needed.update(variable for variable in equation.invars if not isinstance(variable, Literal))
    names = jaxpr.debug_info._replace(result_paths=None)
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1], outvars=outputs, debug_info=names))


def _without_reports(jaxpr: Any) -> Any:
    """``jaxpr`` without callbacks that give nothing back, at any depth."""
    equations = [_quiet_within(equation) for equation in jaxpr.eqns if equation.primitive.name not in _REPORTS]
    effects = frozenset().union(*(equation.effects for equation in equations))
    return jaxpr.replace(eqns=equations, effects=effects)


def _quiet_within(equation: Any) -> Any:
    def rewritten(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(rewritten, value))
        if hasattr(value, "eqns"):
            return (
                value.replace(jaxpr=_without_reports(value.jaxpr))
                if hasattr(value, "consts")
                else _without_reports(value)
            )
        return value

    if not equation.effects:  # there are no callbacks in it
        return equation
    params = {name: rewritten(value) for name, value in equation.params.items()}
    inner = [value for given in params.values() for value in (given if isinstance(given, tuple) else (given,))]
    effects = [value.effects for value in inner if hasattr(value, "eqns")]
    return equation.replace(params=params, effects=frozenset().union(*effects)) if effects else equation


def fast_in_loops(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """``function(*args)``, with convolutions that the CPU computes as fast in loops as outside of them.

    XLA's CPU compiler has a fast algorithm for convolutions with examples first and channels last, and brings others
    into this order, but (seen up to JAX 0.12) not those within loops: a convolution's backward, two convolutions, would
    take fifty times as long. For other devices nothing changes.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    if not has_convolution(jaxpr, in_loop=False):
        return function(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes), _evaluate(jaxpr, False, *jax.tree.leaves(args)))


def has_convolution(closed: Any, in_loop: bool) -> bool:
    """Whether a recorded function has a convolution; with ``in_loop`` false, one within a loop."""
    for equation in getattr(closed, "jaxpr", closed).eqns:
        if in_loop and equation.primitive.name == "conv_general_dilated":
            return True
        inner = _within(equation)
        if inner is not None and has_convolution(inner, in_loop or equation.primitive.name == "scan"):
            return True
    return False


def _depends_through(equation: Any, given: list[bool]) -> list[bool]:
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if equation.primitive.name == "cond" and not given[0]:  # which branch is taken depends on nothing given
        branches = [depends(branch.jaxpr, given[1:]) for branch in equation.params["branches"]]
        return [any(marks) for marks in zip(*branches, strict=True)]
    if inner is None or not any(given):
        return [any(given)] * len(equation.outvars)
    if (len(inner.invars), len(inner.outvars)) != (len(equation.invars), len(equation.outvars)):
        return [True] * len(equation.outvars)  # no plain call: a kernel, say
    if equation.primitive.name != "scan":
        return depends(inner, given)
    # Inputs are kept, carried or sliced, outputs carried or stacked. The shapes tell; the parameters that do differ
    # between JAX 0.10 and 0.12.
    carried = _count_equal_ranks(equation.outvars, inner.outvars)
    kept = _count_equal_ranks(equation.invars, inner.invars) - carried
    while True:
        outputs = depends(inner, given)
        carry = [before or after for before, after in zip(given[kept:], outputs[:carried], strict=False)]
        if carry == given[kept : kept + carried]:
            return carry + outputs[carried:]
        given = [*given[:kept], *carry, *given[kept + carried :]]


def _count_equal_ranks(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outside, inside, strict=True))


def _within(equation: Any) -> Any:
    return equation.params.get("jaxpr") if equation.primitive.name in _TRANSPARENT else None


def _evaluate(closed: Any, in_loop: bool, *args: jax.Array) -> list[jax.Array]:
    jaxpr, constants = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, ())
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *args), strict=True))

    def values(variables: Sequence[Any]) -> list[Any]:
        return [variable.val if isinstance(variable, Literal) else known[variable] for variable in variables]

    for equation in jaxpr.eqns:
        outputs = _evaluate_one(equation, in_loop, *values(equation.invars))
        known.update(zip(equation.outvars, outputs, strict=True))
    return values(jaxpr.outvars)


def _evaluate_one(equation: Any, in_loop: bool, *args: jax.Array) -> Sequence[jax.Array]:
    primitive, params = equation.primitive, equation.params
    if in_loop and primitive.name == "conv_general_dilated":
        return [_convolve(primitive, params, *args)]
    inner, loops = _within(equation), in_loop or primitive.name == "scan"
    if inner is not None and has_convolution(inner, loops):
        shapes = [variable.aval for variable in getattr(inner, "jaxpr", inner).invars]
        rewritten = jax.make_jaxpr(functools.partial(_evaluate, inner, loops))(*shapes)
        # An equation holds its jaxpr with constants, or, as that of jax.checkpoint, without.
        params = {**params, "jaxpr": rewritten if hasattr(inner, "consts") else rewritten.jaxpr}
    return _bind(primitive, params, args)


def _convolve(primitive: Any, params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    x_axes, kernel_axes, y_axes = params["dimension_numbers"]  # each: examples or outputs, channels or inputs, space
    space = range(1, x.ndim - 1)
    canonical = jax.lax.ConvDimensionNumbers(
        (0, x.ndim - 1, *space), (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)), (0, x.ndim - 1, *space)
    )

    def fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x.transpose(x_axes[0], *x_axes[2:], x_axes[1])
        kernel = kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0])
        y = primitive.bind(x, kernel, **{**params, "dimension_numbers": canonical})
        return y.transpose(np.argsort([y_axes[0], *y_axes[2:], y_axes[1]]))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return primitive.bind(x, kernel, **params)

    return jax.lax.platform_dependent(x, kernel, cpu=fast, default=plain)
