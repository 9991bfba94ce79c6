"""Clipping by a global norm, alone and as a part of a larger sum."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd

TREE = {"a": np.array([3.0, 0.0]), "b": {"w": np.array([[4.0]])}}  # norm 5


@pytest.mark.parametrize("max_norm", [0.1, 4.999, 5.0, 7.0])
def test_by_itself_it_is_the_one_of_optax(max_norm, x64):
    got, want = (
        tx.update(TREE, tx.init(TREE))[0]
        for tx in (jd.clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm))
    )
    chex.assert_trees_all_close(got, want, rtol=1e-15)


def test_nothing_is_divided_by_nothing():
    tx = jd.clip_by_global_norm(1.0)
    zero = jax.tree.map(np.zeros_like, TREE)
    chex.assert_trees_all_equal(tx.update(zero, tx.init(zero))[0], zero)
    assert tx.update({}, tx.init({}))[0] == {}


def test_in_half_precision_the_sum_is_not():
    tree = {"a": jnp.full(70_000, 1.0, jnp.float16)}  # whose square overflows float16
    got, _ = jd.clip_by_global_norm(1.0).update(tree, optax.EmptyState())
    assert got["a"].dtype == jnp.float16
    np.testing.assert_allclose(got["a"].astype(np.float32), 70_000**-0.5, rtol=1e-3)


def test_two_parts_make_the_whole(x64):
    parts = [{"a": TREE["a"]}, {"b": TREE["b"]}]
    tx = optax.chain(jd.clip_by_global_norm(1.0), optax.scale(-1.0))
    whole, _ = tx.update(TREE, tx.init(TREE))
    got = [
        tx.update(part, tx.init(part), over_stages=functools.partial(jnp.add, other))[0]
        for part, other in zip(parts, (16.0, 9.0), strict=True)
    ]
    chex.assert_trees_all_close({**got[0], **got[1]}, whole, rtol=1e-15)


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan")])
def test_a_norm_that_is_none(max_norm):
    with pytest.raises(ValueError, match="max_norm is .*; write the largest norm"):
        jd.clip_by_global_norm(max_norm)
