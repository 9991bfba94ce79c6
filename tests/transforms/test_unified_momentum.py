"""SUM is eq. 3 of DSP, and its special cases are what the paper says."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd

STEPS = 12


def gradients():
    return np.random.default_rng(0).normal(size=(STEPS, 3))


def trajectory(tx, grads):
    x = jnp.arange(3.0)
    state, found = tx.init(x), []
    for g in grads:
        updates, state = tx.update(jnp.asarray(g), state, x)
        x = optax.apply_updates(x, updates)
        found.append(np.asarray(x))
    return found


@pytest.mark.parametrize("s", [0.0, 0.4, 1.0, 10.0])
@pytest.mark.parametrize("rate", [0.1, lambda n: 0.1 / (1 + n)], ids=["constant", "schedule"])
def test_equation_3(rate, s, x64):
    x, beta, expected = np.arange(3.0), 0.9, []
    y_s = x
    for n, g in enumerate(gradients()):
        alpha = rate(n) if callable(rate) else rate
        y, new = x - alpha * g, x - s * alpha * g
        x, y_s = y + beta * (new - y_s), new
        expected.append(x)
    np.testing.assert_allclose(trajectory(jd.sum_momentum(rate, beta, s), gradients()), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("s", "same"),
    [
        (0.0, optax.sgd(0.1, momentum=0.9)),
        (1.0, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (1 / (1 - 0.9), optax.sgd(0.1 / (1 - 0.9))),
    ],
    ids=["heavy ball", "Nesterov", "plain"],
)
def test_special_cases(s, same, x64):
    np.testing.assert_allclose(
        trajectory(jd.sum_momentum(0.1, 0.9, s), gradients()), trajectory(same, gradients()), rtol=1e-9
    )


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="momentum is 1.0; write a number of at least 0 and below 1"):
        jd.sum_momentum(0.1, 1.0)
    with pytest.raises(ValueError, match="s is -1; write 0"):
        jd.sum_momentum(0.1, 0.9, -1)
