"""A network's weights as one plain tree of Flax variables, whatever the stages; and back, into other stages.

The tree is that of ``flax.linen.Sequential`` over the layers: by collection (``params``, ``batch_stats``, ...), then by
layer, ``layers_0``, ``layers_1``, ... Optimizer states, auxiliary networks and what is in flight are not part of it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import serialization

from jaxdecouple.engine.checks import check_usable
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.state import State
from jaxdecouple.errors import CheckpointError
from jaxdecouple.network.trees import PyTree, describe

Variables = dict[str, dict[str, PyTree]]
_PARAMS, _OTHER_PARAMS, _STATE = "params", "params_of_model_state", "state"


def export_variables(pipeline: Pipeline, state: State) -> Variables:
    """The variables of the whole network, as NumPy arrays, from a state with nothing in flight.

    Several processes all call it. That of the last stage gets the variables; the others may get shapes in their place.

    Args:
      pipeline: that the state is of.
      state: flushed.

    Returns:
      By collection, then by layer. For ``nnx`` layers, whose other variables have no collections, the attribute that
      holds them takes the collection's place.

    Raises:
      ValueError: batches are in flight, whose gradients would be lost; or the state was given to `step` or `flush`.
    """
    check_usable(state)
    waiting = sorted({n for flight in state.in_flight for queue in vars(flight).values() for n in queue})
    if waiting:
        raise ValueError(
            f"batches {waiting[0]} to {waiting[-1]} are in flight, and their gradients would be lost; write "
            "state = pipeline.flush(state) first"
        )
    plain, variables, last = serialization.to_state_dict, {_PARAMS: {}}, len(pipeline.stages) - 1
    for k, (stage, own) in enumerate(zip(pipeline.stages, state.stages, strict=True)):
        packed = own.packed_params, own.packed_model_state
        if pipeline.placement.owners[k] != pipeline.placement.owners[last]:
            packed = pipeline.placement.send(packed, k, last)
        params, model_state = (part.tree for part in packed)
        for label, tree in stage.by_layer(params).items():
            variables[_PARAMS][_key(label)] = plain(tree)
        for label, collections in stage.by_layer(model_state).items():
            for collection, tree in _collections(collections).items():
                variables.setdefault(collection, {})[_key(label)] = plain(tree)
    return jax.tree.map(np.asarray, variables) if pipeline.placement.owns(last) else variables


def import_variables(pipeline: Pipeline, state: State, variables: Mapping[str, Any]) -> State:
    """A state that begins with given weights: those of another run, with another cut, method or number of devices.

    Args:
      pipeline: of the new run, over the same layers.
      state: from ``pipeline.init``; its weights are replaced, and its optimizers begin anew.
      variables: as from `export_variables`.

    Raises:
      ValueError: the variables are of other layers, or differ in shape or dtype; or the state is not a new one.
    """
    if state.tick:
        raise ValueError(
            f"the state is of tick {state.tick}, its optimizers, and maybe batches in flight, being of other weights; "
            "write import_variables(pipeline, pipeline.init(...), ...)"
        )
    used: set[tuple[str, ...]] = set()
    stages = []
    for k, (stage, own) in enumerate(zip(pipeline.stages, state.stages, strict=True)):
        parts = []
        for kind, tree in ((_PARAMS, own.params), (None, own.model_state)):
            layers = stage.by_layer(tree).items()
            found = {label: _filled(variables, _key(label), kind, wanted, used) for label, wanted in layers}
            parts.append(pipeline.placement.own(stage.from_layers(found), k))
        params, model_state = parts
        init = pipeline.programs[k].updates.init
        opt_state = init(params) if pipeline.placement.owns(k) else jax.eval_shape(init, params)
        own = own.replace(params=params, model_state=model_state, opt_state=opt_state)
        stages.append(pipeline.placement.own(own, k))
    unused = [path for path in _paths(variables) if path not in used]
    if unused:
        raise ValueError(
            f"variables have {'/'.join(unused[0])}, which no layer here takes; build the model that they are of"
        )
    return state.replace(stages=tuple(stages))


def write_variables(path: str | os.PathLike[str], variables: Variables) -> None:
    """Writes variables as MessagePack, whole or not at all; ``flax.serialization.msgpack_restore`` reads the bytes.

    Raises:
      CheckpointError: the file cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(serialization.msgpack_serialize(variables))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"{path} cannot be written ({error}); write another file") from error


def read_variables(path: str | os.PathLike[str]) -> Variables:
    """The variables that `write_variables` wrote.

    Raises:
      CheckpointError: there is no such file, or it holds something else.
    """
    path = pathlib.Path(path).expanduser()
    try:
        variables: Any = serialization.msgpack_restore(path.read_bytes())
        if isinstance(variables, Mapping) and _PARAMS in variables:
            return dict(variables)
        reason = "it holds no params"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); write a file of exported variables") from error
    except Exception as error:  # msgpack raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {error}"
    raise CheckpointError(f"{path} is no file of exported variables, or damaged ({reason}); export them again")


def _key(label: str) -> str:
    return f"layers_{int(label.split('_')[0])}"


def _filled(
    variables: Mapping[str, Any], layer: str, collection: str | None, wanted: PyTree, used: set[tuple[str, ...]]
) -> PyTree:
    """The variables of a layer in the structure of ``wanted``; of model state, the first key is the collection."""

    def value(path: Sequence[Any], leaf: jax.Array) -> np.ndarray:
        names = [str(key.key) for key in path]
        place = (collection, layer, *names) if collection else (names[0], layer, *names[1:])
        found: Any = variables
        for name in place:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            raise ValueError(f"variables have no {'/'.join(place)}; build the model that they are of")
        if np.shape(found) != leaf.shape or found.dtype != leaf.dtype:
            raise ValueError(
                f"variables have {'/'.join(place)} as {describe(found)}, but here it is {describe(leaf)}; build the "
                "model that they are of"
            )
        used.add(place)
        return found

    plain = serialization.to_state_dict(wanted if collection else _collections(wanted))
    filled = jax.tree_util.tree_map_with_path(value, plain)
    if collection is None:
        if not isinstance(wanted, Mapping):
            filled = filled[_STATE]
        elif _OTHER_PARAMS in filled:
            filled = {**filled, _PARAMS: filled.pop(_OTHER_PARAMS)}
    return serialization.from_state_dict(wanted, filled)


def _collections(model_state: PyTree) -> Mapping[str, PyTree]:
    """Model state by collection; what a layer keeps in another form, or calls ``params``, has one of its own."""
    if not isinstance(model_state, Mapping):
        return {_STATE: model_state}
    return {_OTHER_PARAMS if name == _PARAMS else str(name): tree for name, tree in model_state.items()}


def _paths(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, Mapping):
        return [] if tree is None else [prefix]
    return [path for name, value in tree.items() for path in _paths(value, (*prefix, str(name)))]
