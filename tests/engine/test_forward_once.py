"""A user's forward runs once for each batch, on that batch and the state of then, whatever is computed again."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.engine.linearization import linearize

POLICIES = ["stash", "remat", "replay", "latest"]
X, Y = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), np.arange(4) % 3


class Watched(nn.Module):
    """Reports from within everything that a callback can be in."""

    report: object = None

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(5)(x)
        jax.debug.callback(self.report, "plain", jnp.abs(h).mean())
        jax.lax.scan(
            lambda c, row: (jax.debug.callback(self.report, "loop", jnp.abs(row).mean()), (c, row))[1], 0, h[:2]
        )
        jax.jit(lambda h: jax.debug.callback(self.report, "call", jnp.abs(h).mean()))(h)
        jax.lax.cond(h.sum() > -1e9, lambda: jax.debug.callback(self.report, "branch", jnp.abs(h).mean()), lambda: None)
        scale = self.param("scale", nn.initializers.ones, ())
        return jax.checkpoint(lambda h: jnp.tanh(h) * jax.nn.softplus(scale))(h)


@pytest.fixture(scope="module")
def watched():
    """A pipeline, and what its first layer has reported."""
    seen = []
    network = [Watched(lambda where, value: seen.append((str(where), float(value)))), nn.Dense(3)]
    return jd.Pipeline(network, schedules.fdg(2), optimizer=optax.sgd(0.1)), seen


@pytest.mark.parametrize("preset", [schedules.fdg, functools.partial(schedules.zero_bubble, chunks=1)])
@pytest.mark.parametrize("policy", POLICIES)
def test_callbacks_report_each_batch_once(policy, preset, watched):
    pipeline, seen = watched[0].with_schedule(preset(2, weights=policy)), watched[1]
    seen.clear()
    state = pipeline.init(jax.random.key(0), X)  # of no batch
    for n in range(4):
        state, _ = pipeline.step(state, (X * (n + 1), Y))
    jax.block_until_ready(pipeline.flush(state).stages)
    jax.effects_barrier()
    counts = {where: sum(place == where for place, _ in seen) for where in ("plain", "loop", "call", "branch")}
    assert counts == {"plain": 4, "loop": 8, "call": 4, "branch": 4}
    assert min(value for _, value in seen) > 0.1


def test_what_a_backward_itself_reports_is_heard():
    seen = []

    @jax.custom_vjp
    def spied(x):
        return x

    def backward(_, gradient):
        jax.debug.callback(lambda size: seen.append(float(size)), jnp.abs(gradient).sum())
        return (gradient,)

    spied.defvjp(lambda x: (x, None), backward)
    fdg = [schedules.fdg(2, weights=policy) for policy in ("stash", "replay")]
    for schedule in (*fdg, schedules.zero_bubble(2, 1)):
        pipeline = jd.Pipeline(
            jd.partition([nn.Dense(4), spied, nn.Dense(3)], boundaries=(2,)),
            schedule,
            optimizer=optax.sgd(0.1),
        )
        state = pipeline.init(jax.random.key(0), X)
        for _ in range(3):
            state, _ = pipeline.step(state, (X, Y))
        jax.block_until_ready(pipeline.flush(state).stages)
        jax.effects_barrier()
    assert len(seen) == 9 and min(seen) > 0


class Carry(nn.Module):
    """What a batch adds to its input is what the batch before left."""

    @nn.compact
    def __call__(self, x, train):
        left = self.variable("carry", "left", jnp.zeros, (5,), jnp.float64)
        h = jnp.tanh(nn.Dense(5, param_dtype=jnp.float64)(x) + left.value)
        if train and not self.is_initializing():
            left.value = jax.lax.stop_gradient(h.mean(0))
        return h


@jax.jit
def losses_and_gradients(variables, left, batch):
    def loss(params):
        h, new = Carry().apply({"params": params[0], "carry": {"left": left}}, batch[0], True, mutable=["carry"])
        logits = nn.Dense(3, param_dtype=jnp.float64).apply({"params": params[1]}, h)
        return jd.softmax_cross_entropy(logits, batch[1]), new["carry"]["left"]

    return jax.grad(loss, has_aux=True)(variables)


@pytest.mark.parametrize("policy", ["stash", "replay"])
def test_a_layer_that_carries_something_from_batch_to_batch(policy, x64):
    """GPipe: the mean of the micro-batches' gradients, each with what its own forward found."""
    rng = np.random.default_rng(3)
    batches = [(rng.normal(size=(4, 6)), rng.integers(0, 3, 4)) for _ in range(4)]
    network = [Carry(), nn.Dense(3, param_dtype=jnp.float64)]
    optimizer = jd.stagewise(optax.sgd(1.0), accumulate=2)
    pipeline = jd.Pipeline(network, schedules.gpipe(2, 2, weights=policy), optimizer=optimizer)
    state = pipeline.init(jax.random.key(0), batches[0][0])
    variables = jd.export_variables(pipeline, state)["params"]
    params, left = [variables["layers_0"], variables["layers_1"]], jnp.zeros(5)
    for first in (0, 2):
        gradients = []
        for batch in batches[first : first + 2]:
            gradient, left = losses_and_gradients(params, left, batch)
            gradients.append(gradient)
            state, _ = pipeline.step(state, batch)
        params = jax.tree.map(lambda w, a, b: w - (a + b) / 2, params, *gradients)
    got = jd.export_variables(pipeline, pipeline.flush(state))["params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), params, [got["layers_0"], got["layers_1"]]
    )


@pytest.mark.parametrize(("layer", "convolves"), [(nn.Conv(2, (3, 3)), True), (nn.Dense(3), False)])
def test_forward_and_backward_are_kept_apart_where_there_are_convolutions(layer, convolves):
    x = jnp.ones((1, 4, 4, 1))
    params = layer.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(layer.apply(params, x) ** 2), ()

    gradients = jax.jit(lambda params, x: linearize(loss, params, x).gradients_of_loss(params, x))
    assert ("optimization_barrier" in gradients.lower(params, x).as_text()) == convolves
