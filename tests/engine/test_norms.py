"""A pipeline measures gradient norms stage by stage as the whole network has them, and its updates use them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.stack import stack_layers
from jaxdecouple.network.stage import Stage
from tests.oracles.layerwise import assert_close


class Block(nn.Module):
    """Batch statistics and dropout, which must not be used across examples, and one of them not at all."""

    dtype: type = jnp.float64
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, train):
        y = nn.Dense(4, dtype=self.dtype, param_dtype=self.dtype)(x)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, param_dtype=self.dtype)(y)
        return x + nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(y))


def network(dtype=jnp.float64, dropout=0.25):
    dtypes = {"dtype": dtype, "param_dtype": dtype}
    return [nn.Dense(4, **dtypes), *(Block(dtype, dropout) for _ in range(2)), nn.Dense(3, **dtypes)]


def batches(count, size=6, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(size, 5)).astype(dtype), rng.integers(0, 3, size)) for _ in range(count)]


BOUNDARIES = {1: (), 2: (2,), 3: (1, 3)}


def pipeline_of(num_stages, optimizer, schedule=schedules.backprop, *, shortest=None, dtype=jnp.float64, **layers):
    stages = jd.partition(network(dtype, **layers), boundaries=BOUNDARIES[num_stages])
    if shortest:
        x, cut = batches(1, dtype=dtype)[0][0], []
        for stage in stages:
            layers, x = stack_layers(stage.layers, x, first=stage.first, shortest=shortest)
            cut.append(Stage(layers, stage.first))
        stages = cut
    return jd.Pipeline(stages, schedule(num_stages), optimizer=optimizer, donate=False)


def whole_network(state, pipeline):
    """Loss of all stages in one, not in training, and its variables: (params, model state) by stage."""
    params = [stage.params for stage in state.stages]
    model_state = [stage.model_state for stage in state.stages]
    params, model_state = jax.device_put((params, model_state), jax.devices()[0])

    def loss(params, batch, model_state):
        x, y = batch
        for stage, *variables in zip(pipeline.stages, params, model_state, strict=True):
            x, _ = stage.apply(*variables, x, key=jax.random.key(0), batch=0, train=False)
        return jd.softmax_cross_entropy(x, y)

    return loss, params, model_state


@pytest.mark.parametrize(("num_stages", "shortest"), [(1, 2), (3, None), (3, 2)])
def test_equals_those_of_the_whole_network(num_stages, shortest, x64):
    """After some training, with work in flight, which stays as it is."""
    pipeline = pipeline_of(num_stages, optax.sgd(0.3), schedules.fdg, shortest=shortest)
    *data, batch = batches(5)
    state = pipeline.init(jax.random.key(0), batch[0])
    for given in data:
        state, _ = pipeline.step(state, given)
    measured = pipeline.measure_gradient_norms(state, batch, sample_size=5, chunk_size=2, statistics="running")
    loss, params, model_state = whole_network(state, pipeline)
    of_examples = jax.jit(functools.partial(jd.per_example_gradient_norms, loss, sample_size=5))
    want = of_examples(params, batch, model_state)
    assert_close([stage.gradient_norms for stage in measured.stages], want)
    cleared = measured.replace(stages=tuple(stage.replace(gradient_norms=None) for stage in measured.stages))
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (cleared, state)), strict=True))
    for k, stage in enumerate(measured.stages):
        devices = {leaf.device for leaf in jax.tree.leaves(stage.gradient_norms)}
        assert devices == {pipeline.placement.devices[k]}


@pytest.mark.parametrize(("num_stages", "shortest"), [(1, 2), (3, None)])
def test_equation_4_8_holds_at_the_batchs_own_statistics(num_stages, shortest, x64):
    """The mean of the examples' gradients is the batch's gradient, so that its norm is at most their mean norm."""
    pipeline = pipeline_of(num_stages, optax.sgd(0.3), schedules.fdg, shortest=shortest, dropout=0.0)
    *data, (x, y) = batches(4)
    state = pipeline.init(jax.random.key(0), x)
    for given in data:
        state, _ = pipeline.step(state, given)
    x = 50 * x  # nothing like what the running averages have seen
    found = {
        how: [stage.gradient_norms for stage in pipeline.measure_gradient_norms(state, (x, y), statistics=how).stages]
        for how in ("batch", "running")
    }
    # By hand: the two batch normalisations are in layers 1 and 2; their statistics follow from one another.
    loss, params, running = whole_network(state, pipeline)
    own = hand_made_statistics(pipeline, params, running, x)
    of_examples = jax.jit(functools.partial(jd.per_example_gradient_norms, loss, sample_size=None))
    assert_close(found["batch"], of_examples(params, (x, y), own))
    gradient = jax.jit(jax.grad(loss))(params, (x, y), own)

    def factors(norms):
        norms = jax.device_put(norms, jax.devices()[0])
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(norms), strict=True)
        return [float(jnp.sqrt(jnp.square(g).sum()) / jnp.sqrt(jnp.square(n.mean(0)).sum())) for g, n in pairs]

    assert max(factors(found["batch"])) <= 1 + 1e-12 < max(factors(found["running"]))


def hand_made_statistics(pipeline, params, running, x):
    """Statistics of every `Block` for a batch, in float64 NumPy."""
    found = []
    for stage, own, states in zip(pipeline.stages, params, running, strict=True):
        by_layer, states = stage.by_layer(own), stage.by_layer(states)
        for name in sorted(by_layer):
            layer = jax.tree.map(np.asarray, by_layer[name])
            dense = layer.get("Dense_0", layer)
            z = x @ dense["kernel"] + dense["bias"]
            if norm := layer.get("BatchNorm_0"):
                mean, var = z.mean(0), z.var(0)
                states[name] = {"batch_stats": {"BatchNorm_0": {"mean": mean, "var": var}}}
                z = x + np.tanh(norm["scale"] * (z - mean) / np.sqrt(var + 1e-5) + norm["bias"])
            x = z
        found.append(stage.from_layers(states))
    return found


def test_between_stages_may_travel_trees_with_integers(x64):
    """Integer activations, such as token numbers, have no gradient."""
    into = jd.from_function(lambda x: {"x": x[0], "ids": x[1]}, "into")
    dense = nn.Dense(3, param_dtype=jnp.float64)
    embed = nn.Embed(7, 3, param_dtype=jnp.float64)

    class Middle(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {
                "y": jnp.tanh(dense.copy(name="dense")(x["x"])) + embed.copy(name="embed")(x["ids"]),
                "ids": x["ids"],
            }

    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return dense.copy(name="dense")(x["y"]) * embed.copy(name="embed")(x["ids"])

    rng = np.random.default_rng(0)
    batch = (rng.normal(size=(5, 4)), rng.integers(0, 7, 5)), rng.integers(0, 3, 5)
    layers = [into, Middle(), Last()]
    got = {}
    for boundaries in ((), (1, 2)):
        K = len(boundaries) + 1
        pipeline = jd.Pipeline(
            jd.partition(layers, boundaries=boundaries), schedules.backprop(K), optimizer=optax.sgd(0.1)
        )
        state = pipeline.measure_gradient_norms(pipeline.init(jax.random.key(0), batch[0]), batch, chunk_size=2)
        norms = {}
        for stage in jax.device_get(state.stages):
            norms.update(stage.gradient_norms)
        got[K] = norms
    assert len(jax.tree.leaves(got[1])) == 6
    assert_close(got[3], got[1])


@pytest.mark.parametrize(("num_stages", "accumulate", "shortest"), [(1, 1, 2), (2, 3, None), (3, 3, 2)])
def test_clars_in_stages_is_clars(num_stages, accumulate, shortest, x64):
    """Back-propagation through K stages against one plain loop; layers that are scanned keep a rate of their own."""
    settings = {"weight_decay": 0.01, "mask": jd.weight_mask}
    pipeline = pipeline_of(
        num_stages, jd.stagewise(jd.clars(0.5, 0.05, **settings), accumulate=accumulate), shortest=shortest
    )
    data = batches(6)
    state = pipeline.init(jax.random.key(0), data[0][0])
    reference = pipeline_of(1, optax.identity())
    plain = reference.init(jax.random.key(0), data[0][0])
    (stage,), (own,) = reference.stages, plain.stages
    params, model_state, tx = own.params, own.model_state, jd.clars(0.5, 0.05, **settings)
    opt_state, total = tx.init(params), []

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_of(params, model_state, batch, n):
        logits, new = stage.apply(params, model_state, batch[0], key=own.key, batch=n, train=True)
        return jd.softmax_cross_entropy(logits, batch[1]), new

    @jax.jit
    def norms_of(params, batch, model_state):
        def loss(params, batch, model_state):
            logits, _ = stage.apply(params, model_state, batch[0], key=own.key, batch=0, train=False)
            return jd.softmax_cross_entropy(logits, batch[1])

        return jd.per_example_gradient_norms(loss, params, batch, model_state, sample_size=None)

    @jax.jit
    def updated(total, opt_state, params, norms):
        mean = jax.tree.map(lambda *g: sum(g) / accumulate, *total)
        updates, opt_state = tx.update(mean, opt_state, params, gradient_norms=norms)
        return optax.apply_updates(params, updates), opt_state

    for n, batch in enumerate(data):
        if (n + 1) % accumulate == 0:
            state = pipeline.measure_gradient_norms(state, batch, statistics="running")
            norms = norms_of(params, batch, model_state)
        state, _ = pipeline.step(state, batch)
        grads, model_state = gradient_of(params, model_state, batch, n)
        total.append(grads)
        if (n + 1) % accumulate == 0:
            (params, opt_state), total = updated(total, opt_state, params, norms), []
    got = {}
    for part, own in zip(pipeline.stages, jax.device_get(state.stages), strict=True):
        got.update(part.by_layer(own.params))
    assert_close(got, params, atol=1e-10)


def remembers_norms():
    """Keeps the norms that its last update was given."""

    def init(params):
        return jax.tree.map(lambda p: jnp.zeros(6, p.dtype), params)

    def update(updates, state, params=None, *, gradient_norms, **_):
        return jax.tree.map(lambda u: -0.1 * u, updates), gradient_norms

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def remembering():
    return pipeline_of(3, remembers_norms())


@pytest.mark.parametrize("schedule", [schedules.ddg, schedules.fdg, schedules.features_replay])
def test_every_update_is_given_what_was_measured_last(schedule, x64):
    pipeline = remembering().with_schedule(schedule(3))
    data = batches(9)
    state = pipeline.init(jax.random.key(0), data[0][0])
    for n, batch in enumerate(data):
        if n % 2 == 0:
            state = pipeline.measure_gradient_norms(state, batch)
        before = state
        state, _ = pipeline.step(state, batch)
        if n >= schedule(3).drain:  # every stage updates in every tick
            for old, new in zip(before.stages, state.stages, strict=True):
                assert_close(new.opt_state, old.gradient_norms, atol=0)
    flushed = pipeline.flush(state)
    assert_close(flushed.stages[0].opt_state, state.stages[0].gradient_norms, atol=0)


@pytest.mark.core
def test_nothing_is_compiled_twice():
    pipeline = pipeline_of(2, jd.clars(0.1), schedules.fdg, dtype=jnp.float32)
    data = batches(12, dtype=np.float32)
    state = pipeline.init(jax.random.key(0), data[0][0])
    for n, batch in enumerate(data):
        state = pipeline.measure_gradient_norms(state, batch)
        state, _ = pipeline.step(state, batch)
        if n == 5:
            sizes = [f._cache_size() for p in pipeline.programs for f in p.functions.values()]
    assert sizes == [f._cache_size() for p in pipeline.programs for f in p.functions.values()]
    assert sum(sizes) > 4


@pytest.mark.parametrize("optimizer", [jd.lars(2.0, 0.01, weight_decay=1e-4), jd.clars(2.0)], ids=["lars", "clars"])
def test_trains_in_bfloat16(optimizer):
    """With steps that bfloat16 can tell from none: a hundredth of the weights, not a ten-thousandth."""
    pipeline = pipeline_of(2, jd.stagewise(optimizer, accumulate=2), schedules.adl, dtype=jnp.bfloat16)
    data = [(x, np.argmax(x[:, :3], axis=1)) for x, _ in batches(8, size=32, dtype=jnp.bfloat16)]
    state = pipeline.init(jax.random.key(0), data[0][0])
    start = pipeline.evaluate(state, data).loss
    for batch in data * 5:
        state = pipeline.measure_gradient_norms(state, batch)
        state, _ = pipeline.step(state, batch)
    state = pipeline.flush(state)
    assert {leaf.dtype for stage in state.stages for leaf in jax.tree.leaves(stage.params)} == {jnp.dtype(jnp.bfloat16)}
    assert pipeline.evaluate(state, data).loss < 0.9 * start


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("build", [jd.lars, jd.clars])
def test_a_batch_accumulated_32_times_is_one_batch(build, dtype, tolerance, x64):
    """As the thesis trains ImageNet: 32 chunks of 512 (section 4.4.4); half precision is summed in single."""
    layers = jd.models.mlp(3, hidden=(8,), dtype=dtype, param_dtype=dtype)
    (x, y), *_ = batches(1, size=32 * 16, dtype=dtype)
    chunks = [(x[i::32], y[i::32]) for i in range(32)]
    ends = []
    for M in (32, 1):
        optimizer = jd.stagewise(build(20.0, 0.02), accumulate=M)
        pipeline = jd.Pipeline(jd.partition(layers, boundaries=(1,)), schedules.backprop(2), optimizer=optimizer)
        state = pipeline.init(jax.random.key(0), x[:16])
        start = jax.device_get([stage.params for stage in state.stages])
        *first, last = chunks if M == 32 else [(x, y)]
        for batch in first:
            state, _ = pipeline.step(state, batch)
        state = pipeline.measure_gradient_norms(state, (x, y), sample_size=64)
        state, _ = pipeline.step(state, last)
        ends.append(jax.tree.map(lambda p: np.asarray(p, np.float64), [stage.params for stage in state.stages]))
    moved = jax.tree.map(lambda p, q: np.abs(p - np.asarray(q, np.float64)).max(), ends[0], start)
    assert min(jax.tree.leaves(moved)) > 2 * tolerance
    assert_close(ends[0], ends[1], atol=tolerance)


def test_clars_without_norms_says_how_to_measure_them():
    pipeline = pipeline_of(2, jd.clars(0.1), dtype=jnp.float32)
    batch = batches(1, dtype=np.float32)[0]
    state = pipeline.init(jax.random.key(0), batch[0])
    with pytest.raises(ValueError, match=r"state = pipeline.measure_gradient_norms\(state, batch\) before the step"):
        pipeline.step(state, batch)
    with pytest.raises(ValueError, match="sample_size is 7, but the batch has 6 examples; write sample_size=6 or less"):
        pipeline.measure_gradient_norms(state, batch, sample_size=7)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        pipeline.measure_gradient_norms(state, batch, chunk_size=0)
    with pytest.raises(ValueError, match="statistics is 'own'; write one of batch, running"):
        pipeline.measure_gradient_norms(state, batch, statistics="own")
    with pytest.raises(ValueError, match="has inputs"):
        pipeline.measure_gradient_norms(state, (batch[0][:, :3], batch[1]))
