"""An accuracy is given where it means something, over the labels that count."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules

LOGITS = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 1.0, 4.0], [5.0, 0.0, 0.0]], np.float32)


def scored(loss, batches):
    """What `evaluate` makes of a network that gives its input back, with metrics of a step."""
    devices = jax.devices()[:1] * 2
    p = jd.Pipeline([nn.relu, nn.relu], schedules.backprop(2), loss=loss, optimizer=optax.sgd(0.1), devices=devices)
    state = p.init(jax.random.key(0), batches[0][0])
    evaluation = p.evaluate(state, batches)
    return evaluation, p.step(state, batches[0])[1]


def test_negative_labels_are_left_out():
    np.testing.assert_allclose(jd.accuracy(LOGITS, jnp.array([1, 1, -100, -1])), 0.5)
    assert np.isnan(jd.accuracy(LOGITS, jnp.full(4, -100)))
    # Over labels, not over examples or batches: 1 of 1 and 1 of 4.
    batches = [(LOGITS, jnp.array([1, -1, -1, -1])), (LOGITS, jnp.array([1, 1, 1, 1]))]
    evaluation, metrics = scored(jd.softmax_cross_entropy, batches)
    np.testing.assert_allclose((evaluation.accuracy, metrics.accuracy), (2 / 5, 1.0))


def test_a_set_without_labels_has_no_accuracy():
    evaluation, metrics = scored(jd.softmax_cross_entropy, [(LOGITS, jnp.full(4, -1))])
    assert np.isnan(evaluation.accuracy) and np.isnan(metrics.accuracy)


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, counts: optax.losses.poly_loss_cross_entropy(logits, jax.nn.one_hot(counts, 3)).mean(),
        lambda rates, counts: jnp.mean(jnp.exp(rates).sum(-1) - counts * rates.sum(-1)),  # integers that are counts
    ],
)
def test_a_loss_of_ones_own_may_mean_something_else_by_integers(loss):
    evaluation, metrics = scored(loss, [(LOGITS, np.array([1, 0, 2, 0]))])
    assert evaluation.accuracy is None and metrics.accuracy is None and metrics.loss is not None


def test_the_usual_loss_bound_to_arguments_is_still_the_usual_loss():
    evaluation, metrics = scored(functools.partial(jd.softmax_cross_entropy), [(LOGITS, np.array([1, 0, 2, 1]))])
    assert evaluation.accuracy == metrics.accuracy == 0.75


@pytest.mark.parametrize("labels", [[1, 0, 3, 0], [1, 0, -1, 0]])
def test_labels_of_no_class_are_refused_where_they_can_be_seen_and_make_the_loss_nan_elsewhere(labels):
    evaluation, metrics = scored(jd.softmax_cross_entropy, [(LOGITS, jnp.array(labels))])
    assert np.isnan(evaluation.loss) and np.isnan(metrics.loss)
    devices = jax.devices()[:1] * 2
    p = jd.Pipeline([nn.relu, nn.relu], schedules.backprop(2), optimizer=optax.sgd(0.1), devices=devices)
    state = p.init(jax.random.key(0), LOGITS)
    for use in (lambda batch: p.evaluate(state, [batch]), lambda batch: p.step(state, batch)):
        with pytest.raises(ValueError, match="batch 0 has labels from .*, but the network has 3 outputs"):
            use((LOGITS, np.array(labels)))
