"""A shared parameter is one that several layers use: an embedding that is also the matrix of the head, say."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdecouple.network.adapters import as_layer
from jaxdecouple.network.layer import Layer


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
