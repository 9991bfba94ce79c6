"""An adapter makes a layer, a pair of pure functions, from a Flax module or a plain function."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from jaxdecouple.network.annotations import specs_in
from jaxdecouple.network.jax_internals import quiet
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree, signature_of

if TYPE_CHECKING:
    from flax import nnx

# How a linen module may spell its training switch, and the value that means training.
_TRAIN_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "update_stats": True,
}


# The attributes of nnx modules that switch training off, and keep it off.
_FROZEN = ("use_running_average", "deterministic")


def as_layers(network: Any) -> tuple[Layer, ...]:
    """The layers of a network: a sequence of what `as_layer` takes, in which there may be others; or a Sequential.

    Raises:
      TypeError: none of these.
    """
    if isinstance(network, nn.Sequential) or is_nnx(network, "Sequential"):
        network = network.layers
    if not isinstance(network, Iterable) or isinstance(network, str | Mapping):
        raise TypeError(
            f"the network is a {type(network).__name__}, which cannot be cut; write its layers as a list, in order: "
            "Flax modules or functions, each of which takes what the one before it gives"
        )
    found: list[Layer] = []
    for item in network:
        found.extend(as_layers(item) if isinstance(item, list | tuple) else (as_layer(item),))
    return tuple(found)


def as_layer(item: Any) -> Layer:
    """The layer for a Flax module (linen or nnx), a layer, or a plain function of one argument.

    Raises:
      TypeError: none of these.
    """
    if isinstance(item, Layer):
        return item
    if isinstance(item, nn.Module):
        return from_linen(item)
    if is_nnx(item):
        return from_nnx(item)
    if callable(item) and not isinstance(item, type):
        return from_function(item)
    raise TypeError(
        f"{item!r} is no layer; write a Flax module object (linen or nnx), a function of one argument, "
        "or Layer(init, apply)"
    )


def is_nnx(item: Any, kind: str = "Module") -> bool:
    """Whether this is an nnx module, or another kind of nnx object."""
    nnx = sys.modules.get("flax.nnx")  # not loaded here, which takes a while: until it is, there are no such objects
    return nnx is not None and isinstance(item, getattr(nnx, kind))


def as_stages(stages: Sequence[Any]) -> tuple[Stage, ...]:
    """Stages from stages, layers or Flax modules, in order; what is not a stage yet becomes one of a single layer.

    Raises:
      ValueError: what is no sequence, or stages whose layer indices do not follow one another.
    """
    if not isinstance(stages, Iterable) or isinstance(stages, nn.Module | str):
        raise ValueError(
            f"stages is a {type(stages).__name__}; write jaxdecouple.partition(layers, num_stages), or a list of "
            "modules, one for each stage"
        )
    result: list[Stage] = []
    for item in stages:
        first = result[-1].first + result[-1].num_layers if result else 0
        stage = item if isinstance(item, Stage) else Stage((as_layer(item),), first)
        if stage.first != first:
            raise ValueError(
                f"stage {len(result)} starts at layer {stage.first}, but the stages before it hold layers 0 to "
                f"{first - 1}; write Stage(layers, first={first}) or cut the network with jaxdecouple.partition"
            )
        result.append(stage)
    return tuple(result)


def from_function(function: Callable[[PyTree], PyTree], name: str | None = None) -> Layer:
    """A layer without parameters, such as ``jax.nn.relu``.

    Raises:
      ValueError: the function uses an nnx module, whose parameters would not be trained.
    """
    shown = name or getattr(function, "__name__", "function")
    _check_captures(function, shown)

    def apply(params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]:
        return function(x), model_state

    return Layer(lambda key, x: ({}, {}), apply, shown, function if _hashable(function) else None)


def _check_captures(function: Callable, shown: str) -> None:
    """Refuses a function, or a method, that uses an nnx module besides its argument: to JAX, that is a constant."""
    function = inspect.unwrap(function)  # of jax.jit and the like
    captured: list[Any] = [function, getattr(function, "__self__", None)]
    if isinstance(function, functools.partial):
        captured += [*function.args, *function.keywords.values()]
        _check_captures(function.func, shown)
    if inspect.isfunction(function):
        used = {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
        captured += [function.__globals__.get(name) for name in used]
        with contextlib.suppress(ValueError):  # a cell that is empty as yet
            captured += [cell.cell_contents for cell in function.__closure__ or ()]
    for module in filter(is_nnx, captured):
        from flax import nnx

        if any(isinstance(node, nnx.Param) for _, node in nnx.iter_graph(module)):
            raise ValueError(
                f"the function {shown} uses a {type(module).__name__}, an nnx module, whose parameters would not be "
                "trained; list the module itself, or an nnx module of your own whose __call__ does what the function "
                "does, and freeze it by the optimizer if it is not to change"
            )


def from_linen(module: nn.Module) -> Layer:
    """A layer from a linen module.

    The module is called with its input and, if its ``__call__`` has one of the arguments ``train``, ``training``,
    ``is_training``, ``deterministic``, ``use_running_average`` or ``update_stats``, with that switch set accordingly.
    The ``params`` collection is trained; every other collection is model state, updated in training. Every random
    stream the module asks for (``dropout``, ...) is derived from the layer's key. Modules that are equal but for their
    names are identical layers.

    A switch that the module was constructed with stays as it is: so statistics are frozen. Modules within that need a
    switch and have got none, such as an ``nn.Dropout`` in an ``nn.Sequential``, get it too.
    """
    identity = module.clone(name=None) if _hashable(module) else None

    def init(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        traced = isinstance(key, Tracer)  # within another compiled function, none may have options of its own
        init_linen = _init_linen if identity is None or traced else _compiled_init_linen
        variables = dict(init_linen(identity or module, *signature_of(x), key))
        variables.pop("intermediates", None)  # what a module sows is no state: it would grow with every batch
        return variables.pop("params", {}), variables

    def apply(params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        arguments, keywords = _switches(module, train)
        with nn.intercept_methods(functools.partial(_switch_within, train)):
            y, updated = module.apply(
                variables,
                x,
                *arguments,
                rngs=_streams(key, train),
                mutable=list(model_state) if train else [],
                **keywords,
            )
        return y, {**model_state, **updated}

    return Layer(init, apply, module.name or type(module).__name__, identity, module=module)


def from_nnx(module: nnx.Module | Callable[[nnx.Rngs], nnx.Module]) -> Layer:
    """A layer from an nnx module, or from a function ``rngs -> module``.

    A module object keeps the parameters it was built with, whatever key a pipeline is initialised from; a function
    is called with ``nnx.Rngs`` made from the layer's key, so that the key decides. ``nnx.Param`` is trained; other
    variables are model state. The module's random streams are re-seeded from the layer's key for every batch.
    Training is switched with ``module.train()`` and ``module.eval()``, and by the arguments that `from_linen` names;
    what is built, or given, with ``use_running_average=True`` or ``deterministic=True`` keeps it in training, too. So
    statistics are frozen; and a module that was switched with ``module.eval()`` before is to be switched back.
    An object whose variables are annotated with axes of a mesh is to be built within ``nnx.use_eager_sharding(False)``.
    """
    from flax import nnx

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if isinstance(module, nnx.Module):
            return nnx.clone(module)
        with nnx.use_eager_sharding(False):  # no mesh is known here; a pipeline splits what is annotated
            return module(rngs)

    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    given = [(node, {name: getattr(node, name, None) for name in _FROZEN}) for _, node in nnx.iter_graph(abstract)]
    abstract.eval()
    graphs = {False: nnx.split(abstract)[0]}
    abstract.train()
    for node, switches in given:
        for name, value in switches.items():
            if value is True:
                setattr(node, name, True)
    graphs[True], _, streams, _ = nnx.split(abstract, nnx.Param, nnx.RngState, ...)

    def init(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        built = build(nnx.Rngs(key))
        _, params, _, model_state = nnx.split(built, nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def apply(params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]:
        state = nnx.merge_state(_seed(streams, key), _fill(abstract, nnx.Param, params))
        built = nnx.merge(graphs[train], state, _fill(abstract, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)), model_state))
        arguments, keywords = _switches(abstract, train)
        y = built(x, *arguments, **keywords)
        updated = nnx.split(built, nnx.Param, nnx.RngState, ...)[3]
        return y, nnx.to_pure_dict(cast(nnx.State, updated))

    specs = specs_in(nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(abstract, nnx.Param))))
    given_module = module if isinstance(module, nnx.Module) else None
    return Layer(init, apply, type(abstract).__name__, annotations=specs, module=given_module)


def _init_linen(module: nn.Module, structure: Any, signature: tuple, key: jax.Array) -> PyTree:
    # Compiled for each layer alone, not for a stage: the same layer gets bit-identical parameters wherever the
    # network is cut, and identical layers are compiled once.
    x = jax.tree.unflatten(structure, [jnp.zeros(shape, dtype) for shape, dtype in signature])
    arguments, keywords = _switches(module, train=True)

    def init(key: jax.Array) -> PyTree:
        with nn.intercept_methods(functools.partial(_switch_within, True)):
            return module.init({**_streams(key), "params": key}, x, *arguments, **keywords)

    # Flax runs the module. What it reports meanwhile, by `jax.debug.print`, would be of inputs that never were.
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
    leaves = jaxpr_as_fun(quiet(closed, [True] * len(closed.jaxpr.outvars)))(key)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


# Normally distributed numbers take XLA's CPU compiler seconds, for every kind of layer, unless it optimises little.
_compiled_init_linen = jax.jit(
    _init_linen, static_argnums=(0, 1, 2), compiler_options={"xla_backend_optimization_level": 1}
)


def _hashable(item: Any) -> bool:
    # nn.Sequential([...]) holds a list, for one.
    try:
        return hash(item) is not None
    except TypeError:
        return False


def _streams(key: jax.Array, train: bool = True) -> dict[str, jax.Array]:
    # Flax takes from "params" for every stream that is not named here. Some modules ask whether there is one for
    # dropout, to know whether they are trained.
    names = ("dropout", "noise", "default", "params")
    streams = {name: jax.random.fold_in(key, index) for index, name in enumerate(names)}
    return {name: stream for name, stream in streams.items() if train or name != "dropout"}


def _switches(module: Any, train: bool, count: int = 1) -> tuple[list[Any], dict[str, Any]]:
    """The training switches to call a module with after its first ``count`` arguments."""
    if isinstance(module, nn.Module) or is_nnx(module):
        wanted, left = {}, list(_parameters(type(module)).values())[1 + count :]
        for parameter in left:
            # A switch that the module was constructed with stays as it is.
            if parameter.name in _TRAIN_ARGUMENTS and not isinstance(getattr(module, parameter.name, None), bool):
                wanted[parameter.name] = train == _TRAIN_ARGUMENTS[parameter.name]
        return _placed(wanted, left)
    return [], {}  # a function


def _placed(wanted: Mapping[str, bool], left: Sequence[inspect.Parameter]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments: by position, as ``nn.remat`` wants static ones, after the defaults of those before; or by name."""
    positional: list[Any] = []
    count = max((index for index, parameter in enumerate(left, 1) if parameter.name in wanted), default=0)
    for parameter in left[:count]:
        value = wanted.get(parameter.name, parameter.default)
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or value is parameter.empty:
            break
        positional.append(value)
    placed = {parameter.name for parameter in left[: len(positional)]}
    return positional, {name: value for name, value in wanted.items() if name not in placed}


def _switch_within(train: bool, call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    """Calls a method of a linen module with the training switches that it needs and was not given."""
    module = context.module
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if type(module) is nn.Sequential and module.layers:
        return _in_sequence(module.layers, train, args, kwargs)
    wanted, left = {}, list(_parameters(type(module)).values())[1 + len(args) :]
    for parameter in left:
        name = parameter.name
        if name not in _TRAIN_ARGUMENTS or name in kwargs or isinstance(getattr(module, name, None), bool):
            continue
        # Who calls a module may rely on its defaults, but where a module of Flax has `None` it would fail.
        if parameter.default is parameter.empty or (parameter.default is None and hasattr(module, name)):
            wanted[name] = train == _TRAIN_ARGUMENTS[name]
    positional, named = _placed(wanted, left)
    return call(*args, *positional, **kwargs, **named)


def _in_sequence(layers: Sequence[Callable], train: bool, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What ``nn.Sequential`` does, which passes no switch on to its layers but the first; here each gets its own."""
    for layer in layers:
        positional, named = _switches(layer, train, len(args)) if not kwargs else ([], {})
        outputs = layer(*args, *positional, **kwargs, **named)
        args, kwargs = (outputs if isinstance(outputs, tuple) else (outputs,)), {}
        if isinstance(outputs, dict):
            args, kwargs = (), outputs
    return outputs


@functools.cache
def _parameters(module: type) -> Mapping[str, inspect.Parameter]:
    """Of a module's ``__call__``, the first of which is the module, and the second its input."""
    return inspect.signature(module.__call__).parameters


def _seed(streams: nnx.State, key: jax.Array) -> nnx.State:
    """Fresh random streams: every key folded from ``key`` by its position, every counter at zero."""
    leaves, structure = jax.tree.flatten(streams)

    def fresh(index: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if not is_key:
            return jnp.zeros(leaf.shape, leaf.dtype)
        folded = jax.random.fold_in(key, index)
        return jax.random.split(folded, leaf.shape) if leaf.shape else folded

    return jax.tree.unflatten(structure, [fresh(index, leaf) for index, leaf in enumerate(leaves)])


def _fill(abstract: nnx.Module, kinds: Any, values: PyTree) -> nnx.State:
    """The module's variables of some kinds, holding ``values``."""
    from flax import nnx

    state = nnx.state(abstract, kinds)
    nnx.replace_by_pure_dict(state, values)
    return state
