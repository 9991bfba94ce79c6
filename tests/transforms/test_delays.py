"""A queue of gradients computes in a plain loop what a decoupled pipeline does; NAdam is PyTorch's."""

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles.problems import problem, start


def test_a_queue_is_the_staleness_of_a_pipeline(x64):
    """DDG: gradients of stage k are K-1-k ticks old, and all of them of one version of the weights."""
    task = problem(3, learning_rate=0.1)
    optimizer = optax.adamw(0.05, weight_decay=0.1)
    layers = jd.models.mlp(3, hidden=(5, 4, 5, 4), param_dtype=np.float64)
    stages = jd.partition(layers, boundaries=task.boundaries)
    pipeline = jd.Pipeline(stages, schedules.ddg(3), optimizer=optimizer, devices=jax.devices()[:1] * 3)
    state = start(pipeline, task)
    params = {str(k): stage.params for k, stage in enumerate(state.stages)}
    delayed = optax.partition(
        {str(k): jd.delay_gradients(optimizer, 2 - k) for k in range(3)}, {str(k): str(k) for k in range(3)}
    )
    opt_state = delayed.init(params)

    def loss(params, x, y):
        for k, stage in enumerate(stages):
            x, _ = stage.apply(params[str(k)], {}, x, key=jax.random.key(0), batch=0, train=True)
        return jd.softmax_cross_entropy(x, y)

    @jax.jit
    def step(params, opt_state, batch):
        updates, opt_state = delayed.update(jax.grad(loss)(params, *batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in task.batches:
        params, opt_state = step(params, opt_state, batch)
        state, _ = pipeline.step(state, batch)
        found = {str(k): stage.params for k, stage in enumerate(state.stages)}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), found, params)


def test_no_delay_is_the_transform_itself_and_a_negative_one_is_refused():
    inner = optax.with_extra_args_support(optax.sgd(0.1))
    assert jd.delay_gradients(inner, 0) is inner
    for tau in (-1, 0.5):
        with pytest.raises(ValueError, match=f"tau is {tau}; write how many updates a gradient waits"):
            jd.delay_gradients(inner, tau)


def test_nadam_is_that_of_pytorch(x64):
    """`torch.optim.NAdam`, with decoupled weight decay, as its documentation has it."""
    rng, b1, b2, psi = np.random.default_rng(0), 0.99, 0.999, 0.004
    params = {"w": rng.normal(size=(3, 2))}
    optimizer = jd.nadam(lambda t: 0.1 / (1 + t), weight_decay=0.1)
    state, w = optimizer.init(params), params["w"].copy()
    m, v, product = 0.0, 0.0, 1.0
    for t in range(1, 8):
        g, rate = rng.normal(size=(3, 2)), 0.1 / t
        updates, state = jax.jit(optimizer.update)({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
        w = w * (1 - rate * 0.1)
        mu, ahead = (b1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
        product *= mu
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = ahead * m / (1 - product * ahead) + (1 - mu) * g / (1 - product)
        w = w - rate * step / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        np.testing.assert_allclose(params["w"], w, rtol=1e-10)
