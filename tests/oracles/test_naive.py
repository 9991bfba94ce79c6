"""The oracle checked against itself and against closed forms; the library is not needed."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.oracles.naive import METHODS, WEIGHTS, Problem, backward_layers, cross_entropy, forward_layers

SIZES = (3, 5, 4, 4, 5, 3)  # five layers
BOUNDARIES = {1: (), 2: (3,), 3: (2, 3), 4: (1, 2, 4)}
ORDERS = ("forward", "backward")


def make(num_stages, *, num_batches=9, examples=6, **options):
    rng = np.random.default_rng(0)
    layers = tuple((rng.normal(size=(i, o)) / math.sqrt(i), 0.1 * rng.normal(size=o)) for i, o in pairwise(SIZES))
    batches = [
        (rng.normal(size=(examples, SIZES[0])), rng.integers(SIZES[-1], size=examples)) for _ in range(num_batches)
    ]
    return Problem(layers, BOUNDARIES[num_stages], batches, **{"learning_rate": 0.3, **options})


def cases(k):
    """Every method with K = k, as (name, arguments, p, q, order), p and q None for GPipe."""
    one, none = (1,) * (k - 1), (0,) * (k - 1)
    lag = tuple(range(k - 1, -1, -1))
    long = tuple(3 * m for m in lag)  # p = 1 and q = 2, or p = 2 and q = 1
    return [
        ("backprop", {}, none, none, "forward"),
        ("gpipe", {"chunks": 2}, None, None, "forward"),
        ("ddg", {}, none, one, "forward"),
        ("features_replay", {}, none, one, "forward"),
        *(("fdg", {"order": order}, one, one, order) for order in ORDERS),
        *(("adl", {"order": order}, one, one, order) for order in ORDERS),
        ("dsp", {"p": (*one, 0), "m": tuple(2 * m for m in lag)}, one, one, "forward"),
        ("dsp", {"p": (*one, 0), "m": long}, one, (2,) * (k - 1), "forward"),
        ("dsp", {"p": (*(2 * n for n in one), 0), "m": long}, (2,) * (k - 1), one, "forward"),
        ("dsp", {"p": (*one, 0), "m": long, "order": "backward"}, one, (2,) * (k - 1), "backward"),
        ("pipedream", {}, one, none, "forward"),
    ]


def flat(layers):
    return np.concatenate([part.ravel() for layer in layers for part in layer])


def stage_slices(problem):
    ends = np.cumsum([w.size + b.size for w, b in problem.layers])
    edges = [0, *(ends[n - 1] for n in problem.boundaries), ends[-1]]
    return [slice(*edge) for edge in pairwise(edges)]


def unflat(problem, vector):
    layers, start = [], 0
    for w, b in problem.layers:
        middle, end = start + w.size, start + w.size + b.size
        layers.append((vector[start:middle].reshape(w.shape), vector[middle:end]))
        start = end
    return tuple(layers)


def loss_and_gradient(problem, vector, n):
    """Of batch n, at the weights in `vector`, by one step of back-propagation."""
    one = Problem(unflat(problem, vector), (), [problem.batches[n]], learning_rate=1.0)
    run = METHODS["backprop"](one)
    return run.losses[0], vector - flat(run.parameters[0])


def assert_same(left, right, **tolerance):
    assert len(left.parameters) == len(right.parameters)
    for a, b in zip(left.parameters, right.parameters, strict=True):
        np.testing.assert_allclose(flat(a), flat(b), **tolerance)


def test_loss_by_hand():
    problem = make(1, num_batches=1, examples=2)
    x, y = problem.batches[0]
    expected = 0.0
    for h, label in zip(x, y, strict=True):
        for w, b in problem.layers[:-1]:
            h = np.array([math.tanh(sum(h * w[:, j]) + b[j]) for j in range(len(b))])
        w, b = problem.layers[-1]
        logits = [sum(h * w[:, j]) + b[j] for j in range(len(b))]
        expected += math.log(sum(map(math.exp, logits))) - logits[label]
    assert METHODS["backprop"](problem).losses[0] == pytest.approx(expected / 2, rel=1e-12)


def test_gradients_against_central_differences():
    problem = make(1, num_batches=1)
    vector, step = flat(problem.layers), 1e-5
    _, gradient = loss_and_gradient(problem, vector, 0)
    for index in range(len(vector)):
        shift = step * (np.arange(len(vector)) == index)
        up, _ = loss_and_gradient(problem, vector + shift, 0)
        down, _ = loss_and_gradient(problem, vector - shift, 0)
        assert gradient[index] == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_optimizer_by_hand():
    problem = make(1, num_batches=5, accumulate=2, momentum=0.9, weight_decay=0.1)
    problem = replace(problem, learning_rate=lambda s: 0.3 / (1 + s))
    w = flat(problem.layers)
    buffer = 0.0
    run = METHODS["backprop"](problem)
    before = [w, *map(flat, run.parameters)]
    for s in range(2):
        np.testing.assert_array_equal(before[2 * s + 1], before[2 * s])  # no decay in between
        g = sum(loss_and_gradient(problem, w, n)[1] for n in (2 * s, 2 * s + 1)) / 2 + 0.1 * w
        buffer = 0.9 * buffer + g
        w = w - 0.3 / (1 + s) * buffer
        np.testing.assert_allclose(before[2 * s + 2], w, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(before[5], before[4])  # a partial group stays unapplied


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("name", "arguments"), [case[:2] for case in cases(1)])
def test_one_stage_is_back_propagation(name, arguments, weights):
    problem = make(1, accumulate=2, momentum=0.9, weight_decay=0.01, beta=0.5)
    run, expected = (
        METHODS[name](problem, weights=weights, **arguments),
        METHODS["backprop"](problem),
    )
    assert_same(run, expected, rtol=0)
    assert run.losses == expected.losses
    assert set(run.staleness.values()) == {0}


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_gpipe_is_the_large_batch(num_stages, weights):
    problem = make(num_stages, num_batches=12, accumulate=4, momentum=0.9, weight_decay=0.01)
    large = [tuple(np.concatenate(part) for part in zip(*problem.batches[n : n + 4], strict=True)) for n in (0, 4, 8)]
    run = METHODS["gpipe"](problem, chunks=4, weights=weights)
    expected = METHODS["backprop"](replace(problem, batches=large, accumulate=1))
    for s, layers in enumerate(expected.parameters):
        np.testing.assert_allclose(flat(run.parameters[4 * s + 3]), flat(layers), atol=1e-13)
    assert set(run.staleness.values()) == {0}


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("index", [n for n, case in enumerate(cases(2)) if case[2] is not None])
def test_stashed_steps_are_gradients_at_the_forward_weights(num_stages, index):
    """FDG eq. 14 and 17, thesis eq. 5.9, at the ticks that the delays p and q imply."""
    name, arguments, p, q, order = cases(num_stages)[index]
    problem = make(num_stages, learning_rate=0.5, beta=0.7)
    run = METHODS[name](problem, weights="stash", **arguments)
    before = [flat(problem.layers), *map(flat, run.parameters)]  # before[t]: at the start of tick t
    expected = [np.zeros_like(before[0]) for _ in run.parameters]
    for n in range(len(problem.batches)):
        seen = before[0].copy()
        for k, where in enumerate(stage_slices(problem)):
            first = order == "forward" or k == num_stages - 1
            seen[where] = before[n + sum(p[:k]) + (0 if first else 1)][where]
        loss, gradient = loss_and_gradient(problem, seen, n)
        assert run.losses[n] == pytest.approx(loss, rel=1e-12)
        for k, where in enumerate(stage_slices(problem)):
            t = n + sum(p[:k]) + sum(p[k:]) + sum(q[k:])
            expected[t][where] -= 0.5 * 0.7 ** (num_stages - 1 - k) * gradient[where]
    steps = np.diff(before, axis=0)
    np.testing.assert_allclose(steps, expected, rtol=1e-9, atol=1e-13)


def test_loops_that_must_agree():
    problem = make(3, accumulate=2, momentum=0.9, weight_decay=0.01, beta=0.5)
    for weights in WEIGHTS:
        for order in ORDERS:
            fdg = METHODS["fdg"](problem, order=order, weights=weights)
            assert_same(fdg, METHODS["adl"](problem, order=order, weights=weights), rtol=0)
            dsp = METHODS["dsp"](problem, p=(1, 1, 0), m=(4, 2, 0), order=order, weights=weights)
            assert_same(fdg, dsp, rtol=0)
        ddg = METHODS["ddg"](problem, weights=weights)
        assert_same(ddg, METHODS["features_replay"](problem, weights=weights), rtol=0)
    plain = replace(problem, accumulate=1)
    assert_same(METHODS["adl"](plain, accumulate=2), METHODS["adl"](problem), rtol=0)


def test_staleness_of_adl_figure_1b():
    run = METHODS["adl"](make(3, num_batches=16, learning_rate=0.0), accumulate=4)
    assert [run.staleness[1, n] for n in range(8, 12)] == [1, 1, 0, 0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["fdg", "adl"])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_steady_staleness(num_stages, name, accumulate, order):
    problem = make(num_stages, num_batches=20, examples=1, accumulate=accumulate)
    staleness = METHODS[name](problem, order=order).staleness
    for n in range(10, 20 - 20 % accumulate):
        for k in range(num_stages):
            d, j = 2 * (num_stages - 1 - k), n % accumulate
            d -= order == "backward"
            assert staleness[k, n] == max(0, math.ceil((d - j) / accumulate))
    assert ((0, 19) in staleness) == (20 % accumulate == 0)


@pytest.mark.parametrize(("name", "arguments"), [case[:2] for case in cases(3)])
def test_policies_differ_exactly_when_weights_have_moved(name, arguments):
    runs = [METHODS[name](make(3), weights=weights, **arguments) for weights in WEIGHTS]
    last = [flat(run.parameters[-1]) for run in runs]
    distances = [np.abs(last[i] - last[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    if any(runs[0].staleness.values()):
        assert min(distances) > 1e-6
    else:
        assert name == "backprop"
        assert max(distances) == 0
    default = METHODS[name](make(3), **arguments)
    assert_same(default, runs[1 if name in ("features_replay", "dsp") else 0], rtol=0)


def test_latest_reads_no_weights_for_the_gradient_of_a_single_layer():
    """dW = x^T (g tanh'(stored)): with one layer below the top stage, latest is stash."""
    problem = replace(make(2), boundaries=(1,))
    stash, replay, latest = (METHODS["ddg"](problem, weights=weights) for weights in WEIGHTS)
    assert_same(stash, latest, rtol=0)
    assert np.abs(flat(stash.parameters[-1]) - flat(replay.parameters[-1])).max() > 1e-6


def test_gpipe_finishes_its_last_round():
    run = METHODS["gpipe"](make(3, num_batches=7), chunks=4)
    assert len(run.parameters) == 8
    stage = slice(0, 2)  # layers of stage 0: they move at the last tick of a round
    first = [flat(layers[stage]) for layers in run.parameters]
    assert [t for t in range(1, 8) if (first[t] != first[t - 1]).any()] == [3, 7]


@pytest.mark.parametrize(
    ("p", "m"), [((0,), (0,)), ((1, 0), (3, 0)), ((2, 1, 0), (6, 3, 0)), ((1, 1, 1, 0), (6, 4, 2, 0))]
)
def test_dsp_steps_are_equation_5_at_its_timestamps(p, m):
    """Unrolled for each batch: every block's step is G_{x_k} with x_k of its two timestamps, m_k updates apart."""
    problem, num_stages = make(len(p), learning_rate=0.4), len(p)
    run = METHODS["dsp"](problem, p=p, m=m)
    x = [problem.layers, *run.parameters]  # x[t]: at timestamp t, before its update
    edges = [*pairwise((0, *problem.boundaries, len(problem.layers)))]
    expected = [np.zeros(flat(layers).shape) for layers in run.parameters]
    for n, (h, labels) in enumerate(problem.batches):
        inputs, t = [], n
        for k, (first, end) in enumerate(edges):
            inputs.append(h)
            h = forward_layers(x[t][first:end], h, end == len(problem.layers))[-1]
            t += p[k]
        _, error = cross_entropy(h, labels)
        for k in reversed(range(num_stages)):
            (first, end), back = edges[k], n + sum(p[:k]) + m[k]
            activations = forward_layers(x[back][first:end], inputs[k], k == num_stages - 1)
            gradients, error = backward_layers(x[back][first:end], activations, error, k == num_stages - 1)
            expected[back][stage_slices(problem)[k]] -= 0.4 * flat(gradients)
            if n >= m[k]:  # before that, block k has made fewer updates
                assert run.staleness[k, n] == m[k]
    np.testing.assert_allclose(np.diff([flat(layers) for layers in x], axis=0), expected, rtol=1e-9, atol=1e-13)


def test_dsp_refuses_queues_that_cannot_be():
    for p, m in [((0, 1, 0), (4, 2, 0)), ((1, 1, 0), (2, 2, 0)), ((1, 1, 0), (4, 2, 1))]:
        with pytest.raises(ValueError, match="DSP"):
            METHODS["dsp"](make(3), p=p, m=m)
