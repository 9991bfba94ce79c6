"""A placement says where each stage lives, and is the only thing that moves arrays between devices.

A stage lives on one device, or on a group of devices: a mesh with an axis ``data``, and perhaps others. In a group, the
examples of a batch are split over the data axis. What the stage owns is on all devices, or, where it is large and that
is wished, split as well. Compiled functions follow the placement of their arguments: the compiler adds the exchange of
gradients and statistics within the group.

Where several processes train together (see `processes`), a process holds the arrays of its own stages. Of the others it
has shapes alone, ``jax.ShapeDtypeStruct``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxdecouple.engine.packing import LARGE, Packed
from jaxdecouple.engine.processes import Groups, check_processes, default_devices
from jaxdecouple.errors import check_choice
from jaxdecouple.network.jax_internals import copy_to_device, put_on_device
from jaxdecouple.network.trees import PyTree, count_examples, shape_of

Devices = Sequence[jax.Device] | Sequence[Sequence[jax.Device]] | Mesh
Params = Literal["replicated", "sharded", "annotated"]
Extent = Literal["group", "device"]


class Placement:
    """One device, or one group of devices, per stage; the same may serve several stages.

    Attributes:
      groups: the devices of each stage.
      devices: the first device of each group.
      axes: of the mesh that a group is, and their lengths.
      params: whether large arrays that a stage owns are on every device of its group, split over them, or split as
        modules are annotated.
      parts: into how many parts a batch falls, of which layers see one at a time.
      owners: the index of the process that owns each stage.
    """

    def __init__(
        self,
        num_stages: int,
        devices: Devices | None = None,
        params: Params = "replicated",
        statistics: Extent = "group",
    ):
        """Places ``num_stages`` stages.

        Args:
          num_stages: K.
          devices: one for each stage; or a list of devices for each stage, all of one length; or a mesh with axes
            ``stage`` and ``data``, and perhaps others, within a stage. By default the first K of ``jax.devices()``.
          params, statistics: for groups, as of `Pipeline`.

        Raises:
          ValueError: not one device or group per stage, groups of different sizes, a device twice in a group, a mesh
            without these axes, or another of the settings is not known; or what `check_processes` refuses.
        """
        check_choice("params", params, Params)
        check_choice("statistics", statistics, Extent)
        self.params = params
        self.groups, self.axes = _groups(num_stages, devices)
        self.parts = self.axes["data"] if statistics == "device" else 1
        self.devices = tuple(group[0] for group in self.groups)
        check_processes(self.groups)
        self.owners = tuple(device.process_index for device in self.devices)
        self._here = [owner == jax.process_index() for owner in self.owners]
        shape, names = tuple(self.axes.values()), tuple(self.axes)
        # Both ends of a transfer between processes must have shardings of one form.
        self._crossing = [Mesh(np.array(group).reshape(shape), names) for group in self.groups]
        self._meshes = [mesh if self.group_size > 1 else None for mesh in self._crossing]
        self._annotations: dict[int, Mapping[str, PartitionSpec]] = {}
        self._single = [SingleDeviceSharding(device) for device in self.devices]
        self._crossed: jax.Array | None = None

    @property
    def group_size(self) -> int:
        """How many devices a stage has."""
        return len(self.groups[0])

    def check_batch(self, x: PyTree) -> None:
        """Refuses batches, shaped like ``x``, [B, ...], whose examples the groups do not divide.

        Raises:
          ValueError: they do not.
        """
        size, examples = self.axes["data"], count_examples(x)
        if examples % size:
            who = f"groups of {size} devices do" if len(self.axes) == 1 else f"a data axis of {size} does"
            raise ValueError(
                f"batches have {examples} examples, which {who} not divide; write a multiple of {size} (a smaller last "
                "batch may have any size)"
            )

    def annotate(self, stage: int, annotations: Mapping[str, PartitionSpec], params: PyTree) -> None:
        """Takes note of how the modules of ``stage`` would have parameters split, if that is asked for.

        Args:
          stage: k.
          annotations: by path (`annotations_of`).
          params: the stage's parameters, or their shapes.

        Raises:
          ValueError: a group has no such axis, or it does not divide the parameter.
        """
        if self.params != "annotated" or self.group_size == 1:
            return
        shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        for path, spec in annotations.items():
            for length, names in zip(shapes[path], spec, strict=False):
                for name in () if names is None else (names,) if isinstance(names, str) else names:
                    self._check_axis(f"parameter {path} of stage {stage}", name, length)
        self._annotations[stage] = annotations

    def _check_axis(self, what: str, name: str, length: int) -> None:
        if name not in self.axes:
            raise ValueError(
                f"{what} is annotated with the axis {name!r}, but groups have {', '.join(map(repr, self.axes))}; write "
                f"devices=jax.make_mesh(shape, ('stage', 'data', {name!r})), or params='replicated'"
            )
        if length % self.axes[name]:
            raise ValueError(
                f"{what} has an axis of {length}, annotated with {name!r}, of which groups have {self.axes[name]}; "
                "write a mesh whose axis divides it, or params='replicated'"
            )

    def check_rule(self, stages: Sequence[PyTree]) -> None:
        """Refuses a rule by which nothing is split of what the stages own, or of its shapes.

        Raises:
          ValueError: nothing is.
        """
        if self.params == "replicated" or self.group_size == 1:
            return
        shardings = [leaf for k, owned in enumerate(stages) for leaf in jax.tree.leaves(self._owned(owned, k))]
        if all(sharding.is_fully_replicated for sharding in shardings):
            wanted = "annotated" if self.params == "annotated" else "such that the group divides an axis"
            raise ValueError(
                f"params is {self.params!r}, but no array of {LARGE // 1024} KiB or more is {wanted}, so nothing is "
                "split; write params='replicated'"
            )

    def owns(self, stage: int) -> bool:
        """Whether ``stage`` lives in this process."""
        return self._here[stage]

    def own(self, tree: PyTree, stage: int) -> PyTree:
        """A copy of ``tree`` where ``stage`` lives which nobody else holds, so that it may be donated."""
        if not self._here[stage]:
            return shape_of(tree)
        return jax.device_put(tree, self._owned(tree, stage), may_alias=False)

    def keep(self, tree: PyTree, stage: int) -> PyTree:
        """Within a compiled function of ``stage``: ``tree``, which the stage will own, where `own` would have it."""
        if self._meshes[stage] is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._owned(tree, stage))

    def put(self, tree: PyTree, stage: int) -> PyTree:
        """``tree``, a batch from the host or any device, where ``stage`` lives; asynchronous.

        Arrays of NumPy are copied: whoever gave them may fill them anew while the batch is still on its way.
        """
        if not self._here[stage]:
            return shape_of(tree)
        tree = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)
        leaves, structure = jax.tree.flatten(tree)
        if self._meshes[stage] is None:
            return jax.tree.unflatten(structure, put_on_device(leaves, self._single[stage]))
        return jax.device_put(tree, self._split(tree, stage))

    def send(self, tree: PyTree, source: int, target: int) -> PyTree:
        """``tree`` from where stage ``source`` lives to stage ``target``; asynchronous, free where that is the same."""
        if self.owners[source] != self.owners[target]:
            return self._cross(tree, source, target)
        if self.groups[source] == self.groups[target] or not self._here[source]:
            return tree
        if self._meshes[target] is not None:
            return jax.device_put(tree, self._split(tree, target))
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, copy_to_device(leaves, self._single[target]))

    def last_crossing(self) -> jax.Array | None:
        """What was last sent to another process, or received from it, since this was last asked for."""
        crossed, self._crossed = self._crossed, None
        return crossed

    def _cross(self, tree: PyTree, source: int, target: int) -> PyTree:
        """`send` from one process to another. Both call it, in the same order; to the others it is nothing.

        The process that receives stands in for the source with an array of no parts.
        """
        leaves, structure = jax.tree.flatten(tree)
        if not (self._here[source] or self._here[target]):
            return tree
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        begin, end = ([self._example_sharding(x, self._crossing[k]) for x in shapes] for k in (source, target))
        if self._here[source]:
            leaves = jax.device_put(leaves, begin)
        else:
            leaves = [
                jax.make_array_from_single_device_arrays(x.shape, sharding, [], dtype=x.dtype)
                for x, sharding in zip(shapes, begin, strict=True)
            ]
        received = jax.device_put(leaves, end)
        self._crossed = (received if self._here[target] else leaves)[0] if leaves else self._crossed
        return jax.tree.unflatten(structure, received if self._here[target] else shapes)

    def _owned(self, tree: PyTree, stage: int) -> PyTree:
        mesh = self._meshes[stage]
        if mesh is None:
            return jax.tree.map(lambda _: self._single[stage], tree)

        def sharding(path: tuple, node: Any) -> Any:
            if not isinstance(node, Packed):
                return NamedSharding(mesh, self._spec(jax.tree_util.keystr(path), node, stage))
            names = {place.array: name for name, place in node.named_places() if place.start is None}
            specs = [self._spec(names.get(i, ""), array, stage) for i, array in enumerate(node.arrays)]
            return Packed(tuple(NamedSharding(mesh, spec) for spec in specs), node.layout)

        return jax.tree_util.tree_map_with_path(sharding, tree, is_leaf=lambda node: isinstance(node, Packed))

    def _spec(self, name: str, leaf: Any, stage: int) -> PartitionSpec:
        """How an array is split that a stage owns, at path ``name``: that of an optimizer's ends as the parameter's."""
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if self.params == "replicated" or is_key or leaf.size * leaf.dtype.itemsize < LARGE:
            return PartitionSpec()
        if self.params == "annotated":
            specs = self._annotations.get(stage, {}).items()
            found = (spec for path, spec in specs if name.endswith(path) and len(spec) <= leaf.ndim)
            return next(found, PartitionSpec())
        # The longest axis that the group divides.
        axes = [axis for axis, length in enumerate(leaf.shape) if length % self.group_size == 0]
        if not axes:
            return PartitionSpec()
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return PartitionSpec(*[None] * longest, tuple(self.axes))

    def _split(self, tree: PyTree, stage: int) -> PyTree:
        """Over the examples; what the group does not divide, as an epoch's last batch may be, is on all its devices."""
        mesh = self._meshes[stage]
        assert mesh is not None  # else `put_on_device` and `copy_to_device` serve
        return jax.tree.map(lambda leaf: self._example_sharding(leaf, mesh), tree)

    def _example_sharding(self, leaf: Any, mesh: Mesh) -> Sharding:
        divided = np.ndim(leaf) and np.shape(leaf)[0] % self.axes["data"] == 0
        return NamedSharding(mesh, PartitionSpec("data") if divided else PartitionSpec())


class Nowhere:
    """The placement of shapes, which are on no device."""

    def own(self, tree: PyTree, stage: int) -> PyTree:
        """Its shapes."""
        return shape_of(tree)

    def put(self, tree: PyTree, stage: int) -> PyTree:
        """As it is."""
        return tree

    def send(self, tree: PyTree, source: int, target: int) -> PyTree:
        """As it is."""
        return tree


def _groups(num_stages: int, devices: Devices | None) -> tuple[Groups, dict[str, int]]:
    """The devices of each stage, and the axes of the mesh that they are."""
    available = jax.devices()
    if devices is None and jax.process_count() > 1:
        devices = default_devices(num_stages)
    if devices is None:
        if num_stages > len(available):
            raise ValueError(
                f"{num_stages} stages need {num_stages} devices, but JAX sees {len(available)} "
                f"({available[0].platform}); use fewer stages, share one with devices=[device] * {num_stages}, "
                f"or make CPU devices with jax.config.update('jax_num_cpu_devices', {num_stages}) before the "
                "first JAX call"
            )
        devices = available[:num_stages]
    if isinstance(devices, str | jax.Device):
        raise ValueError(
            f"devices is {devices!r}; write one for each stage, such as jax.devices()[:{num_stages}], or one for all: "
            f"[device] * {num_stages}"
        )
    axes: dict[str, int] = {}
    if isinstance(devices, Mesh):
        if not {"stage", "data"} <= set(devices.axis_names):
            raise ValueError(
                f"the mesh has axes {', '.join(map(str, devices.axis_names))}; write one with the axes stage and data: "
                f"jax.make_mesh(({num_stages}, {max(1, math.prod(devices.devices.shape) // num_stages)}), "
                "('stage', 'data'))"
            )
        first = devices.axis_names.index("stage")
        axes = {name: length for name, length in devices.shape.items() if name != "stage"}
        devices = [list(group.flat) for group in np.moveaxis(devices.devices, first, 0)]
    groups = tuple((d,) if isinstance(d, jax.Device) else tuple(d) for d in devices)
    if len(groups) != num_stages:
        raise ValueError(
            f"got {len(groups)} devices for {num_stages} stages; write one device, or one list of devices, per stage "
            "(a device may be repeated)"
        )
    sizes = [len(group) for group in groups]
    if len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(f"the groups have {', '.join(map(str, sizes))} devices; write groups of one size, at least 1")
    if any(len(set(group)) < len(group) for group in groups):
        raise ValueError(f"a group has a device twice; write {sizes[0]} different devices for each stage")
    return groups, axes or {"data": sizes[0]}
