"""Counters that begin later are those of updates with a gradient of 0 before."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxdecouple as jd

PARAMS = {"w": jnp.arange(3.0), "b": jnp.ones(2)}
TRANSFORMS = {
    "adam": optax.adam(0.1),
    "schedule": optax.sgd(optax.linear_schedule(1.0, 0.0, 20), momentum=0.9),
    "no counter": optax.sgd(0.1, momentum=0.9),
    "chain": optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 20), weight_decay=0.0)),
}


@pytest.mark.parametrize("missed", [0, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_is_as_if_gradients_of_zero_had_come_before(name, missed):
    tx = TRANSFORMS[name]
    later, state = jd.count_from(tx, missed), tx.init(PARAMS)
    for _ in range(missed):
        _, state = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    mine = later.init(PARAMS)
    chex.assert_trees_all_equal(mine, state)
    for scale in (1.0, -2.0):
        grads = jax.tree.map(lambda p, scale=scale: scale * (p + 1), PARAMS)
        updates, mine = later.update(grads, mine, PARAMS)
        expected, state = tx.update(grads, state, PARAMS)
        chex.assert_trees_all_equal(updates, expected)


def test_each_stage_has_its_own():
    optimizer = jd.stagewise(optax.adam(0.1), accumulate=2, missed=(2, 0))
    first, last = (optimizer(stage, 2).init(PARAMS) for stage in range(2))
    assert (first.inner[0].count, last.inner[0].count) == (2, 0) and first.count == 0  # of the group: none has come


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="missed is -1; write how many updates came before the first"):
        jd.count_from(optax.adam(0.1), -1)
    with pytest.raises(ValueError, match=r"missed is \(2, 1, 0\), but there are 2 stages"):
        jd.stagewise(optax.adam(0.1), missed=(2, 1, 0))(0, 2)
