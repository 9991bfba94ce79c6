"""Adam in a rotated basis is that of a NumPy loop, for a matrix alone and in a stack; other parameters have Adam's."""

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd


def numpy_steps(gradients, every, b1=0.9, b2=0.99, eps=1e-8):
    m, n = gradients[0].shape
    mean, square, left, right = np.zeros((m, n)), np.zeros((m, n)), np.zeros((m, m)), np.zeros((n, n))
    u, v = np.eye(m), np.eye(n)
    for t, g in enumerate(gradients, 1):
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if (t - 1) % every == 0:
            u, v = np.linalg.qr(left @ u)[0], np.linalg.qr(right @ v)[0]
        mean, square = b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * (u.T @ g @ v) ** 2
        step = (u.T @ mean @ v) / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + eps)
        yield u @ step @ v.T


def test_steps_are_those_of_a_numpy_loop(x64):
    rng, every = np.random.default_rng(4), 3
    # Matrices of full rank, so that a basis is one but for signs, which cancel.
    gradients = [
        {"000-001_Dense": {"kernel": rng.normal(size=(2, 4, 4)), "bias": rng.normal(size=(2, 4))}} for _ in range(7)
    ]
    params = jax.tree.map(np.zeros_like, gradients[0])
    rotated, adam = jd.rotated_adam(1.0, b2=0.99, every=every), optax.adam(1.0, b2=0.99)
    state, adams, step = rotated.init(params), adam.init(params), jax.jit(rotated.update)
    kernels = [numpy_steps([g["000-001_Dense"]["kernel"][i] for g in gradients], every) for i in range(2)]
    for g in gradients:
        updates, state = step(g, state, params)
        plain, adams = adam.update(g, adams, params)
        found, expected = updates["000-001_Dense"], np.stack([next(kernel) for kernel in kernels])
        np.testing.assert_allclose(found["kernel"], -expected, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found["bias"], plain["000-001_Dense"]["bias"], rtol=1e-10)
    with pytest.raises(ValueError, match="every is 0"):
        jd.rotated_adam(0.1, every=0)
