"""An annotation says along which axes of a mesh a Flax module would have a parameter split: its partitioning metadata.

Of linen it is the box around a parameter (``nn.with_partitioning``, ``nn.with_logical_partitioning``), of nnx the
variable's ``sharding``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from flax.core.meta import AxisMetadata
from flax.linen.spmd import LogicallyPartitioned, logical_to_mesh_axes
from jax.sharding import PartitionSpec

from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import PyTree


def annotations_of(stage: Stage, params: PyTree) -> dict[str, PartitionSpec]:
    """The annotated parameters of a stage, by their path in ``params`` as ``jax.tree_util.keystr`` writes it.

    Args:
      stage: the layers. The parameters of a stack have one axis more than the annotation, which is not split.
      params: its parameters, or their shapes.
    """
    found: dict[str, PartitionSpec] = {}
    for label, layer in zip(stage.keys, stage.layers, strict=True):
        each, more = (layer, ()) if isinstance(layer, Layer) else (layer.layers[0], (None,))
        for path, spec in (*_boxes(params.get(label, {})), *each.annotations):
            if any(spec):
                found[f"[{label!r}]{path}"] = PartitionSpec(*more, *spec)
    return found


def specs_in(tree: PyTree) -> tuple[tuple[str, PartitionSpec], ...]:
    """The paths of a tree of ``PartitionSpec``, and these."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, PartitionSpec))
    return tuple((jax.tree_util.keystr(path), spec) for path, spec in leaves if isinstance(spec, PartitionSpec))


def _boxes(params: PyTree) -> Iterator[tuple[str, PartitionSpec]]:
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: isinstance(node, AxisMetadata))
    boxes: list[tuple[Any, Any]] = [(path, leaf) for path, leaf in leaves if isinstance(leaf, AxisMetadata)]
    for path, box in boxes:
        logical = isinstance(box, LogicallyPartitioned)
        spec = logical_to_mesh_axes(box.names, box.rules) if logical else box.get_partition_spec()
        for inner, _ in jax.tree_util.tree_leaves_with_path(box):
            yield jax.tree_util.keystr((*path, *inner)), spec or PartitionSpec()
