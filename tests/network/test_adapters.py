"""A layer made from a Flax module or a function does what the module does, in training and in evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def noisy(x, train):
    """Batch normalisation, whose statistics training changes, and dropout."""
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x))


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return noisy(x, train)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        return noisy(x, training)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training):
        return noisy(x, is_training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return noisy(x, not deterministic)


class UseRunningAverage(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        return noisy(x, not use_running_average)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.Linear(4, 16, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.layers[1](self.layers[0](x)))


NOISY = {
    "train": Train(),
    "training": Training(),
    "is_training": IsTraining(),
    "deterministic": Deterministic(),
    "use_running_average": UseRunningAverage(),
    "nnx": Nnx(nnx.Rngs(3)),
    "nnx factory": jd.from_nnx(Nnx),
}


def start(*layers, x=X):
    """A stage of ``layers``, and its parameters and model state."""
    stage = Stage(tuple(map(jd.as_layer, layers)))
    return stage, *stage.init(KEY, x)


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def mean_and_variance(state):
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return leaves["mean"], leaves["var"]


@pytest.mark.parametrize("name", NOISY)
def test_training_drops_out_and_gathers_statistics(name):
    stage, params, state = start(NOISY[name])
    y, new = stage.apply(params, state, X, key=KEY, batch=0, train=True)
    assert 0.3 < np.mean(np.asarray(y) == 0) < 0.7
    again, _ = stage.apply(params, state, X, key=KEY, batch=0, train=True)
    other, _ = stage.apply(params, state, X, key=KEY, batch=1, train=True)
    assert_equal(again, y)
    assert np.any((y == 0) != (other == 0))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    mean, variance = mean_and_variance(new)
    np.testing.assert_allclose(mean, 0.1 * X.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * X.var(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", NOISY)
def test_evaluation_is_deterministic_and_changes_nothing(name):
    stage, params, state = start(NOISY[name])
    y, new = stage.apply(params, state, X, key=KEY, batch=0, train=False)
    other, _ = stage.apply(params, state, X, key=jax.random.key(9), batch=5, train=False)
    assert_equal(other, y)
    assert_equal(new, state)
    dense = next(iter(params.values()))
    dense = dense["layers"][1] if "layers" in dense else dense["Dense_0"]
    # The initial running averages are 0 and 1.
    np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5) @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-5)


class TwoDropouts(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.first(x), self.second(x)


@pytest.mark.parametrize("module", [TwoDropouts(nnx.Rngs(0)), jd.from_nnx(TwoDropouts)], ids=["object", "factory"])
def test_two_dropouts_of_a_module_differ(module):
    stage, params, state = start(module)
    first, second = stage.apply(params, state, np.ones((64, 64)), key=KEY, batch=0, train=True)[0]
    assert 0.4 < np.mean((first == 0) == (second == 0)) < 0.6


def test_an_nnx_object_keeps_its_parameters_and_a_factory_follows_the_key():
    module = nnx.Linear(4, 3, rngs=nnx.Rngs(5))
    for key in (KEY, jax.random.key(1)):
        params, state = jd.as_layer(module).init(key, X)
        assert_equal(params, {"kernel": module.kernel[...], "bias": module.bias[...]})
        assert state == {}
    layer = jd.from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    one, same, other = (layer.init(jax.random.key(seed), X)[0] for seed in (0, 0, 1))
    assert_equal(one, same)
    assert np.any(one["kernel"] != other["kernel"])


def test_an_nnx_object_is_left_alone():
    module = Nnx(nnx.Rngs(0))
    module.dropout.deterministic = True
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    stage, params, state = start(module)
    for train in (True, False):
        stage.apply(params, state, X, key=KEY, batch=0, train=train)
    assert_equal(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))), before)
    assert module.dropout.deterministic


@pytest.mark.parametrize("name", ["train", "nnx", "nnx factory"])
def test_under_jit_no_tracer_leaks(name):
    stage, params, state = start(NOISY[name])
    with jax.checking_leaks():
        step = jax.jit(lambda params, state, n: stage.apply(params, state, X, key=KEY, batch=n, train=True))
        y, new = step(params, state, 2)
    want, want_state = stage.apply(params, state, X, key=KEY, batch=2, train=True)
    np.testing.assert_allclose(y, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, want_state)


def test_sequential_with_a_list_equals_the_module():
    module = nn.Sequential([nn.Dense(3), jnp.tanh, nn.Dense(2)])
    stage, params, state = start(module)
    y, _ = stage.apply(params, state, X, key=KEY, batch=0, train=True)
    np.testing.assert_allclose(y, module.apply({"params": params["000_Sequential"]}, X), atol=1e-6)


def test_a_function_is_a_layer_without_parameters():
    layer = jd.as_layer(jnp.tanh)
    assert (layer.name, layer.init(KEY, X)) == ("tanh", ({}, {}))
    y, state = layer.apply({}, {}, X, key=KEY, train=True)
    np.testing.assert_allclose(y, np.tanh(X), rtol=1e-5)
    assert state == {}
    assert jd.from_function(jnp.tanh, "squash").name == "squash"


def test_layers_are_named_after_their_modules():
    modules = [nn.Dense(2), nn.Dense(2, name="logits"), nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jd.from_nnx(TwoDropouts)]
    assert [jd.as_layer(module).name for module in modules] == ["Dense", "logits", "Linear", "TwoDropouts"]


def test_a_layer_is_left_alone():
    layer = Layer(lambda key, x: ({}, {}), lambda params, state, x, *, key, train: (x, state))
    assert jd.as_layer(layer) is layer


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtypes_follow_the_module(dtype, x64):
    layers = [
        nn.Dense(4, param_dtype=dtype),
        jd.from_nnx(lambda rngs: nnx.Linear(4, 4, param_dtype=dtype, rngs=rngs)),
        nn.BatchNorm(param_dtype=dtype),
    ]
    x = jnp.asarray(X, dtype)
    stage, params, state = start(*layers, x=jax.ShapeDtypeStruct(x.shape, x.dtype))
    y, _ = stage.apply(params, state, x, key=KEY, batch=0, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, y))} == {np.dtype(dtype)}


def test_every_collection_but_parameters_is_model_state():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
            if self.is_mutable_collection("counts") and not self.is_initializing():
                count.value += 1
            return x + count.value

    stage, params, state = start(Counter())
    assert params == {} and state == {"000_Counter": {"counts": {"calls": 0}}}
    for n, train in enumerate((True, False, True)):
        _, state = stage.apply(params, state, X, key=KEY, batch=n, train=train)
    assert int(state["000_Counter"]["counts"]["calls"]) == 2


@pytest.mark.parametrize("item", [nn.Dense, nnx.Linear, None, "relu", 3])
def test_what_is_no_layer_is_refused(item):
    with pytest.raises(TypeError, match="is no layer; write a Flax module object"):
        jd.as_layer(item)


class BareStream(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jax.random.gumbel(self.make_rng("gumbel"), x.shape)


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("losses", "l2", jnp.sum(x**2))
        return x


def test_every_random_stream_follows_the_key():
    stage, params, state = start(BareStream())
    one, other = (stage.apply(params, state, X, key=KEY, batch=n, train=True)[0] for n in (0, 1))
    assert np.all(one != other)


class Mapped(nnx.Module):
    """Three dropouts, mapped over, whose random streams are arrays of three keys."""

    def __init__(self, rngs):
        build = nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs), in_axes=(0,), out_axes=0)
        self.dropouts = nnx.split_rngs(splits=3)(build)(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda dropout, x: dropout(x), in_axes=(0, None))(self.dropouts, x)


def test_mapped_random_streams_keep_their_shape():
    assert Mapped(nnx.Rngs(0))(X).shape == (3, *X.shape)
    stage, params, state = start(jd.from_nnx(Mapped))
    y, _ = stage.apply(params, state, np.ones_like(X), key=KEY, batch=0, train=True)
    assert np.any(y[0] != y[1]) and np.any(y[1] != y[2])


@pytest.mark.parametrize("module", [nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=True)])
def test_a_switch_given_to_the_module_stays(module):
    start(module)


def test_model_state_that_changes_its_structure_is_refused():
    with pytest.raises(ValueError, match=r"model state \(losses\) changes its structure with every batch"):
        start(Sowing())


class SowingIntermediates(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "x", x)
        return nn.Dense(2)(x)


def test_intermediates_are_not_kept():
    stage, params, state = start(SowingIntermediates())
    assert state == {} and stage.apply(params, state, X, key=KEY, batch=0, train=True)[1] == {}


def test_model_state_keeps_its_dtype(x64):
    stage, params, state = start(nn.BatchNorm(param_dtype=jnp.float64), x=np.float64(X))
    _, new = stage.apply(params, state, np.float64(X), key=KEY, batch=0, train=True)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@pytest.mark.filterwarnings("error")
def test_host_arrays_of_double_precision_are_taken():
    start(nn.Dense(2), x=np.float64(X))


class Switched(nnx.Module):
    def __call__(self, x, train=True):
        return x + train


def test_an_nnx_module_may_take_the_switch_as_an_argument():
    layer = jd.from_nnx(Switched())
    for train in (True, False):
        assert layer.apply({}, {}, np.zeros(1), key=KEY, train=train)[0].tolist() == [float(train)]
