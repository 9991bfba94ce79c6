"""Every method's parameters, after every tick, equal those of a naive NumPy loop written from its paper."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles import naive
from tests.oracles.problems import CASES, assert_same, pipeline_for, problem, run, start

PLAIN = {"learning_rate": 0.3}
FULL = {"learning_rate": lambda s: 0.2 / (1 + 0.1 * s), "momentum": 0.9, "weight_decay": 0.05, "beta": 0.7}
LARS = {"learning_rate": lambda s: 2.0 / (1 + s), "eta": 0.05, "momentum": 0.9, "weight_decay": 0.05}


@pytest.mark.parametrize(("settings", "accumulate"), [(PLAIN, 1), (FULL, 3)], ids=["plain-1", "full-3"])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_papers_loop(name, num_stages, accumulate, settings, x64):
    schedule, arguments = CASES[name]
    task = problem(num_stages, accumulate=accumulate, **settings)
    method = naive.METHODS[name.split("-")[0]]
    expected = method(task, **arguments(num_stages, accumulate))
    assert_same(run(pipeline_for(task, schedule(num_stages, accumulate)), task), expected)


@pytest.mark.parametrize("weights", [*naive.WEIGHTS, "remat"])
@pytest.mark.parametrize("name", ["ddg", "fdg", "dsp", "pipedream", "gpipe-2-chunks"])
def test_every_weights_policy(name, weights, x64):
    schedule, arguments = CASES[name]
    task = problem(3, accumulate=2, **FULL)
    papers = "stash" if weights == "remat" else weights  # the same numbers by another way
    expected = naive.METHODS[name.split("-")[0]](task, **{**arguments(3, 2), "weights": papers})
    assert_same(run(pipeline_for(task, schedule(3, 2), weights=weights), task), expected)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("name", ["backprop", "gpipe", "ddg", "fdg", "adl", "dsp"])
def test_layer_wise_rates_in_every_stage(name, num_stages, accumulate, x64):
    """A stage is a set of whole layers, so LARS needs to know of no other stage."""
    schedule, arguments = CASES[name]
    task = problem(num_stages, accumulate=accumulate, **LARS)
    expected = naive.METHODS[name](task, **arguments(num_stages, accumulate))
    assert_same(run(pipeline_for(task, schedule(num_stages, accumulate)), task), expected)


@pytest.mark.parametrize(
    ("name", "num_stages", "time"), [("ddg", 2, "own"), ("ddg", 4, "global"), ("fdg", 3, "global")]
)
def test_adam_with_delayed_gradients(name, num_stages, time, x64):
    """Thesis, Algorithm 10: bias corrections, and here a learning rate, count time also while no gradient is there."""
    schedule, arguments = CASES[name]
    task = problem(num_stages, learning_rate=lambda t: 0.05 / (1 + 0.1 * t), adam=time)
    expected = naive.METHODS[name](task, **arguments(num_stages, 1))
    assert_same(run(pipeline_for(task, schedule(num_stages, 1)), task), expected)


@functools.cache
def final_weights(weights):
    task = problem(3, **PLAIN)
    with jax.enable_x64(True):
        return run(pipeline_for(task, schedules.fdg(3), weights=weights), task)[0][-1]


@pytest.mark.parametrize("pair", [("stash", "replay"), ("stash", "latest"), ("replay", "latest")], ids="-".join)
def test_policies_differ_where_gradients_are_late(pair):
    first, second = (final_weights(weights)[0][0] for weights in pair)
    assert np.abs(first - second).max() > 1e-4


def test_one_stage_is_plain_optax(x64):
    task = problem(1, **FULL)
    pipeline = pipeline_for(task, schedules.fdg(1))
    state = start(pipeline, task)
    params = jax.tree.map(np.asarray, state.stages[0].params)
    optimizer = optax.chain(optax.add_decayed_weights(0.05), optax.sgd(task.learning_rate, momentum=0.9))
    opt_state = optimizer.init(params)
    modules = jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64)

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(params):
            out = x
            for name, module in zip(sorted(params), modules, strict=True):
                out = module.apply({"params": params[name]}, out)
            return jd.softmax_cross_entropy(out, y)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), opt_state

    for x, y in task.batches:
        value, params, opt_state = step(params, opt_state, x, y)
        state, metrics = pipeline.step(state, (x, y))
        np.testing.assert_allclose(metrics.loss, value, rtol=0, atol=1e-12)
    for got, want in zip(jax.tree.leaves(state.stages[0].params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
