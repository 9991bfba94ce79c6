"""Staleness measured in real runs equals what the static analysis says, and ADL's figures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.layer import Layer

BATCHES = 40


class Log(NamedTuple):
    updates: jax.Array
    gradients: jax.Array
    staleness: jax.Array


def measuring_layer():
    """Its weight counts its updates; d(w^2 / 2)/dw = w, so its gradient is the version of the weight it is taken at."""

    def apply(params, model_state, x, *, key, train):
        return x + params**2 / 2, model_state

    return Layer(lambda key, x: (jnp.zeros(()), {}), apply, "measuring")


def measuring_optimizer(accumulate):
    """Adds 1 to the weight every ``accumulate`` gradients and writes down how old each of them was."""

    def init(params):
        (weight,) = jax.tree.leaves(params)
        return Log(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.full(BATCHES, -1.0))

    def update(grads, state, params=None):
        (version,) = jax.tree.leaves(grads)
        staleness = state.staleness.at[state.gradients].set(state.updates - version)
        ends = (state.gradients + 1) % accumulate == 0
        updates = jax.tree.map(lambda g: jnp.where(ends, 1.0, 0.0), grads)
        return updates, Log(state.updates + ends, state.gradients + 1, staleness)

    return optax.GradientTransformation(init, update)


def measured(schedule, accumulate):
    """Staleness of each batch at each stage, counted to the update that comes with or after its gradient."""
    layers = [measuring_layer() for _ in range(schedule.num_stages)]
    pipeline = jd.Pipeline(
        jd.partition(layers, schedule.num_stages),
        schedule,
        optimizer=measuring_optimizer(accumulate),
        loss=lambda outputs, targets: outputs.sum(),  # its gradient is 1, at every stage
    )
    state = pipeline.init(jax.random.key(0), np.zeros(1, np.float32))
    for _ in range(BATCHES):
        state, _ = pipeline.step(state, (np.zeros(1, np.float32), np.zeros(1, np.float32)))
    state = pipeline.flush(state)
    return np.array([stage.opt_state.staleness for stage in state.stages])


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.backprop(4),
        schedules.gpipe(3, 4, weights="stash"),
        schedules.ddg(4),
        schedules.fdg(4),
        schedules.fdg(3, order="forward_first"),
        schedules.adl(3),
        schedules.adl(4, order="backward_first"),
        schedules.dsp((2, 2, 0), (6, 3, 0), weights="stash"),
        schedules.pipedream(4),
    ],
    ids=lambda schedule: f"{schedule.name}-{getattr(schedule, 'order', 'flush')}",
)
def test_measured_equals_analysed(schedule, accumulate):
    run = measured(schedule, accumulate)
    analysed = np.full_like(run, np.nan)
    for age in schedules.gradient_ages(schedule, BATCHES, accumulate):
        analysed[age.stage, age.batch] = age.staleness
    consumed = ~np.isnan(analysed)
    assert consumed.sum() == schedule.num_stages * (BATCHES // accumulate * accumulate)
    np.testing.assert_array_equal(run[consumed], analysed[consumed])


@pytest.mark.core
def test_figure_1b_of_adl():
    run = measured(schedules.adl(3), accumulate=4)
    assert run[1].reshape(-1, 4)[5].tolist() == [1, 1, 0, 0]  # stage 1 of 0..2: the paper's module 2


@pytest.mark.parametrize("policy", ["replay", "latest"])
def test_other_policies_take_their_gradient_at_the_weights_of_the_backward(policy):
    stash, other = measured(schedules.fdg(3), 1), measured(schedules.fdg(3, weights=policy), 1)
    assert stash[:, 10].tolist() == [3, 1, 0] and other[:, 10].tolist() == [0, 0, 0]


def test_what_is_computed_from_weights_alone_is_not_stored():
    """Under `latest` a cast or a square of the weights is today's; under `stash` it costs no memory."""
    for weights in ("stash", "latest"):
        layers = [measuring_layer(), measuring_layer()]
        pipeline = jd.Pipeline(
            layers,
            schedules.fdg(2, weights=weights),
            optimizer=optax.sgd(0.1),
            loss=lambda outputs, targets: outputs.sum(),
        )
        state = pipeline.init(jax.random.key(0), np.zeros(1, np.float32))
        state, _ = pipeline.step(state, (np.zeros(1, np.float32), np.zeros(1, np.float32)))
        assert not jax.tree.leaves(state.in_flight[0].residuals[0].values)
