"""Restoring a state: what a checkpoint holds is compared, leaf by leaf, with what the pipeline would have by then."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import pathlib
import re
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from jaxdecouple.checkpoints import files
from jaxdecouple.checkpoints.snapshot import Leaf, is_key, leaves_of
from jaxdecouple.engine.packing import Packed
from jaxdecouple.engine.pipeline import Pipeline
from jaxdecouple.engine.placement import Placement
from jaxdecouple.engine.state import State
from jaxdecouple.errors import CheckpointError
from jaxdecouple.network.trees import PyTree, describe, shape_of
from jaxdecouple.schedules import Schedule, Weights, redoes_forward

Leaves = dict[str, dict[str, Any]]


def restore_state(
    path: pathlib.Path, document: dict[str, Any], pipeline: Pipeline, x: PyTree, targets: PyTree | None
) -> State:
    """The state saved at ``path``, whose document this is; see `jaxdecouple.restore`."""
    if document["num_stages"] != len(pipeline.stages):
        raise CheckpointError(
            f"checkpoint {path} has {document['num_stages']} stages, but this pipeline {len(pipeline.stages)}; build "
            "the pipeline it was saved from, or start from its weights (jaxdecouple.export_variables, import_variables)"
        )
    leaves, tick, first = document["leaves"], document["tick"], document["first"]
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        own = [f"stage_{k}" for k in range(len(pipeline.stages)) if pipeline.placement.owns(k)]
        reading = executor.submit(files.read_arrays, path, document, own)  # meanwhile, the model is traced
        fed = _fed(document, x, targets, pipeline.schedule)
        try:
            wanted = pipeline.shapes(x, targets, tick=tick, first=first, fed=fed)
        except (TypeError, ValueError) as error:
            remedy = "build the pipeline as it was when it was saved, and give inputs like those it was trained on"
            if targets is None and document["batch_sizes"]:
                remedy += ", and targets: jd.restore(path, pipeline, x, targets)"
            raise CheckpointError(
                f"checkpoint {path} cannot be compared with this pipeline, of schedule {pipeline.schedule.name!r}, "
                f"which fails for such batches: {error}; {remedy}"
            ) from error
        wanted = _with_gradient_norms(wanted, leaves)
        mismatch = _mismatch(leaves, wanted, pipeline)
        if mismatch:
            raise CheckpointError(f"checkpoint {path} is not of this pipeline: {mismatch}")
        _check_version(path, document, pipeline.weights)
        state = _load(reading.result(), leaves, wanted, pipeline.placement)
    pipeline.expect(state, x)
    return state


def _fed(
    document: dict[str, Any], x: PyTree, targets: PyTree | None, schedule: Schedule
) -> dict[int, tuple[PyTree, PyTree]]:
    """Shapes of the inputs and targets of each batch in flight: as given, but for the number of examples."""

    def sized(tree: PyTree, size: int) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), shape_of(tree))

    fed = {}
    for name, size in document["batch_sizes"].items():
        found = _waiting_targets(document["leaves"], int(name), size) if targets is None else sized(targets, size)
        if found is None and schedule.splits_backward:  # its loss is traced, for what that leaves
            found = _labels(size)
        fed[int(name)] = sized(x, size), found
    return fed


def _waiting_targets(leaves: Leaves, n: int, size: int) -> jax.ShapeDtypeStruct | None:
    """Of the targets of batch ``n``, wherever they wait: for the loss, or with an output to be taught."""
    waiting = re.compile(rf"\.in_flight\[\d+\]\.(targets|residuals)\[{n}\](\.inputs\[1\])?(.*)")
    places = [(match, leaf) for name, leaf in leaves.items() if (match := waiting.fullmatch(name))]
    for match, leaf in places:
        if match[1] == "targets" and match[3]:
            raise CheckpointError(
                "targets of several arrays are in flight, and the checkpoint does not say how they belong together; "
                "write jaxdecouple.restore(path, pipeline, x, targets), with the targets of a batch"
            )
        labels = leaf["shape"] == [size] and np.issubdtype(jax.numpy.dtype(leaf["dtype"]), np.integer)
        if match[1] == "targets" or (match[2] and not match[3] and labels):
            return _shape(leaf, None)
    if any(".targets[" in name for name in leaves):  # of another batch: those of this one have been used
        return _labels(size)
    return None


def _labels(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), np.dtype(np.int32))


def _with_gradient_norms(wanted: State, leaves: Leaves) -> State:
    """Norms are there once they were measured, of as many examples as were measured."""

    def norms(k: int, params: PyTree) -> PyTree:
        prefix = f".stages[{k}].gradient_norms"
        if not any(name.startswith(prefix) for name in leaves):
            return None
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _shape(leaves.get(prefix + jax.tree_util.keystr(path)), leaf), params
        )

    stages = [stage.replace(gradient_norms=norms(k, stage.params)) for k, stage in enumerate(wanted.stages)]
    return wanted.replace(stages=tuple(stages))


def _shape(saved: dict[str, Any] | None, otherwise: Any) -> Any:
    if saved is None:
        return otherwise
    return jax.ShapeDtypeStruct(tuple(saved["shape"]), jax.numpy.dtype(saved["dtype"]))


def _mismatch(leaves: Leaves, wanted: State, pipeline: Pipeline) -> str | None:
    """What the checkpoint has otherwise than the pipeline, in one sentence with what to do."""
    expected = {leaf.name: leaf for leaf in leaves_of(wanted)}
    for part in (".stages", ".in_flight"):  # what is in flight follows from the stages
        here = {name: leaf for name, leaf in expected.items() if name.startswith(part)}
        there = {name: saved for name, saved in leaves.items() if name.startswith(part)}
        for name in (*(name for name in here if name not in there), *(name for name in there if name not in here)):
            holder, other = ("the pipeline", "the checkpoint") if name in here else ("the checkpoint", "the pipeline")
            return f"state{name} is there in {holder}, but not in {other}; {_advice(name, pipeline)}"
        for name, leaf in here.items():
            if not _fits(there[name], leaf):
                given, wants = f"{there[name]['dtype']}{there[name]['shape']}", _describe(leaf)
                return f"state{name} is {given} in the checkpoint, but {wants} here; {_advice(name, pipeline)}"
    return None


def _describe(leaf: Leaf) -> str:
    return describe(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def _fits(saved: dict[str, Any], leaf: Leaf) -> bool:
    if is_key(leaf) or "key" in saved:
        return is_key(leaf) and "key" in saved
    return _shape(saved, leaf) == jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _advice(name: str, pipeline: Pipeline) -> str:
    part = name.split(".")[2].split("[")[0]
    if part in ("params", "model_state", "key"):
        return "build the model, and cut it, as it was when it was saved"
    if part in ("opt_state", "share"):
        return "write the optimizer that it was trained with, accumulation included"
    if part == "auxiliary":
        return "stages learn locally in one and not in the other, or from other auxiliary networks"
    if part == "gradient_norms":
        return "build the model as it was when it was saved"
    return (
        f"schedule {pipeline.schedule.name!r} with weights {pipeline.weights!r} would not have that in flight, or not "
        "for batches like these; write the schedule it was trained with, or flush before saving to change it"
    )


def _check_version(path: pathlib.Path, document: dict[str, Any], weights: Weights) -> None:
    saved = document["versions"]["jax"]
    stored = any(".residuals[" in name for name in document["leaves"]) and not redoes_forward(weights)
    if saved != jax.__version__ and stored:
        raise CheckpointError(
            f"checkpoint {path} holds batches in flight, saved with JAX {saved}; this is {jax.__version__}, which may "
            f"lay out what a backward needs in another order; install jax=={saved}, or flush before saving"
        )


def _load(arrays: files.Arrays, leaves: Leaves, wanted: State, placement: Placement) -> State:
    known: dict[Hashable, Any] = {}  # what was one array, or a tree packed of the same, is one again

    def numbers(saved: dict[str, Any]) -> np.ndarray:
        start, shape = saved["start"], tuple(saved["shape"])
        flat = arrays[f"stage_{saved['stage']}"][saved["array"]]
        return flat[start : start + math.prod(shape)].reshape(shape)

    def load(prefix: str, path: tuple, node: Any) -> Any:
        k, name = path[0].idx, prefix + jax.tree_util.keystr(path)
        if not placement.owns(k):
            return node
        if isinstance(node, Packed):
            name = name.replace(".packed_", ".")
            saved = [leaves[name + within] for within, _ in node.named_places()]
            same = k, node.layout, *(leaf["copy"] for leaf in saved)
            if same not in known:
                known[same] = placement.own(node.filled([numbers(leaf) for leaf in saved]), k)
            return known[same]
        same = k, leaves[name]["copy"]
        if same not in known:
            array = placement.own(numbers(leaves[name]), k)
            key = leaves[name].get("key")
            known[same] = array if key is None else jax.random.wrap_key_data(array, impl=key)
        return known[same]

    def tree_of(prefix: str, tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            functools.partial(load, prefix), tree, is_leaf=lambda node: isinstance(node, Packed)
        )

    return wanted.replace(stages=tree_of(".stages", wanted.stages), in_flight=tree_of(".in_flight", wanted.in_flight))
