"""Muon orthogonalises each matrix of a stack by itself, and leaves embeddings to Adam."""

import jax
import numpy as np
import optax
from optax import contrib

import jaxdecouple as jd

RNG = np.random.default_rng(1)
APART = {f"{i:03d}_Dense": {"kernel": RNG.normal(size=(4, 6)), "bias": RNG.normal(size=6)} for i in range(3)}
STACK = {"000-002_Dense": jax.tree.map(lambda *leaves: np.stack(leaves), *APART.values())}


def changes(optimizer, params):
    return optimizer.update(jax.tree.map(np.cos, params), optimizer.init(params), params)[0]


def test_a_stack_is_its_matrices(x64):
    together, apart = (changes(jd.muon(0.1), params) for params in (STACK, APART))
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *apart.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), together["000-002_Dense"], expected)
    alone = changes(contrib.muon(0.1), APART)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), apart, alone)


def test_tables_are_adams(x64):
    params = {"000_TokenEmbedding": {"embedding": RNG.normal(size=(5, 4)), "positions": RNG.normal(size=(3, 4))}}
    expected = changes(optax.adam(0.1, nesterov=True), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), changes(jd.muon(0.1), params), expected)
