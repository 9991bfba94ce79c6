"""The pipeline: asynchronous, bounded, placed, deterministic, and exact through flushes and resumes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.layer import Layer
from tests.oracles import naive, problems
from tests.oracles.pipelines import assert_equal, numbers
from tests.oracles.sharing import sharing

PRESETS = {
    "backprop": schedules.backprop(3),
    "gpipe": schedules.gpipe(3, 4),
    "ddg": schedules.ddg(3),
    "features_replay": schedules.features_replay(3),
    "fdg": schedules.fdg(3),
    "adl": schedules.adl(3),
    "dsp": schedules.dsp((1, 1, 0), (4, 2, 0)),
    "pipedream": schedules.pipedream(3),
    "latest": schedules.fdg(3, weights="latest"),
    "remat": schedules.fdg(3, weights="remat"),
}


class ConvNormDropout(nn.Module):
    """A layer with everything a layer can have: parameters, batch statistics, randomness."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Conv(4, (3, 3))(x))
        return nn.Dropout(0.3, deterministic=not train)(nn.relu(x))


def network():
    return [ConvNormDropout(), ConvNormDropout(), jd.models.Head(3)]


def batches(count, size=6, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(size, 5, 5, 2)).astype(np.float32), rng.integers(0, 3, size)) for _ in range(count)]


@sharing
def usual(schedule, accumulate=1, **arguments):
    return make(schedule, network(), accumulate, **arguments)


of_one_batch_size = sharing(usual.__wrapped__)


def make(schedule, layers, accumulate=1, beta=1.0, optimizer=None, **arguments):
    stages = jd.partition(layers, schedule.num_stages)
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    optimizer = jd.stagewise(optimizer, beta=beta, accumulate=accumulate)
    return jd.Pipeline(stages, schedule, optimizer=optimizer, **arguments)


def train(pipeline, data, state=None, key=0):
    state = pipeline.init(jax.random.key(key), data[0][0]) if state is None else state
    losses = []
    for batch in data:
        state, metrics = pipeline.step(state, batch)
        losses.append(metrics)
    return state, [float(m.loss) for m in losses if m.loss is not None]


def jitted_functions(pipeline):
    for program in pipeline.programs:
        yield from program.functions.items()


@pytest.mark.core
@pytest.mark.parametrize(("name", "accumulate"), [("fdg", 1), *((name, 4) for name in PRESETS)])
def test_each_function_compiles_once_and_everything_stays_on_its_device(name, accumulate):
    pipeline = of_one_batch_size(PRESETS[name], accumulate)
    state, _ = train(pipeline, batches(25))
    for k, device in enumerate(pipeline.placement.devices):
        for leaf in jax.tree.leaves((state.stages[k], state.in_flight[k])):
            assert leaf.devices() == {device} and leaf.committed
    state = pipeline.flush(state)
    state, _ = train(pipeline, batches(25, seed=1), state)
    pipeline.flush(state)
    counts = dict(((name, id(f)), f._cache_size()) for name, f in jitted_functions(pipeline))
    assert max(counts.values()) == 1, counts


def test_step_waits_for_nothing_but_the_run_ahead_bound():
    def apply(params, model_state, x, *, key, train):
        delay = jax.lax.fori_loop(0, 60_000, lambda i, a: jnp.tanh(a @ a), jnp.full((24, 24), 0.01))[0, 0]
        return x * params + delay, model_state

    slow = Layer(lambda key, x: (jnp.ones(()), {}), apply, "slow")
    pipeline = make(schedules.backprop(2), [slow, jd.models.Head(3)], run_ahead=3)
    data = batches(5)
    state = pipeline.init(jax.random.key(0), data[0][0])
    state, _ = pipeline.step(state, data[0])
    jax.block_until_ready(state)  # compiled
    losses = []
    for batch in data[1:]:
        state, metrics = pipeline.step(state, batch)
        losses.append(metrics.loss)
        if len(losses) == 2:
            assert not losses[0].is_ready()  # two ticks were dispatched, and nothing was waited for
    # Three ticks beyond the last finished one is as far as the host goes; no further, and no less far.
    assert losses[0].is_ready() and not losses[3].is_ready()


@pytest.mark.parametrize("name", PRESETS)
def test_two_runs_are_identical(name):
    data = batches(9)
    first, second = (of_one_batch_size(PRESETS[name], 4) for _ in range(2))
    assert_equal(first.flush(train(first, data)[0]), second.flush(train(second, data)[0]))


@pytest.mark.parametrize("name", ["fdg", "ddg", "dsp", "pipedream"])
def test_training_after_a_flush_starts_from_the_flushed_weights(name, x64):
    schedule, arguments = problems.CASES[name]
    task = problems.problem(3, accumulate=3, learning_rate=0.3)
    first, rest = task.batches[:6], task.batches[6:]
    method = naive.METHODS[name]
    half = method(dataclasses.replace(task, batches=first), **arguments(3, 3)).parameters[-1]
    expected = method(dataclasses.replace(task, layers=tuple(half), batches=rest), **arguments(3, 3)).parameters[-1]

    pipeline = problems.pipeline_for(task, schedule(3, 3))
    state = problems.start(pipeline, task)
    for batch in first:
        state, _ = pipeline.step(state, batch)
    state = pipeline.flush(pipeline.flush(state))  # a second flush finds nothing to do
    for batch in rest:
        state, _ = pipeline.step(state, batch)
    state = pipeline.flush(state)
    for layer, wanted in zip(problems.weights_of(state), expected, strict=True):
        np.testing.assert_allclose(layer[0], wanted[0], rtol=0, atol=1e-10)


def counting_layer():
    """Adds a parameter; its model state counts training forwards."""

    def apply(params, model_state, x, *, key, train):
        return x + params, {"forwards": model_state["forwards"] + train}

    return Layer(lambda key, x: (jnp.zeros(()), {"forwards": jnp.zeros((), jnp.int32)}), apply, "counting")


@pytest.mark.parametrize("name", PRESETS)
def test_each_batch_is_counted_once_in_the_batch_statistics(name):
    pipeline = make(PRESETS[name], [counting_layer(), counting_layer(), jd.models.Head(3)])
    state = pipeline.flush(train(pipeline, batches(8))[0])
    assert [int(s.model_state[f"00{k}_counting"]["forwards"]) for k, s in enumerate(state.stages[:2])] == [8, 8]


def test_same_seed_gives_the_same_network_and_masks_for_every_cut():
    data, losses, params = batches(4), [], []
    for num_stages in (1, 2, 3):
        pipeline = make(schedules.backprop(num_stages), network(), optimizer=optax.sgd(0.0))
        state, values = train(pipeline, data)
        losses.append(values)
        params.append({name: value for stage in state.stages for name, value in stage.params.items()})
    assert len(set(losses[0])) == 4
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-6)
    assert_equal(params[0], jax.device_get(params[1]))
    assert_equal(params[0], jax.device_get(params[2]))


def test_a_replay_draws_the_mask_of_its_forward():
    states = []
    for weights in ("stash", "replay"):
        pipeline = usual(schedules.gpipe(3, 4, weights=weights), 4)  # no staleness: both are exact
        states.append(pipeline.flush(train(pipeline, batches(8))[0]))
    stash, replay = (jax.tree.leaves(state.stages[0].params) for state in states)
    for a, b in zip(stash, replay, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_remat_is_a_stash_that_stores_inputs():
    states = []
    for weights in ("stash", "remat"):
        # The second layer's forward depends on its model state even in training: on that of its own forward.
        layers = [ConvNormDropout(), jd.Layer(lambda key, x: ({}, {"n": jnp.zeros(())}), _scale_by_count), *network()]
        pipeline = make(schedules.fdg(3, weights=weights), layers)
        states.append(train(pipeline, batches(8))[0])
    for a, b in zip(*(jax.tree.leaves(state.stages) for state in states), strict=True):
        np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-4, atol=1e-6)
    stash, remat = (next(iter(state.in_flight[1].residuals.values())) for state in states)
    assert jax.tree.leaves(stash.values) and remat.values is None
    assert jax.tree.structure(remat.params) == jax.tree.structure(stash.params)


def _scale_by_count(params, model_state, x, *, key, train):
    count = model_state["n"] + train
    return x * (1 + 0.1 * count), {"n": count}


def test_stash_refers_to_weights_and_latest_keeps_none():
    stash = usual(schedules.fdg(3), 4)
    state, _ = train(stash, batches(20))
    residuals = state.in_flight[0].residuals
    assert len(residuals) == 4  # FDG's lag at stage 0 of 3
    versions = {id(residual.params.arrays[0]) for residual in residuals.values()}
    assert len(versions) == 2  # batches 16..19 saw one update among them: two versions, whatever the lag
    latest = usual(schedules.fdg(3, weights="latest"))
    state, _ = train(latest, batches(8))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.stages[0].params) if leaf.ndim > 1}
    values = jax.tree.leaves([(r.values.tree, r.inputs) for r in state.in_flight[0].residuals.values()])
    assert all(r.params is None for r in state.in_flight[0].residuals.values())
    assert values and not shapes & {leaf.shape for leaf in values}


def test_metrics_belong_to_the_batch_that_reached_the_loss():
    pipeline = usual(schedules.fdg(3))
    state, data = None, batches(5)
    state = pipeline.init(jax.random.key(0), data[0][0])
    seen = []
    for batch in data:
        state, metrics = pipeline.step(state, batch)
        seen.append(metrics.batch)
        assert (metrics.loss is None) == (metrics.batch is None) == (metrics.accuracy is None)
    pipeline.flush(state, on_tick=lambda state, metrics: seen.append(metrics.batch))
    assert seen == [None, None, 0, 1, 2, 3, 4, None, None]


def test_predict_and_evaluate_leave_the_run_alone():
    data, x = batches(10), np.ones((4, 5, 5, 2), np.float32)
    plain, disturbed = usual(PRESETS["fdg"]), usual(PRESETS["fdg"])
    expected, _ = train(plain, data)
    state, _ = train(disturbed, data[:5])
    logits = disturbed.predict(state, x)
    evaluation = disturbed.evaluate(state, [data[0], (data[1][0][:2], data[1][1][:2])])
    assert_equal(logits, disturbed.predict(state, x))
    assert_equal(expected, train(disturbed, data[5:], state)[0])
    everything = np.concatenate([data[0][0], data[1][0][:2]]), np.concatenate([data[0][1], data[1][1][:2]])
    # Means over examples, not over batches.
    state = plain.flush(expected)
    split = plain.evaluate(state, [data[0], (data[1][0][:2], data[1][1][:2])])
    whole = plain.evaluate(state, [everything])
    assert evaluation.examples == split.examples == whole.examples == 8
    np.testing.assert_allclose(split.loss, whole.loss, rtol=1e-5)
    np.testing.assert_allclose(split.accuracy, whole.accuracy, rtol=1e-6)


def test_a_ragged_last_batch_and_several_epochs():
    pipeline = make(PRESETS["fdg"], network())
    data = [*batches(3), *batches(1, size=4)] * 3
    state, losses = train(pipeline, data)
    state = pipeline.flush(state)
    assert len(losses) == len(data) - 2 and np.isfinite(losses).all()
    assert max(f._cache_size() for _, f in jitted_functions(pipeline)) == 2  # one for each size


def test_without_donation_a_state_can_be_used_again():
    pipeline, data = usual(PRESETS["dsp"], donate=False), batches(6)
    state, _ = train(pipeline, data[:3])
    assert_equal(train(pipeline, data[3:], state)[0], train(pipeline, data[3:], state)[0])


def test_a_users_own_loss_and_optimizers_for_each_stage():
    def loss(outputs, targets):
        return jnp.mean((outputs[:, 0] - targets) ** 2)

    def frozen(stage, num_stages):
        return optax.sgd(0.05) if stage == 1 else optax.set_to_zero()

    pipeline = jd.Pipeline([nn.Dense(4), nn.Dense(1)], schedules.ddg(2), optimizer=frozen, loss=loss)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    state = pipeline.init(jax.random.key(0), x)
    before = jax.device_get([stage.params for stage in state.stages])
    for _ in range(20):
        state, metrics = pipeline.step(state, (x, x.sum(axis=1)))
    assert metrics.accuracy is None
    assert_equal(before[0], jax.device_get(state.stages[0].params))
    assert pipeline.evaluate(state, [(x, x.sum(axis=1))]).loss < 0.9 * loss(
        (x @ before[0]["000_Dense"]["kernel"]) @ before[1]["001_Dense"]["kernel"], x.sum(axis=1)
    )


def test_activations_may_be_trees_with_integers(x64):
    """A stage may pass on token ids beside its features; they get no gradient."""

    class Embed(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return {"features": nn.Embed(7, 4, param_dtype=jnp.float64)(tokens), "tokens": tokens}

    class Mix(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            mask = (inputs["tokens"] > 0)[..., None]
            features = nn.Dense(4, param_dtype=jnp.float64)(inputs["features"])
            return {"features": features * mask, "tokens": inputs["tokens"]}

    class Pool(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(3, param_dtype=jnp.float64)(inputs["features"].mean(axis=1))

    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 7, (5, 6)), rng.integers(0, 3, 5)) for _ in range(6)]
    results = []
    for schedule in (schedules.backprop(1), schedules.gpipe(3, 2, weights="stash"), schedules.gpipe(3, 2)):
        pipeline = make(schedule, [Embed(), Mix(), Pool()], accumulate=2)
        state = pipeline.flush(train(pipeline, data)[0])
        results.append({k: v for stage in state.stages for k, v in stage.params.items()})
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_follow_the_user(dtype, x64):
    layers = jd.models.mlp(3, hidden=(4, 4), param_dtype=dtype)
    pipeline = make(PRESETS["fdg"], layers)
    x, y = jnp.ones((2, 5), dtype), jnp.zeros(2, jnp.int32)
    state = pipeline.init(jax.random.key(0), x)
    for _ in range(6):
        state, metrics = pipeline.step(state, (x, y))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)}
    assert {d for d in dtypes if jnp.issubdtype(d, jnp.inexact)} == {jnp.dtype(dtype)} and metrics.loss.dtype == dtype
