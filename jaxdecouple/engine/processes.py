"""Several processes train one network: each dispatches only the stages whose devices it has, and meets its neighbours.

`jax.distributed.initialize` joins them. Every process then makes the same calls of this library, in the same order, and
walks the same list of operations. Arrays go from stage to stage by transfers between devices (`Placement.send`). What
the hosts themselves have to tell one another, a few bytes now and then, goes through the store that JAX's coordinator
keeps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax

from jaxdecouple.errors import ProcessError
from jaxdecouple.network.jax_internals import coordinator_store, transfer_address

DeviceGroup = tuple[jax.Device, ...]
Groups = tuple[DeviceGroup, ...]

PATIENCE = 600.0  # seconds to wait for what another process has to say: it may be compiling
_numbers = itertools.count()  # the same in every process, since all make the same calls


def told(value: Any, owner: int) -> Any:
    """``value`` of process ``owner``, in every process; those of the others are ignored.

    Args:
      value: JSON.
      owner: the index of the process that knows it.

    Raises:
      ProcessError: the owner says nothing for `PATIENCE` seconds, or the coordinator is gone.
    """
    if jax.process_count() == 1:
        return value
    key = f"jaxdecouple/told/{next(_numbers)}"
    if jax.process_index() == owner:
        write(key, value)
        return value
    return read(key)


def told_by_all(value: Any) -> list[Any]:
    """The value of each process, in every process; errors as of `told`."""
    if jax.process_count() == 1:
        return [value]
    key = f"jaxdecouple/told/{next(_numbers)}"
    write(f"{key}/{jax.process_index()}", value)
    return [read(f"{key}/{process}") for process in range(jax.process_count())]


def agreed(act: Callable[[], Any], error: type[ValueError], owner: int = 0) -> Any:
    """What ``act`` gives in the process ``owner``, which alone does it, in every process; or, in every one, its error.

    Args:
      act: gives JSON.
      error: what it may raise; in all processes it is raised with the same message.
      owner: the index of the process.
    """
    if jax.process_count() == 1:
        return act()
    found, failure = None, None
    if jax.process_index() == owner:
        try:
            found = act()
        except error as raised:
            failure = str(raised)
    found, failure = told([found, failure], owner)
    if failure is not None:
        raise error(failure)
    return found


def write(key: str, value: Any) -> None:
    """Puts JSON into the coordinator's store.

    Raises:
      ProcessError: the coordinator is gone.
    """
    try:
        coordinator_store().key_value_set(key, json.dumps(value), allow_overwrite=True)
    except Exception as error:  # XlaRuntimeError, whose kinds are strings
        raise ProcessError(f"the coordinator (process 0) does not answer: {_first_line(error)}") from error


def read(key: str, patience: float = PATIENCE) -> Any:
    """JSON from the coordinator's store, as soon as it is there.

    Args:
      key: as given to `write`.
      patience: how long to wait for it, in seconds.

    Raises:
      ProcessError: it does not come, or the coordinator is gone.
    """
    try:
        return json.loads(coordinator_store().blocking_key_value_get(key, int(1000 * patience)))
    except Exception as error:
        raise ProcessError(
            f"no word from another process for {key} within {patience:g} s: {_first_line(error)}"
        ) from error


def check_processes(groups: Groups) -> None:
    """Refuses devices that several processes cannot train on together.

    Raises:
      ValueError: a group has devices of several processes, or a process has no stage; or stages in several processes
        share devices in part; or JAX cannot transfer between processes.
    """
    for k, group in enumerate(groups):
        owners = sorted({device.process_index for device in group})
        if len(owners) > 1:
            raise ValueError(
                f"the devices of stage {k} belong to processes {', '.join(map(str, owners))}; write groups of devices "
                "of one process each: a stage lives in one process"
            )
    count, owning = jax.process_count(), {group[0].process_index for group in groups}
    idle = [process for process in range(count) if process not in owning]
    if idle:
        raise ValueError(
            f"{count} processes, but process {idle[0]} has none of the {len(groups)} stages; start at most one process "
            "per stage, and give devices= of all of them"
        )
    if count > 1 and groups[0][0].platform == "cpu":
        version = tuple(int(part) for part in jax.__version__.split(".")[:2])
        if version < (0, 12):
            raise ValueError(
                f"JAX {jax.__version__} cannot transfer between CPU devices of several processes; install JAX 0.12 or "
                "newer (Python 3.12 or newer), or use one process"
            )
        if transfer_address().rsplit(":", 1)[-1] in ("", "0"):  # with port 0 the first transfer never comes
            raise ValueError(
                "CPU devices of several processes need an address each for their transfers; write "
                "jax.config.update('jax_cross_host_transfer_socket_address', '127.0.0.1:PORT'), with a free port of "
                "its own in each process, before jax.distributed.initialize"
            )


def default_devices(num_devices: int) -> DeviceGroup:
    """The first devices, in the order of stages: neighbours in one process, as many in each.

    Raises:
      ValueError: the processes cannot give the same number of devices, or have too few.
    """
    count = jax.process_count()
    each = num_devices // count
    by_process = [[d for d in jax.devices() if d.process_index == process] for process in range(count)]
    fewest = min(len(devices) for devices in by_process)
    if num_devices % count or each > fewest:
        raise ValueError(
            f"the stages need {num_devices} devices, and {count} processes have {fewest} each; write a number of "
            f"stages that {count} processes can share evenly, and at most {count * fewest} devices in all"
        )
    return tuple(device for devices in by_process for device in devices[:each])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
