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

# name -> (schedule for K stages and M, the oracle's arguments for K stages and M)
CASES = {
    "backprop": (lambda K, M: schedules.backprop(K), lambda K, M: {}),
    "gpipe": (lambda K, M: schedules.gpipe(K, M), lambda K, M: {"chunks": M, "weights": "replay"}),
    "gpipe-2-chunks": (lambda K, M: schedules.gpipe(K, 2, weights="stash"), lambda K, M: {"chunks": 2}),
    "ddg": (lambda K, M: schedules.ddg(K), lambda K, M: {}),
    "features_replay": (lambda K, M: schedules.features_replay(K), lambda K, M: {}),
    "fdg": (lambda K, M: schedules.fdg(K), lambda K, M: {"order": "backward"}),
    "fdg-forward": (lambda K, M: schedules.fdg(K, order="forward_first"), lambda K, M: {"order": "forward"}),
    "adl": (lambda K, M: schedules.adl(K), lambda K, M: {"order": "forward"}),
    "adl-backward": (lambda K, M: schedules.adl(K, order="backward_first"), lambda K, M: {"order": "backward"}),
    "dsp": (lambda K, M: schedules.dsp(**_queues(K, 1)), lambda K, M: _queues(K, 1)),
    "dsp-long": (lambda K, M: schedules.dsp(**_queues(K, 2)), lambda K, M: _queues(K, 2)),
    "pipedream": (lambda K, M: schedules.pipedream(K), lambda K, M: {}),
}
PLAIN = {"learning_rate": 0.3}
FULL = {"learning_rate": lambda s: 0.2 / (1 + 0.1 * s), "momentum": 0.9, "weight_decay": 0.05, "beta": 0.7}
LARS = {"learning_rate": lambda s: 2.0 / (1 + s), "eta": 0.05, "momentum": 0.9, "weight_decay": 0.05}
BATCHES = 11  # not a multiple of M = 3: the flush meets an incomplete group


def _queues(num_stages, length):
    """DSP's p and m with activation queues of ``length`` and gradient queues of ``length + k``, k the edge."""
    p = (length,) * (num_stages - 1) + (0,)
    m = [0]
    for k in reversed(range(num_stages - 1)):
        m.insert(0, m[0] + p[k] + length + k)
    return {"p": p, "m": tuple(m)}


def problem(num_stages, **settings):
    """Five layers of widths 6, 5, 4, 5, 4, 3, and batches of 7 examples."""
    rng = np.random.default_rng(7)
    widths = (6, 5, 4, 5, 4, 3)
    layers = tuple(
        (rng.normal(size=(a, b)) / np.sqrt(a), 0.1 * rng.normal(size=b))
        for a, b in zip(widths, widths[1:], strict=False)
    )
    batches = [(rng.normal(size=(7, 6)), rng.integers(0, 3, size=7)) for _ in range(BATCHES)]
    boundaries = {1: (), 2: (2,), 3: (1, 3), 4: (1, 2, 4)}[num_stages]
    return naive.Problem(layers, boundaries, batches, **settings)


def pipeline_for(problem, schedule, weights=None):
    if problem.eta is None:
        optimizer = optax.sgd(problem.learning_rate, momentum=problem.momentum or None)
        optimizer = optax.chain(optax.add_decayed_weights(problem.weight_decay), optimizer)
    else:
        settings = {"momentum": problem.momentum, "nesterov": False, "weight_decay": problem.weight_decay}
        optimizer = jd.lars(problem.learning_rate, problem.eta, layers="tensor", momentum_of="gradients", **settings)
    layers = jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64)
    return jd.Pipeline(
        jd.partition(layers, boundaries=problem.boundaries),
        schedule,
        optimizer=jd.stagewise(optimizer, beta=problem.beta, accumulate=problem.accumulate),
        weights=weights,
    )


def start(pipeline, problem):
    """The pipeline's initial state, with the problem's weights in place of its own."""
    state = pipeline.init(jax.random.key(0), problem.batches[0][0])
    weights = iter(problem.layers)
    stages = []
    for k, stage in enumerate(state.stages):
        params = {}
        for name in sorted(stage.params):
            w, b = next(weights)
            params[name] = {"Dense_0": {"kernel": w, "bias": b}}
        stages.append(stage.replace(params=pipeline.placement.own(params, k)))
    return state.replace(stages=tuple(stages))


def weights_of(state):
    layers = [stage.params[name]["Dense_0"] for stage in state.stages for name in sorted(stage.params)]
    return [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]


def run(pipeline, problem):
    """Parameters after every tick, flush included, and the losses by batch."""
    state, parameters, losses = start(pipeline, problem), [], {}

    def record(state, metrics):
        parameters.append(weights_of(state))
        if metrics.batch is not None:
            losses[metrics.batch] = float(metrics.loss)

    for batch in problem.batches:
        state, metrics = pipeline.step(state, batch)
        record(state, metrics)
    state = pipeline.flush(state, on_tick=record)
    assert all(not jax.tree.leaves(flight) for flight in state.in_flight)
    return parameters, losses


def assert_same(actual, expected):
    """``expected`` may end earlier: when its flush is over, nothing changes any more."""
    parameters, losses = actual
    assert len(parameters) >= len(expected.parameters)
    for tick, layers in enumerate(parameters):
        oracle = expected.parameters[min(tick, len(expected.parameters) - 1)]
        for index, (layer, wanted) in enumerate(zip(layers, oracle, strict=True)):
            for got, want in zip(layer, wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-10, err_msg=f"tick {tick}, layer {index}")
    assert losses.keys() == expected.losses.keys()
    for batch, loss in losses.items():
        np.testing.assert_allclose(loss, expected.losses[batch], rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("accumulate", [1, 3])
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
            for name, module in zip(sorted(params), modules, strict=True):
                x_next = module.apply({"params": params[name]}, x if name == "000_DenseLayer" else x_next)
            return jd.softmax_cross_entropy(x_next, y)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), opt_state

    for x, y in task.batches:
        value, params, opt_state = step(params, opt_state, x, y)
        state, metrics = pipeline.step(state, (x, y))
        np.testing.assert_allclose(metrics.loss, value, rtol=0, atol=1e-12)
    for got, want in zip(jax.tree.leaves(state.stages[0].params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
