"""A global norm over stages: exact where all update at once, known late elsewhere; and who is warned."""

import contextlib
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.engine.updates import Updates
from jaxdecouple.transforms import dependence_of
from tests.oracles import naive

MAX_NORM = 0.05
NETWORK = [nn.Dense(5, param_dtype=float), nn.tanh, nn.Dense(4, param_dtype=float), nn.Dense(3, param_dtype=float)]


def batches(count):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(6, 4)), rng.integers(0, 3, 6)) for _ in range(count)]


def pipeline_of(num_stages, clip, schedule=schedules.backprop, accumulate=1, layers=NETWORK, **more):
    clipped = optax.chain(clip(MAX_NORM), optax.adam(0.1)) if callable(clip) else clip
    optimizer = jd.stagewise(clipped, accumulate=accumulate)
    stages = jd.partition(layers, num_stages)
    return jd.Pipeline(stages, schedule(num_stages), optimizer=optimizer, **more)


def trained(pipeline, data, observer=None):
    state = pipeline.init(jax.random.key(0), data[0][0])
    for batch in data:
        state, _ = pipeline.step(state, batch, observer=observer)
    return pipeline.flush(state, observer=observer)


def weights(pipeline, state):
    return jax.tree.leaves(jd.export_variables(pipeline, state)["params"])


def assert_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("schedule", "accumulate"), [(schedules.backprop, 1), (lambda K: schedules.gpipe(K, 2), 2)])
def test_where_all_stages_update_at_once_the_cut_does_not_matter(schedule, accumulate, x64):
    """The network in one piece, under optax's own transform, is the measure."""
    whole = pipeline_of(1, optax.clip_by_global_norm, accumulate=accumulate)
    want = weights(whole, trained(whole, batches(4)))
    pipeline = pipeline_of(3, jd.clip_by_global_norm, schedule, accumulate)
    assert_close(weights(pipeline, trained(pipeline, batches(4))), want)


def by_hand(first, last, data, learning_rate):
    """FDG with two stages of one matrix each: an update knows the other's sum of squares from the tick before."""
    w0, w1, sums, stash, sent = first, last, [0.0, 0.0], {}, {}
    for t in range(len(data) + 2):
        before = list(sums)

        def step(w, gradient, k, before=before):
            sums[k] = (gradient**2).sum()
            norm = np.sqrt(sums[k] + before[1 - k])
            return w - learning_rate * gradient * min(1.0, MAX_NORM / norm)

        arrived = {t - 1: stash[t - 1]} if t - 1 in stash else {}
        if t - 2 in sent:
            x, h, _ = stash.pop(t - 2)
            w0 = step(w0, x.T @ (sent.pop(t - 2) * (1 - h**2)), 0)
        if t < len(data):
            x, y = data[t]
            stash[t] = x, np.tanh(x @ w0), y
        for n, (_, h, y) in arrived.items():
            _, gradient = naive.cross_entropy(h @ w1, y)
            sent[n] = gradient @ w1.T
            w1 = step(w1, h.T @ gradient, 1)
    return w0, w1


def test_under_other_schedules_the_other_stages_sums_are_of_the_tick_before(x64):

    def layer(n):
        return nn.Dense(n, use_bias=False, param_dtype=float)

    stages = jd.partition([layer(5), nn.tanh, layer(3)], boundaries=(2,))
    optimizer = optax.chain(jd.clip_by_global_norm(MAX_NORM), optax.sgd(0.5))
    pipeline, data = jd.Pipeline(stages, schedules.fdg(2), optimizer=optimizer), batches(6)
    start = weights(pipeline, pipeline.init(jax.random.key(0), data[0][0]))
    want = by_hand(*map(np.asarray, start), data, 0.5)
    assert_close(weights(pipeline, trained(pipeline, data)), want)


def test_a_run_goes_on_from_its_state_and_compiles_once():
    pipeline, data = pipeline_of(2, jd.clip_by_global_norm, schedules.fdg, donate=False), batches(8)
    data = [(x.astype(np.float32), y) for x, y in data]
    whole = trained(pipeline, data)
    state = pipeline.init(jax.random.key(0), data[0][0])
    for batch in data[:5]:
        state, _ = pipeline.step(state, batch)
    state = jax.tree.map(jnp.copy, state)  # as if it were restored
    for batch in data[5:]:
        state, _ = pipeline.step(state, batch)
    for a, b in zip(weights(pipeline, whole), weights(pipeline, pipeline.flush(state)), strict=True):
        np.testing.assert_array_equal(a, b)
    for program in pipeline.programs:
        assert all(function._cache_size() == 1 for function in program.functions.values())
    for stage, device in zip(state.stages, pipeline.placement.devices, strict=True):
        assert stage.share.devices() == {device}


def test_diagnostics_see_an_update_that_waited_as_any_other():
    pipeline, data = pipeline_of(2, jd.clip_by_global_norm), batches(4)
    diagnostics = jd.Diagnostics(pipeline, every=1)
    state = pipeline.init(jax.random.key(0), data[0][0])
    for batch in data:
        state, _ = diagnostics.step(state, batch)
    diagnostics.flush(state)
    gradients = [record for record in diagnostics.records() if hasattr(record, "staleness")]
    assert [record.staleness for record in gradients] == [[0, 0]] * 4
    assert all(max(record.difference) < 1e-5 for record in gradients)


def test_who_reduces_over_all_parameters_is_warned():
    x = batches(1)[0][0].astype(np.float32)
    with no_warning():
        pipeline_of(1, optax.clip_by_global_norm).init(jax.random.key(0), x)
        pipeline_of(2, jd.clip_by_global_norm).init(jax.random.key(0), x)
    with pytest.warns(jd.CutWarning, match="optimizer of stage 0.*where the network is cut"):
        pipeline_of(2, optax.clip_by_global_norm).init(jax.random.key(0), x)


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", jd.CutWarning)
        yield


LAYERS = [{name: {"kernel": np.ones((4, 4)), "bias": np.ones(4)}} for name in ("000_A", "001_B")]


@pytest.mark.parametrize(
    ("optimizer", "mixes"),
    [
        (optax.apply_if_finite(optax.sgd(0.1), 5), True),
        (optax.MultiSteps(optax.sgd(0.1), 2, should_skip_update_fn=optax.skip_not_finite), True),
        (jd.lars(0.1, groups=lambda params: jax.tree.map(lambda _: "all", params)), True),
        # The pipeline cannot reach what is inside of a transform that passes no keywords on.
        (optax.flatten(jd.clip_by_global_norm(1.0)), True),
        (optax.adamw(0.1, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)), False),
        (optax.adamw(0.1, mask={"000_A": {"kernel": True, "bias": False}}), False),  # made for this stage alone
        (optax.inject_hyperparams(optax.sgd)(learning_rate=optax.cosine_decay_schedule(0.1, 5)), False),
        (optax.MultiSteps(optax.adam(0.1), 2), False),
        (jd.stagewise(jd.clars(0.1), accumulate=2)(0, 2), False),
        (optax.chain(jd.clip_by_global_norm(1.0), optax.adam(0.1)), False),
    ],
)
def test_who_looks_at_each_layer_alone(optimizer, mixes):
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    assert dependence_of(optimizer, *LAYERS).mixes == mixes


def test_an_optimizer_that_wants_more_than_a_gradient():
    pipeline = pipeline_of(2, optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()))
    with pytest.raises(ValueError, match="optimizer of stage 0 fails for gradients and parameters.*value"):
        pipeline.init(jax.random.key(0), batches(1)[0][0])


def test_two_sums_are_one_too_many():
    twice = optax.chain(jd.clip_by_global_norm(1.0), optax.adam(0.1), jd.clip_by_global_norm(1.0))
    with pytest.raises(ValueError, match="sums over all stages 2 times"):
        pipeline_of(2, twice).init(jax.random.key(0), batches(1)[0][0])


@pytest.mark.parametrize("key", [7, jax.random.key(7), "raw"], ids=["seed", "key", "raw"])
def test_no_two_stages_get_the_same_noise(key):
    """And the first, or the network in one piece, that of optax."""
    noise = optax.add_noise(0.1, 0.0, key)
    if isinstance(key, str):
        noise = optax.GradientTransformation(
            lambda params: {"rng": jax.random.PRNGKey(7)},
            lambda updates, state, params=None: (updates + jax.random.normal(state["rng"], updates.shape), state),
        )
    plain, *ours = (
        tx.update(jnp.zeros(64), tx.init(jnp.zeros(64)))[0] for tx in (noise, *map(noise_of, [noise] * 3, (0, 1, 7)))
    )
    np.testing.assert_array_equal(plain, ours[0])
    assert np.abs(np.corrcoef(ours) - np.eye(3)).max() < 0.5


def noise_of(transform, first):
    """That of a stage whose first layer is ``first``."""
    return optax.GradientTransformation(Updates(transform, first).init, transform.update)
