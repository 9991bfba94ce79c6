"""Four CPU devices for every test, and fast compilation; both must be set before JAX starts."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
# The methods share most of their computations: compile each once per session.
_cache = tempfile.TemporaryDirectory(prefix="jaxdecouple-test-cache-")
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """Double precision, for comparisons with NumPy loops in float64."""
    with jax.enable_x64(True):
        yield
