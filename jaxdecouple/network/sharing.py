"""A shared parameter is one that several layers use: an embedding that is also the matrix of the head, say.

Flax has its own way to say it: one module object that is listed again, a repeat, means the same weights in both places.
Within a stage it is one layer twice, with one set of weights. What two stages, or two different modules, would have in
common that way is refused, since each would train a copy of its own; `shared` is for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxdecouple.network.adapters import as_layer, is_nnx
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree


def shared(item: Any, **parameters: str) -> Layer:
    """A layer some of whose parameters are those of other layers: all that are shared under one name are one.

    ``shared(nn.Embed(9, 4), words="embedding")`` and ``shared(Head(9), words="embedding")`` have one matrix. It begins
    as the first layer initialises it. A pipeline trains it with the sum of all its gradients.

    Args:
      item: a Flax module, a function or a layer.
      **parameters: by the name under which it is shared, the path of each parameter in the layer's: ``"kernel"``,
        ``"Dense_0/kernel"``.

    Raises:
      ValueError: no parameter is named, or one is shared already.
    """
    layer, found = as_layer(item), {name: tuple(path.split("/")) for name, path in parameters.items()}
    if not found:
        raise ValueError(f"shared({layer.name}) names no parameter; write shared(layer, words='embedding')")
    if twice := set(found) & dict(layer.shares).keys():
        raise ValueError(f"{layer.name} shares {', '.join(sorted(twice))} already; write another name")
    # In a loop over identical layers, no parameter could be another's.
    return dataclasses.replace(layer, identity=None, module=None, shares=(*layer.shares, *found.items()))


def check_repeats(stages: Sequence[Stage], owned: Sequence[Mapping[str, PyTree]]) -> None:
    """Refuses weights that are of several stages, or of several modules.

    Args:
      stages: of the network, in order.
      owned: the parameters of each, by layer, of which only the names matter; of layers without, their model state.

    Raises:
      ValueError: two layers in different stages are one module; or a module in two layers is one, or an nnx variable.
    """
    whole: dict[int, tuple[int, int]] = {}  # by module: the first layer that is it, and its stage
    parts: dict[int, tuple[int, int]] = {}  # by module or variable within: the first layer that has it, and its module
    for k, (stage, own) in enumerate(zip(stages, owned, strict=True)):
        for index, layer in enumerate(_layers(stage), stage.first):
            tree = own.get(layer.label(index), {})
            if layer.module is None or not jax.tree.leaves(tree):
                continue
            first, where = whole.setdefault(id(layer.module), (index, k))
            if where != k:
                raise ValueError(
                    f"layers {first} and {index} are the same {layer.name} object, which in Flax means the same "
                    f"weights, but they are in stages {where} and {k}, each of which would train its own; cut the "
                    f"network so that both are in one stage, write {layer.name}(...) once for each, or share "
                    "parameters with jaxdecouple.shared"
                )
            for part, name in _parts(layer.module, layer.name, tree):
                first, module = parts.setdefault(id(part), (index, id(layer.module)))
                if module != id(layer.module):
                    raise ValueError(
                        f"layers {first} and {index} have the same {name}, which in Flax means the same weights, but "
                        "each would train its own; make one for each, put both into one module, or share parameters "
                        "with jaxdecouple.shared"
                    )


def _layers(stage: Stage) -> Iterator[Layer]:
    for layer in stage.layers:
        yield from layer.layers if not isinstance(layer, Layer) else (layer,)


def _parts(module: Any, name: str, params: PyTree) -> Iterator[tuple[Any, str]]:
    """What may be shared with other modules: nnx parameters; the linen module and those given to it; with a name."""
    if isinstance(module, nn.Module):
        yield module, f"{type(module).__name__} object as {name}"
        for field in dataclasses.fields(module):
            given, _ = jax.tree.flatten_with_path(getattr(module, field.name, None), is_leaf=_is_linen)
            for path, item in given if field.name != "parent" else ():
                name = "_".join([field.name, *(jax.tree_util.keystr((key,), simple=True) for key in path)])
                if _is_linen(item) and name in params:
                    yield from _parts(item, name, params[name])
    elif is_nnx(module):
        from flax import nnx

        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Param):
                yield node, f"nnx.Param as {'.'.join(map(str, path))}"


def _is_linen(item: Any) -> bool:
    return isinstance(item, nn.Module)
