"""Weights that are predicted, corrected, or the same for all stages: against NumPy loops, after every tick."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles import naive, views
from tests.oracles.problems import assert_same, problem, run

SETTINGS = {"learning_rate": 0.3, "momentum": 0.9}
SGD = optax.sgd(0.3, momentum=0.9)


def pipeline_for(task, schedule, optimizer):
    layers = jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64)
    stages = jd.partition(layers, boundaries=task.boundaries)
    devices = jax.devices()[:1] * len(stages)
    return jd.Pipeline(stages, schedule, optimizer=jd.stagewise(optimizer, accumulate=task.accumulate), devices=devices)


def loop(monkeypatch, task, method, weights, **settings):
    monkeypatch.setattr(naive, "Run", functools.partial(views.ViewedRun, **settings))
    return naive.METHODS[method](task, weights=weights)


@pytest.mark.parametrize(("method", "accumulate", "most"), [("fdg", 1, 3), ("pipedream", 2, 1)])
def test_forwards_with_predicted_weights(method, accumulate, most, x64, monkeypatch):
    """Each stage looks as far ahead as its gradients are old; the backward is at the weights of the forward."""
    task = problem(3, accumulate=accumulate, **SETTINGS)
    schedule = getattr(schedules, method)(3)
    ahead = [max(levels) for levels in schedules.staleness(schedule, accumulate)]
    expected = loop(monkeypatch, task, method, "stash", ahead=ahead)
    pipeline = pipeline_for(task, schedule, lambda k, K: jd.predict_weights(SGD, ahead[k]))
    assert_same(run(pipeline, task), expected)
    assert ahead[0] == most


def test_spectrain_predicts_again_for_the_backward(x64, monkeypatch):
    """SpecTrain's distances, k from 0: floor(k/2) + K - k - 1 forward, floor(k/2) backward."""
    task = problem(4, **SETTINGS)
    ahead, back = [k // 2 + 4 - k - 1 for k in range(4)], [k // 2 for k in range(4)]
    expected = loop(monkeypatch, task, "pipedream", "latest", ahead=ahead, back=back)

    def optimizer(k, K):
        return jd.predict_weights(SGD, ahead[k], back[k])

    assert_same(run(pipeline_for(task, schedules.pipedream(4, weights="latest"), optimizer), task), expected)


def test_pipemare_corrects_the_weights_of_backwards(x64, monkeypatch):
    task, schedule = problem(3, **SETTINGS), schedules.pipedream(3, weights="latest")

    def optimizer(k, K):
        return jd.correct_weights(SGD, schedule.lag[k], decay=0.135)

    expected = loop(monkeypatch, task, "pipedream", "latest", tau=schedule.lag)
    assert_same(run(pipeline_for(task, schedule, optimizer), task), expected)


def test_pipemares_rate_is_small_where_gradients_are_old():
    rate = jd.delayed_learning_rate(0.3, 4, annealing_steps=10)
    np.testing.assert_allclose([rate(t) for t in (0, 5, 10, 50)], [0.3 / 4, 0.3 / 2, 0.3, 0.3], rtol=1e-6)
    falling = jd.delayed_learning_rate(lambda t: 0.1 / (1 + t), 0, annealing_steps=10)
    np.testing.assert_allclose([falling(0), falling(4)], [0.1, 0.02], rtol=1e-6)


@pytest.mark.parametrize(("num_stages", "accumulate"), [(3, 2), (1, 2)])
def test_two_versions_delay_every_gradient_by_one_update(num_stages, accumulate, x64):
    task = problem(num_stages, accumulate=accumulate, **SETTINGS)
    optimizer = jd.two_versions(SGD, accumulate)
    parameters, _ = run(pipeline_for(task, schedules.pipedream(num_stages), optimizer), task)
    expected = views.two_versions(task)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), parameters[-1], expected[-1])
    for layers in expected:  # each of its versions is there after some tick
        assert min(np.abs(found[0][0] - layers[0][0]).max() for found in parameters) < 1e-10


@pytest.mark.parametrize(
    ("schedule", "optimizer", "accumulate", "message"),
    [
        (schedules.pipedream(3), jd.two_versions(SGD, 1), 1, "is 2 updates old, but its optimizer keeps weights for 1"),
        (schedules.pipedream(3), jd.correct_weights(SGD, 1), 1, "corrects backwards, .*; write weights='latest'"),
        (schedules.dgl(3), jd.predict_weights(SGD, 1), 1, "has a weight view, but under 'dgl'"),
    ],
)
def test_views_that_do_not_fit_the_schedule_are_refused(schedule, optimizer, accumulate, message):
    task = problem(3, accumulate=accumulate, **SETTINGS)
    with pytest.raises(ValueError, match=message):
        layers = jd.models.mlp(3, hidden=(5, 4, 5, 4))
        auxiliary = jd.models.MLPClassifier(3) if schedule.is_local else None
        stages = jd.partition(layers, boundaries=task.boundaries)
        jd.Pipeline(stages, schedule, optimizer=optimizer, auxiliary=auxiliary)


def test_what_cannot_be_is_refused():
    for make, message in (
        (lambda: jd.predict_weights(SGD, -1), "forward is -1; write a number of updates, at least 0"),
        (lambda: jd.correct_weights(SGD, 1, decay=1), "decay is 1; write a number between 0 and 1"),
        (lambda: jd.delayed_learning_rate(0.1, 1, 0), "annealing_steps is 0"),
        (lambda: jd.two_versions(SGD, 0), "accumulate is 0"),
        (lambda: jd.stagewise(jd.predict_weights(SGD, 1), beta=0.5)(0, 2), "beta is 0.5, .* a chain hides"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
