"""A batch's own statistics are found from what a forward makes of running averages."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecouple as jd


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_of_batch_normalisation(momentum, x64):
    """Two layers, the second after the first; the averages are of anything."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.tanh(nn.BatchNorm(False, momentum=momentum, param_dtype=jnp.float64, dtype=jnp.float64)(3 * x))
            return x

    x = np.random.default_rng(0).normal(1.0, 2.0, size=(20, 3))
    variables = Network().init(jax.random.key(0), x)
    running = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 7, variables["batch_stats"])

    def forward(running):
        _, new = Network().apply({**variables, "batch_stats": running}, x, mutable=["batch_stats"])
        return new["batch_stats"]

    first = 3 * x
    second = 3 * np.tanh((first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5))
    expected = {f"BatchNorm_{n}": {"mean": z.mean(0), "var": z.var(0)} for n, z in enumerate((first, second))}
    chex.assert_trees_all_close(jax.jit(jd.batch_statistics, static_argnums=0)(forward, running), expected, rtol=1e-9)


def test_what_is_no_average_stays():
    running = {"frozen": jnp.ones(2), "count": jnp.int32(3), "power": jnp.array([1.0, 2.0]), "mean": jnp.zeros(2)}

    def forward(running):
        return {
            "frozen": running["frozen"],
            "count": running["count"] + 1,
            "power": running["power"] / jnp.linalg.norm(running["power"]),  # as of spectral normalisation
            "mean": 0.9 * running["mean"] + 0.1 * jnp.array([5.0, 6.0]),
        }

    found = jd.batch_statistics(forward, running)
    chex.assert_trees_all_close(found, {**running, "mean": jnp.array([5.0, 6.0])}, rtol=1e-5)
