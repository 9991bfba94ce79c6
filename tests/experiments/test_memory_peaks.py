"""Peak memory is counted right: by hand where that can be done, and as the weights policies say it must be."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from experiments.measure.memory import _Meter, peak_bytes
from jaxdecouple import schedules

WIDTH, BATCH = 512, 2
WEIGHTS = 4 * WIDTH * WIDTH  # bytes of a layer: everything else is small beside it


@pytest.fixture
def x():
    return jax.block_until_ready(jax.device_put(jnp.ones(1000, jnp.float32), jax.devices()[1]))


def test_a_new_output_adds_to_its_argument(x):
    meter = _Meter(x)
    y = meter.watch(jax.jit(lambda x: x + 1), jax.devices()[1])(x)
    assert meter.peaks == {jax.devices()[1]: 8000} and y.shape == (1000,)


def test_a_donated_argument_is_counted_once(x):
    meter = _Meter(x)
    meter.watch(jax.jit(lambda x: x + 1, donate_argnums=0), jax.devices()[1])(x)
    assert meter.peaks == {jax.devices()[1]: 4000}


def test_what_others_hold_and_other_devices_do_not_count(x):
    others = jax.device_put(np.ones(500, np.float32), jax.devices()[1])
    meter = _Meter(x)
    elsewhere = jax.device_put(np.ones(500, np.float32), jax.devices()[2])
    kept = jax.device_put(np.ones(50, np.float32), jax.devices()[1])
    meter.watch(jax.jit(lambda x: x + 1), jax.devices()[1])(x)
    assert meter.peaks == {jax.devices()[1]: 8200} and all(a.size for a in (others, elsewhere, kept))


@functools.cache
def peak(weights="stash", accumulate=1, preset=schedules.fdg):
    """Of the devices of a network of two wide layers without biases, in layers' weights."""
    stages = jd.partition([nn.Dense(WIDTH, use_bias=False), nn.Dense(WIDTH, use_bias=False)], 2)
    pipeline = jd.Pipeline(
        stages, preset(2, weights=weights), optimizer=jd.stagewise(optax.sgd(0.1), accumulate=accumulate)
    )
    batch = np.ones((BATCH, WIDTH), np.float32), np.zeros(BATCH, np.int32)
    state = pipeline.init(jax.random.key(0), batch[0])
    found = peak_bytes(pipeline, state, [batch] * (6 + 2 * accumulate))
    return [size / WEIGHTS for size in found]


def test_a_stage_of_the_network_holds_its_weights_and_one_gradient():
    below, last = peak("latest")
    assert 1 <= below < 2.2 and 1 <= last < 2.2  # in place, or with the gradient apart, as XLA likes


def test_stash_keeps_two_old_versions():
    # Before B(t-2) F(t): today's weights, which are those of batch t-1, and those of t-2. The update makes a third.
    assert peak("stash")[0] - peak("latest")[0] == pytest.approx(2, abs=0.1)
    assert peak("stash")[1] == pytest.approx(peak("latest")[1], abs=0.01)


def test_policies_that_keep_no_version_need_no_more_than_those_that_do():
    assert peak("latest")[0] <= peak("stash")[0] and peak("replay")[0] <= peak("remat")[0]


def test_stash_holds_references_not_copies():
    # More batches to an update: fewer versions among those in flight. Copies would be one for each batch.
    assert peak("stash", accumulate=4)[0] <= peak("stash", accumulate=2)[0] + 0.1
    assert peak("stash", accumulate=8)[0] == pytest.approx(peak("stash", accumulate=4)[0], abs=0.1)


def test_shared_devices_are_counted_together():
    layers = [nn.Dense(WIDTH, use_bias=False), nn.Dense(WIDTH, use_bias=False)]
    device = jax.devices()[3]
    pipeline = jd.Pipeline(
        jd.partition(layers, 2), schedules.fdg(2), optimizer=optax.sgd(0.1), devices=[device, device]
    )
    batch = np.ones((BATCH, WIDTH), np.float32), np.zeros(BATCH, np.int32)
    (shared,) = peak_bytes(pipeline, pipeline.init(jax.random.key(0), batch[0]), [batch] * 6)
    assert max(peak("stash")) + 1 <= shared / WEIGHTS <= sum(peak("stash")) + 0.1
