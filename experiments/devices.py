"""Which devices an experiment uses: accelerators where there are enough, else one CPU device per stage."""

from __future__ import annotations

import atexit
import contextlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    import jax
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")


def request(num_stages: int, group_size: int = 1) -> None:
    """Asks for as many CPU devices as stages, or groups of them. Must come before JAX starts its backends."""
    jax.config.update("jax_num_cpu_devices", max(1, num_stages * group_size))


def compile_once() -> None:
    """Lets pipelines share compiled functions for the rest of the process: most methods differ in few of theirs."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = tempfile.TemporaryDirectory(prefix="jaxdecouple-")
        atexit.register(cache.cleanup)
        jax.config.update("jax_compilation_cache_dir", cache.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def of_stages(num_stages: int, share: bool = False, group_size: int = 1) -> list[Any]:
    """One device per stage, or one group of devices.

    Args:
      num_stages: K.
      share: let neighbouring stages share a device when there are fewer devices than stages.
      group_size: how many devices each stage has; with more than 1, lists of them.

    Raises:
      ValueError: too few devices, and ``share`` is false.
    """
    if jax.process_count() > 1 or group_size > 1:
        from jaxdecouple.engine.processes import default_devices

        found = default_devices(num_stages * group_size)
        return [found[i : i + group_size] for i in range(0, len(found), group_size)] if group_size > 1 else list(found)
    devices = jax.devices()
    if num_stages <= len(devices):
        return devices[:num_stages]
    if share:
        return [devices[k * len(devices) // num_stages] for k in range(num_stages)]
    raise ValueError(
        f"num_stages is {num_stages}, but there are {len(devices)} devices ({devices[0].platform}); write "
        f"--num_stages={len(devices)} or fewer, --share_devices to put several stages on one device, or run with "
        "JAX_PLATFORMS=cpu for one CPU device per stage"
    )


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """JAX with as many bits as ``dtype`` has."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def describe() -> dict[str, str]:
    """Device, platform and versions, for reports."""
    import platform

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": str(len(jax.devices())),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
