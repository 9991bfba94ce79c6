"""Integer parameters have no gradient: they stay as they are, and the others train as if they were constants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.stack import stack_layers
from jaxdecouple.network.stage import Stage

X, Y = np.random.default_rng(0).normal(size=(4, 4)), np.arange(4) % 3
MASK = jnp.array([True, False, True, True])
ORDER = jnp.array([2, 0, 1, 3], jnp.int32)


class Pruned(nn.Module):
    """A layer with a mask and an order of its inputs among its parameters; or with the two as constants."""

    constant: bool = False

    @nn.compact
    def __call__(self, x):
        mask, order = (
            (MASK, ORDER)
            if self.constant
            else (self.param("mask", lambda _: MASK), self.param("order", lambda _: ORDER))
        )
        return x + jnp.tanh(nn.Dense(4, param_dtype=jnp.float64)(x[:, order] * mask))


def trained(constant, optimizer, schedule, shortest=9):
    network = [*(jd.as_layer(Pruned(constant)) for _ in range(2)), jd.as_layer(nn.Dense(3, param_dtype=jnp.float64))]
    layers, _ = stack_layers(network[:2], X, shortest=shortest)
    pipeline = jd.Pipeline([Stage(layers), Stage((network[2],), 2)], schedule(2), optimizer=optimizer)
    state = pipeline.init(jax.random.key(0), X)
    for _ in range(4):
        state, _ = pipeline.step(state, (X, Y))
    state = pipeline.flush(state)
    return state, jd.export_variables(pipeline, state)["params"]


@pytest.mark.parametrize(
    ("optimizer", "schedule", "shortest"),
    [
        (jd.stagewise(optax.adamw(0.1, weight_decay=0.5), accumulate=2), schedules.ddg, 2),
        (optax.chain(jd.clip_by_global_norm(0.1), jd.lars(0.1)), schedules.features_replay, 9),
    ],
    ids=["adamw", "lars"],
)
def test_they_stay_and_the_others_train(optimizer, schedule, shortest, x64):
    (_, got), (_, want) = (trained(constant, optimizer, schedule, shortest) for constant in (False, True))
    for layer in ("layers_0", "layers_1"):
        np.testing.assert_array_equal(got[layer].pop("mask"), MASK)
        np.testing.assert_array_equal(got[layer].pop("order"), ORDER)
        assert got[layer].keys() == want[layer].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), got, want)


class Noisy(nn.Module):
    """A layer that keeps a random key among its parameters."""

    @nn.compact
    def __call__(self, x):
        return x + jax.random.normal(self.param("key", lambda key: key), x.shape, x.dtype)


def test_a_random_key_is_no_parameter():
    pipeline = jd.Pipeline([Noisy(), nn.Dense(3)], schedules.fdg(2), optimizer=optax.adamw(0.1))
    with pytest.raises(
        ValueError, match=r"stage 0 .*'000_Noisy'\]\['key'\], which is a random key.*another collection"
    ):
        pipeline.init(jax.random.key(0), X)


def test_the_optimizers_state_is_what_it_was_where_there_are_none(x64):
    state, _ = trained(True, optax.adam(0.1), schedules.backprop)
    assert jax.tree.structure(state.stages[1].opt_state) == jax.tree.structure(
        optax.adam(0.1).init(state.stages[1].params)
    )
