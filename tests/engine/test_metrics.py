"""Metrics: what is measured besides the loss is one mean over all that counts, in every batch and over many."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules

RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(7, 5, 4))
TARGETS = np.where(RNG.random((7, 5)) < 0.4, -100, RNG.integers(0, 6, (7, 5)))


def pipeline(**settings):
    settings = {"loss": jd.token_cross_entropy, "optimizer": optax.sgd(0.0), **settings}
    return jd.Pipeline([nn.Dense(3), nn.Dense(6)], schedules.backprop(2), devices=jax.devices()[:1] * 2, **settings)


def nats(logits, targets):
    """Of each position that is not masked, in NumPy."""
    logits, targets = np.asarray(logits, np.float64).reshape(-1, 6), targets.reshape(-1)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(targets)), targets.clip(0)][targets >= 0]


def test_language_metrics_are_of_all_positions_that_are_not_masked(x64):
    run = pipeline(metrics=jd.language_metrics(bytes_per_token=2.5))
    state = run.init(jax.random.key(0), INPUTS)
    expected = nats(run.predict(state, INPUTS), TARGETS)
    # Batches of 5 and 2 examples, with unlike numbers of positions that count: no mean of the batches' means.
    found = run.evaluate(state, [(INPUTS[:5], TARGETS[:5]), (INPUTS[5:], TARGETS[5:])])
    np.testing.assert_allclose(found.metrics["perplexity"], np.exp(expected.mean()), rtol=1e-6)
    np.testing.assert_allclose(found.metrics["bits_per_byte"], expected.mean() / np.log(2) / 2.5, rtol=1e-12)
    np.testing.assert_allclose(found.loss, expected.mean(), rtol=1e-12)
    assert found.accuracy is None and set(found.metrics) == {"perplexity", "bits_per_byte"}
    _, metrics = run.step(state, (INPUTS, TARGETS))
    np.testing.assert_allclose(metrics.loss, expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.values["perplexity"], np.exp(expected.mean()), rtol=1e-12)


def test_a_users_metric_may_be_a_mean_or_a_total_and_a_count():
    def largest(outputs, targets):
        return jnp.max(outputs, axis=-1).mean()

    def masked(outputs, targets):
        return (targets < 0).sum(), targets.size

    run = pipeline(metrics={"largest": largest, "masked": masked})
    state = run.init(jax.random.key(0), INPUTS)
    found = run.evaluate(state, [(INPUTS[:3], TARGETS[:3]), (INPUTS[3:], TARGETS[3:])]).metrics
    np.testing.assert_allclose(found["masked"], (TARGETS < 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["largest"], np.asarray(run.predict(state, INPUTS)).max(axis=-1).mean(), rtol=1e-5)


def test_accuracy_is_what_is_measured_by_default():
    run = pipeline(loss=jd.softmax_cross_entropy)
    labels = np.abs(TARGETS) % 6
    state = run.init(jax.random.key(0), INPUTS)
    right = (np.asarray(run.predict(state, INPUTS)).argmax(-1) == labels).mean()
    found = run.evaluate(state, [(INPUTS, labels)])
    _, metrics = run.step(state, (INPUTS, labels))
    for accuracy in (found.accuracy, found.metrics["accuracy"], metrics.accuracy, metrics.values["accuracy"]):
        np.testing.assert_allclose(accuracy, right, rtol=1e-6)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": jd.accuracy}, "another name"),
        ([jd.accuracy], "write a dict"),
        ({"each": lambda outputs, targets: outputs}, "'each' gives float32.* write one that gives a scalar"),
        ({"wrong": lambda outputs, targets: outputs @ targets}, "metric 'wrong' cannot take outputs float32"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused(metrics, message):
    with pytest.raises(ValueError, match=message):
        run = pipeline(metrics=metrics)
        run.step(run.init(jax.random.key(0), INPUTS), (INPUTS, TARGETS))


def test_token_ids_beyond_the_vocabulary_are_refused():
    run = pipeline(metrics=jd.language_metrics(1))
    state = run.init(jax.random.key(0), INPUTS)
    with pytest.raises(ValueError, match="labels from -100 to 6, but the network has 6 outputs"):
        run.step(state, (INPUTS, np.where(TARGETS == 5, 6, TARGETS)))
    with pytest.raises(ValueError, match="bytes_per_token is 0"):
        jd.language_metrics(0)
