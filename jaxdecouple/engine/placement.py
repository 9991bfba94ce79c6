"""A placement says where each stage lives, and is the only thing that moves arrays between devices.

A stage sits on one device. To let one sit on a group of devices, give it a ``NamedSharding`` here: replicated for what
it owns (`own`), split over the batch axis for what passes through (`put`, `send`); the compiled functions follow the
placement of their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import SingleDeviceSharding

from jaxdecouple.network.jax_internals import copy_to_device, put_on_device
from jaxdecouple.network.trees import PyTree


class Placement:
    """One device per stage; the same device may serve several stages.

    Attributes:
      devices: the device of each stage.
    """

    def __init__(self, num_stages: int, devices: Sequence[jax.Device] | None = None):
        """Places ``num_stages`` stages on ``devices`` (by default the first ``num_stages`` of ``jax.devices()``).

        Raises:
          ValueError: not one device per stage.
        """
        available = jax.devices()
        if devices is None:
            if num_stages > len(available):
                raise ValueError(
                    f"{num_stages} stages need {num_stages} devices, but JAX sees {len(available)} "
                    f"({available[0].platform}); use fewer stages, share one with devices=[device] * {num_stages}, "
                    f"or make CPU devices with jax.config.update('jax_num_cpu_devices', {num_stages}) before the "
                    "first JAX call"
                )
            devices = available[:num_stages]
        if len(devices) != num_stages:
            raise ValueError(
                f"got {len(devices)} devices for {num_stages} stages; write one device per stage "
                "(a device may be repeated)"
            )
        self.devices = tuple(devices)
        self._shardings = tuple(SingleDeviceSharding(device) for device in self.devices)

    def own(self, tree: PyTree, stage: int) -> PyTree:
        """A copy of ``tree`` on ``stage``'s device which nobody else holds, so that it may be donated."""
        return jax.device_put(tree, self._shardings[stage], may_alias=False)

    def put(self, tree: PyTree, stage: int) -> PyTree:
        """``tree``, from the host or any device, on ``stage``'s device; asynchronous."""
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, put_on_device(leaves, self._shardings[stage]))

    def send(self, tree: PyTree, source: int, target: int) -> PyTree:
        """``tree`` from stage ``source``'s device to stage ``target``'s; asynchronous, free on the same device."""
        if self.devices[source] == self.devices[target]:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, copy_to_device(leaves, self._shardings[target]))
