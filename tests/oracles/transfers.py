"""Whether arrays can be sent between processes here."""

import jax
import pytest

needs_transfers = pytest.mark.skipif(
    tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12), reason="JAX below 0.12 cannot do it on CPUs"
)
