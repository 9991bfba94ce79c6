"""Small problems for the naive loops, and pipelines that are to do the same with them."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

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
    "dsp-backward": (
        lambda K, M: schedules.dsp(**_queues(K, 1), order="backward_first"),
        lambda K, M: {**_queues(K, 1), "order": "backward"},
    ),
    "dsp-long": (lambda K, M: schedules.dsp(**_queues(K, 2)), lambda K, M: _queues(K, 2)),
    "pipedream": (lambda K, M: schedules.pipedream(K), lambda K, M: {}),
}
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
    """A pipeline for the problem. Those of problems that differ in their schedule alone share what is compiled."""
    names = ("boundaries", "learning_rate", "momentum", "weight_decay", "beta", "accumulate", "eta", "adam")
    settings = tuple(getattr(problem, name) for name in names)
    missed = schedules.missed_updates(schedule, problem.accumulate) if problem.adam == "global" else ()
    return _pipeline(settings, missed, jax.config.jax_enable_x64).with_schedule(schedule, weights=weights)


@functools.cache
def _pipeline(settings, missed, x64):
    boundaries, learning_rate, momentum, weight_decay, beta, accumulate, eta, adam = settings
    if adam:
        optimizer = optax.adam(learning_rate)
    elif eta is None:
        optimizer = optax.sgd(learning_rate, momentum=momentum or None)
        optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optimizer)
    else:
        arguments = {"momentum": momentum, "nesterov": False, "weight_decay": weight_decay}
        optimizer = jd.lars(learning_rate, eta, groups="tensor", momentum_of="gradients", **arguments)
    layers = jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64)
    stages = jd.partition(layers, boundaries=boundaries)
    optimizer = jd.stagewise(optimizer, beta=beta, accumulate=accumulate, missed=missed)
    return jd.Pipeline(stages, schedules.backprop(len(stages)), optimizer=optimizer)


_initial = {}  # by the programs of pipelines, the state that they all begin with


def start(pipeline, problem):
    """The pipeline's initial state, with the problem's weights in place of its own."""
    x, programs = problem.batches[0][0], tuple(pipeline.programs)
    if programs not in _initial:
        _initial[programs] = pipeline.init(jax.random.key(0), x)
    copies = (pipeline.placement.own(stage, k) for k, stage in enumerate(_initial[programs].stages))
    state = _initial[programs].replace(stages=tuple(copies))
    pipeline.expect(state, x)
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
