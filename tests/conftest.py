"""Four CPU devices for every test, and fast compilation; both must be set before JAX starts."""

import gc
import os
import pathlib
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

# The methods share most of their computations: each is compiled once per session, by whichever process needs it first.
# The first process makes the directory; those that run tests beside it, and those that tests start, find it here.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxdecouple-test-cache-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64():
    """Double precision, for comparisons with NumPy loops in float64."""
    with jax.enable_x64(True):
        yield


MAPS = pathlib.Path("/proc/self/maps")  # of Linux


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """A compiled program takes some 20 of the memory maps of which Linux gives a process 65 530; then it crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()
