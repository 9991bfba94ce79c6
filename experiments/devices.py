"""Which devices an experiment uses: accelerators where there are enough, else one CPU device per stage."""

from __future__ import annotations

import atexit
import tempfile

import jax

from jaxdecouple.engine.processes import default_devices


def request(num_stages: int) -> None:
    """Asks for as many CPU devices as stages. Must come before JAX starts its backends."""
    jax.config.update("jax_num_cpu_devices", max(1, num_stages))


def compile_once() -> None:
    """Lets pipelines share compiled functions for the rest of the process: most methods differ in few of theirs."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = tempfile.TemporaryDirectory(prefix="jaxdecouple-")
        atexit.register(cache.cleanup)
        jax.config.update("jax_compilation_cache_dir", cache.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def of_stages(num_stages: int, share: bool = False) -> list[jax.Device]:
    """One device per stage.

    Args:
      num_stages: K.
      share: let neighbouring stages share a device when there are fewer devices than stages.

    Raises:
      ValueError: too few devices, and ``share`` is false.
    """
    if jax.process_count() > 1:
        return list(default_devices(num_stages))
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
