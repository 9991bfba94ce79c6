"""What a batch may be: any shapes that the layers and the loss take, without targets, with or without gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules

F64 = {"param_dtype": jnp.float64}
RNG = np.random.default_rng(0)


def pipeline_of(layers, schedule=schedules.backprop, loss=jd.softmax_cross_entropy, rate=0.1):
    return jd.Pipeline(layers, schedule(len(layers)), optimizer=optax.sgd(rate), loss=loss)


def by_hand(modules, variables, loss, batches, rate=0.1):
    """The loss of each batch under plain gradient descent, with the network in one piece."""

    def of_network(params, inputs, targets):
        for i, module in enumerate(modules):
            own = params.get(f"layers_{i}", {})
            inputs = module.apply({"params": own}, inputs) if isinstance(module, nn.Module) else module(inputs)
        return loss(inputs, targets)

    for inputs, targets in batches:
        value, grads = jax.value_and_grad(of_network)(variables, inputs, targets)
        variables = jax.tree.map(lambda w, g: w - rate * g, variables, grads)
        yield value


def assert_trains_like_the_network(modules, batches, loss=jd.softmax_cross_entropy):
    pipeline = pipeline_of(modules, loss=loss)
    state = pipeline.init(jax.random.key(0), batches[0][0])
    variables = jd.export_variables(pipeline, state)["params"]
    for batch, want in zip(batches, by_hand(modules, variables, loss, batches), strict=True):
        np.testing.assert_allclose(pipeline.evaluate(state, [batch]).loss, want, rtol=1e-12)
        state, metrics = pipeline.step(state, batch)
        np.testing.assert_allclose(metrics.loss, want, rtol=1e-12)


class Expert(nn.Module):
    """Activations, and beside them a scalar: how much this layer adds to the loss."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(5, **F64)(x))
        return h, jnp.mean(h**2)


class AfterExpert(nn.Module):
    @nn.compact
    def __call__(self, pair):
        return nn.Dense(3, **F64)(pair[0]), pair[1]


def with_auxiliary(outputs, targets):
    return jd.softmax_cross_entropy(outputs[0], targets) + 0.1 * outputs[1]


def test_a_scalar_beside_activations(x64):
    batches = [(RNG.normal(size=(size, 6)), RNG.integers(0, 3, size)) for size in (4, 4, 3)]
    assert_trains_like_the_network([Expert(), AfterExpert()], batches, with_auxiliary)


def test_outputs_whose_first_axis_is_not_the_batch(x64):
    modules = [nn.Dense(5, **F64), nn.Dense(3, **F64), lambda h: h.T]
    batches = [(RNG.normal(size=(size, 6)), RNG.integers(0, 3, size)) for size in (4, 2)]
    assert_trains_like_the_network(modules, batches, lambda out, targets: jd.softmax_cross_entropy(out.T, targets))


def test_inputs_of_several_first_axes(x64):
    """A graph: nodes, edges, and one target for all."""

    class Messages(nn.Module):
        @nn.compact
        def __call__(self, graph):
            nodes, edges = graph
            h = nn.Dense(4, **F64)(nodes)
            return h.at[edges[:, 1]].add(jnp.tanh(h[edges[:, 0]]))

    def sizes(nodes, edges):
        return (RNG.normal(size=(nodes, 3)), RNG.integers(0, nodes, (edges, 2))), RNG.normal(size=(1,))

    modules = [Messages(), nn.Dense(1, **F64)]
    batches = [sizes(5, 7), sizes(5, 7), sizes(4, 9)]
    assert_trains_like_the_network(modules, batches, lambda out, target: jnp.mean((out.mean(0) - target) ** 2))


@pytest.mark.parametrize("schedule", [schedules.backprop, schedules.features_replay])
def test_sequences_of_changing_length(schedule, x64):
    modules = [nn.Embed(11, 6, **F64), nn.Dense(11, **F64)]
    batches = [(RNG.integers(0, 11, (4, n)), RNG.integers(0, 11, (4, n))) for n in (5, 3, 5, 5, 3, 3)]
    if schedule is schedules.backprop:
        assert_trains_like_the_network(modules, batches)
    pipeline = pipeline_of(modules, schedule)
    state = pipeline.init(jax.random.key(0), batches[0][0])
    losses = []
    for batch in batches:
        state, metrics = pipeline.step(state, batch)
        losses += [] if metrics.loss is None else [float(metrics.loss)]
    state = pipeline.flush(state, lambda state, metrics: losses.extend(jax.tree.leaves(metrics.loss)))
    assert len(losses) == 6 and np.isfinite(losses).all()


@pytest.mark.parametrize("schedule", [schedules.backprop, schedules.ddg])
def test_no_targets(schedule, x64):
    def reconstruction(outputs, _):
        return jnp.mean((outputs[0] - outputs[1]) ** 2)

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x, jnp.tanh(nn.Dense(2, **F64)(x))

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, pair):
            return pair[0], nn.Dense(6, **F64)(pair[1])

    batches = [(RNG.normal(size=(4, 6)), None) for _ in range(3)]
    modules = [Encoder(), Decoder()]
    if schedule is schedules.backprop:
        assert_trains_like_the_network(modules, batches, reconstruction)
        return
    pipeline = pipeline_of(modules, schedule, reconstruction)
    state = pipeline.init(jax.random.key(0), batches[0][0])
    for batch in batches:
        state, _ = pipeline.step(state, batch)
    evaluation = pipeline.evaluate(pipeline.flush(state), batches)
    assert evaluation.accuracy is None and evaluation.examples == 12


@pytest.mark.parametrize(
    ("schedule", "policy"), [(schedules.ddg, "stash"), (schedules.fdg, "latest"), (schedules.fdg, "replay")]
)
def test_only_integers_across_a_cut(schedule, policy, x64):
    """Nothing goes down. A stage below with weights of its own gets gradients of 0, as in the whole network."""

    class Rounded(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return ids + jnp.round(self.param("shift", nn.initializers.ones, (), jnp.float64)).astype(ids.dtype)

    modules = [Rounded(), nn.Embed(12, 4, **F64), nn.Dense(12, **F64)]
    pipeline = jd.Pipeline(modules, schedule(3, weights=policy), optimizer=optax.sgd(0.1))
    batches = [(RNG.integers(0, 10, (4, 5)), RNG.integers(0, 10, (4, 5))) for _ in range(4)]
    state = pipeline.init(jax.random.key(0), batches[0][0])
    for batch in batches:
        state, _ = pipeline.step(state, batch)
    state = pipeline.flush(state)
    assert state.stages[0].params["000_Rounded"]["shift"] == 1.0


def test_a_shape_that_a_layer_cannot_take_is_refused_before_anything_is_computed():
    pipeline = pipeline_of([nn.Dense(4), nn.Dense(3)])
    x, y = np.ones((4, 6), np.float32), np.zeros(4, np.int32)
    state = pipeline.init(jax.random.key(0), x)
    for wrong in (x[:, :5], x[:, None], x.astype(np.int32), (x, x)):
        with pytest.raises(
            ValueError, match=r"batch 0 has inputs .* but this run was initialised with float32\[4, 6\]"
        ):
            pipeline.step(state, (wrong, y))
    pipeline.step(state, (x, y))


def aligned(shape, dtype):
    """An array where JAX on a CPU would use the memory as it is: on a boundary of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@pytest.mark.parametrize("schedule", [schedules.backprop, schedules.features_replay, schedules.fdg])
@pytest.mark.parametrize("group_size", [1, 2])
def test_arrays_may_be_filled_anew_after_a_step(schedule, group_size):
    devices = [jax.devices()[:group_size]] * 2
    pipeline = jd.Pipeline([nn.Dense(6), nn.Dense(3)], schedule(2), optimizer=optax.sgd(0.1), devices=devices)
    x, y, trained = aligned((64, 6), np.float32), aligned((64,), np.int32), []
    for again in (True, False):
        random, state = np.random.default_rng(0), pipeline.init(jax.random.key(0), x)
        for _ in range(5):
            x[:], y[:] = random.normal(size=x.shape), random.integers(0, 3, size=y.shape)
            state, _ = pipeline.step(state, (x, y) if again else (x.copy(), y.copy()))
        state = pipeline.flush(state)
        trained.append(jd.export_variables(pipeline, state))
    jax.tree.map(np.testing.assert_array_equal, *trained)
    found = pipeline.predict(state, x)
    x[:] = 9
    assert not np.array_equal(found, pipeline.predict(state, x))
