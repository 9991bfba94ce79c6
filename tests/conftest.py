"""Four CPU devices for every test, and fast compilation; both must be set before JAX starts."""

import gc
import os
import pathlib

_FAST = "--xla_backend_optimization_level=0"
if _FAST not in os.environ.get("XLA_FLAGS", ""):  # as in processes that those of other tests have started
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST}"

# Compilation is most of the suite's time. What was compiled is kept for whichever process needs it next: those that
# run tests side by side, those that tests start, and the next run. `pytest --cache-clear` deletes it.
_PROGRAMS = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "d" / "programs"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_PROGRAMS)
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
def nothing_is_left():
    """A compiled program takes some 20 of the memory maps of which Linux gives a process 65 530; then it crashes."""
    yield
    assert not jax.config.jax_enable_x64, "a test has left double precision on, in which those after it would run"
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()
