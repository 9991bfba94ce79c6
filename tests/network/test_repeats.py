"""One module object in two places is the same weights in both, as in Flax; what two stages would share is refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.stack import LayerStack, stack_layers

X, Y = np.random.default_rng(0).normal(size=(4, 4)), np.arange(4) % 3


class Counted(nn.Module):
    """With statistics, to see that they are of both places, one after the other."""

    @nn.compact
    def __call__(self, x, train):
        calls = self.variable("calls", "count", jnp.zeros, (), jnp.float64)
        if train and not self.is_initializing():
            calls.value = calls.value + 1
        return jnp.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))


def pipeline_of(layers, boundaries, schedule=schedules.backprop):
    stages = jd.partition(layers, boundaries=boundaries)
    return jd.Pipeline(stages, schedule(len(stages)), optimizer=optax.sgd(0.5))


def head():
    return nn.Dense(3, param_dtype=jnp.float64)


def test_within_a_stage_it_trains_like_flax(x64):
    twice = Counted()
    pipeline = pipeline_of([twice, jnp.sin, twice, head()], (3,))
    state = pipeline.init(jax.random.key(0), X)
    assert list(state.stages[0].params) == ["000_Counted"]
    params = jd.export_variables(pipeline, state)["params"]

    def loss(params):
        variables = {"params": params["layers_0"], "calls": {"count": 0.0}}
        h = Counted().apply(variables, jnp.sin(Counted().apply(variables, X, False)), False)
        return jd.softmax_cross_entropy(head().apply({"params": params["layers_3"]}, h), Y)

    for _ in range(2):
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, jax.grad(loss)(params))
        state, _ = pipeline.step(state, (X, Y))
    state = pipeline.flush(state)
    got = jd.export_variables(pipeline, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), got["params"], params)
    assert got["calls"]["layers_0"]["count"] == 4
    again = jd.import_variables(pipeline, pipeline.init(jax.random.key(1), X), got)
    np.testing.assert_array_equal(pipeline.predict(again, X), pipeline.predict(state, X))


def test_an_nnx_module_too():
    twice = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    pipeline = pipeline_of([twice, jax.nn.tanh, twice, nn.Dense(3)], (3,))
    state = pipeline.init(jax.random.key(0), X)
    kernel = np.asarray(twice.kernel[...])
    assert list(state.stages[0].params) == ["000_Linear"]
    want = np.tanh(X @ kernel) @ kernel
    dense = state.stages[1].params["003_Dense"]
    np.testing.assert_allclose(pipeline.predict(state, X), want @ dense["kernel"], rtol=1e-4, atol=1e-5)


def test_what_is_listed_twice_is_no_stack():
    """Else each of its layers would have weights of its own."""
    twice = nn.Dense(4)
    layers, _ = stack_layers([jd.as_layer(twice)] * 3 + [jd.as_layer(nn.Dense(4)) for _ in range(3)], X, shortest=2)
    assert [isinstance(layer, LayerStack) for layer in layers] == [False] * 3 + [True]


def test_across_stages_it_is_refused():
    twice = nn.Dense(4)
    with pytest.raises(
        ValueError, match="layers 0 and 2 are the same Dense object.*stages 0 and 1.*both are in one stage"
    ):
        pipeline_of([twice, nn.relu, twice, nn.Dense(3)], (2,)).init(jax.random.key(0), X)


def test_modules_without_weights_may_be_anywhere():
    drop = nn.Dropout(0.5)
    pipeline_of([nn.Dense(4), drop, nn.relu, nn.Dense(4), nn.relu, drop], (3,)).init(jax.random.key(0), X)


def test_equal_modules_are_not_the_same():
    state = pipeline_of([nn.Dense(4), nn.Dense(4), nn.Dense(3)], (2,)).init(jax.random.key(0), X)
    assert len(state.stages[0].params) == 2


class Wrapped(nn.Module):
    inner: nn.Module
    others: tuple = ()

    def __call__(self, x):
        for module in (self.inner, *self.others):
            x = module(x)
        return x


class Chosen(nn.Module):
    among: dict

    def __call__(self, x):
        return self.among["a"](x)


class WrappedNnx(nnx.Module):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return self.inner(x) + 1


def shared_pair(kind):
    if kind == "nnx":
        inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        return WrappedNnx(inner), WrappedNnx(inner)
    if kind == "nnx alone":
        inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        return inner, WrappedNnx(inner)
    inner = nn.Dense(4)
    return {
        "linen": (Wrapped(inner), Wrapped(inner)),
        "linen alone": (inner, Wrapped(inner)),
        "linen alone, after": (Wrapped(inner), inner),
        "linen, in a tuple": (Wrapped(nn.Dense(4), (inner,)), Wrapped(inner)),
        "linen, in a dict": (Chosen({"a": inner}), Chosen({"a": inner})),
        "linen, deeper": (Wrapped(Wrapped(inner)), Wrapped(Wrapped(inner))),
    }[kind]


SHARED = [
    "linen",
    "linen alone",
    "linen alone, after",
    "linen, in a tuple",
    "linen, in a dict",
    "linen, deeper",
    "nnx",
    "nnx alone",
]


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("boundary", [1, 2])
def test_a_part_that_two_modules_share_is_refused(kind, boundary):
    with pytest.raises(ValueError, match="layers 0 and 1 have the same .*put both into one module"):
        pipeline_of([*shared_pair(kind), nn.Dense(3)], (boundary,)).init(jax.random.key(0), X)


def test_a_part_without_weights_is_not():
    drop = nn.Dropout(0.5, deterministic=False)
    pipeline_of([Wrapped(drop, (nn.Dense(4),)), Wrapped(drop, (nn.Dense(3),))], (1,)).init(jax.random.key(0), X)


def test_what_has_statistics_alone_is_refused_in_two_stages_too():
    norm = nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False)
    layers = [nn.Dense(4), norm, nn.Dense(4), norm, nn.Dense(3)]
    pipeline_of(layers, (4,)).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="layers 1 and 3 are the same BatchNorm object"):
        pipeline_of(layers, (2,)).init(jax.random.key(0), X)


linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
USES = {
    "a global name": lambda x: linear(x),
    "a closure": (lambda module: lambda x: module(x))(linear),
    "a method": WrappedNnx(linear).__call__,
    "a partial": functools.partial(linear),
    "jit": nnx.jit(linear),
    "jit of a function": jax.jit(lambda x: linear(x)),
}


@pytest.mark.parametrize("use", USES)
def test_a_function_that_uses_an_nnx_module_is_refused(use):
    """Its weights would be constants."""
    with pytest.raises(ValueError, match="an nnx module, whose parameters would not be trained; list the module"):
        jd.partition([USES[use], nn.Dense(3)], 2)


def test_a_function_may_have_names_and_modules_without_weights():
    drop = nnx.Dropout(0.5, deterministic=True)
    assert jd.as_layer(lambda x: drop(x.linear)).name == "<lambda>"  # an attribute, not the global
