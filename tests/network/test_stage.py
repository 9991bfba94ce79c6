"""A stage is its layers one after another, and what is random in it depends on key, layer and batch, not on the cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple.network.adapters import as_stages
from jaxdecouple.network.layer import Layer
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import describe, shape_of

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def start(*layers, first=0):
    """A stage of ``layers``, and its parameters and model state."""
    stage = Stage(tuple(map(jd.as_layer, layers)), first)
    return stage, *stage.init(KEY, X)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def network():
    return [
        nn.Dense(4),
        nn.Dropout(0.5),
        jnp.tanh,
        jd.from_nnx(lambda rngs: nnx.Linear(4, 4, rngs=rngs)),
        Block(),
        nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(4)]),  # holds a list: cannot be hashed
        nn.Dropout(0.5),
    ]


def run(boundaries, key, batch):
    """Parameters, model state and output of a network cut at ``boundaries``, merged over the stages."""
    params, state, x = {}, {}, X
    for stage in jd.partition(network(), boundaries=boundaries):
        stage_params, stage_state = stage.init(key, x)
        x, new_state = stage.apply(stage_params, stage_state, x, key=key, batch=batch, train=True)
        params |= stage_params
        state |= new_state
    return params, state, x


@pytest.mark.parametrize("boundaries", [(1,), (4,), (2, 5), (1, 2, 3, 4, 5, 6)])
def test_the_key_decides_and_not_the_cut(boundaries):
    whole = run((), KEY, 3)
    assert_equal(run(boundaries, KEY, 3), whole)
    assert list(whole[0]) == ["000_Dense", "003_Linear", "004_Block", "005_Sequential"]
    assert list(whole[1]) == ["004_Block"]


def test_another_key_is_another_network():
    one, other = run((), KEY, 0)[0], run((), jax.random.key(1), 0)[0]
    for name in one:
        kernels = [leaf for leaf in jax.tree.leaves(one[name]) if leaf.ndim == 2]
        others = [leaf for leaf in jax.tree.leaves(other[name]) if leaf.ndim == 2]
        assert all(np.any(a != b) for a, b in zip(kernels, others, strict=True))


def test_layers_alike_start_differently():
    linear = jd.from_nnx(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
    _, params, _ = start(nn.Dense(4), nn.Dense(4), linear, linear)
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    assert len(kernels) == 4
    assert not any(np.array_equal(a, b) for i, a in enumerate(kernels) for b in kernels[:i])


def masks(layers, key, batch):
    """The masks of dropout layers, each applied to ones."""
    kept = []
    keep = jd.from_function(lambda x: (kept.append(np.asarray(x) != 0), jnp.ones_like(x))[1])
    stage = Stage(tuple(part for layer in layers for part in (jd.as_layer(layer), keep)))
    stage.apply({}, {}, jnp.ones((64, 64)), key=key, batch=batch, train=True)
    return kept


@pytest.mark.parametrize("rngs", [nnx.Rngs(0), nnx.Rngs(params=0, dropout=1)], ids=["one stream", "two streams"])
def test_masks_differ_by_layer_batch_and_key(rngs):
    layers = [nn.Dropout(0.5), nn.Dropout(0.5), nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)]
    runs = [(KEY, 0), (KEY, 1), (KEY, 2), (KEY, 2**20), (jax.random.key(1), 0)]
    found = [mask for key, batch in runs for mask in masks(layers, key, batch)]
    for index, mask in enumerate(found):
        assert abs(mask.mean() - 0.5) < 0.05
        assert all(0.4 < np.mean(mask == other) < 0.6 for other in found[:index])
    assert_equal(masks(layers, KEY, jnp.int32(1)), masks(layers, KEY, 1))


def test_a_stage_is_its_layers_one_after_another():
    twice = Layer(lambda key, x: ({"w": jnp.full(4, 2.0)}, {}), lambda p, s, x, *, key, train: (p["w"] * x, s), "twice")
    stage, params, state = start(jnp.sin, twice, lambda x: (x, x[:, :1] > 0), lambda pair: {"sum": pair[0] + pair[1]})
    assert list(params) == ["001_twice"] and state == {}  # layers without parameters have no entry
    y, _ = stage.apply(params, state, X, key=KEY, batch=0, train=False)
    np.testing.assert_allclose(y["sum"], 2 * np.sin(X) + (X[:, :1] > 0), rtol=1e-5)


def test_layers_know_whether_they_are_trained():
    seen = []

    def apply(p, s, x, *, key, train):
        return (seen.append(train) or x, s)

    stage, params, state = start(Layer(lambda key, x: ({}, {}), apply))
    seen.clear()
    for train in (True, False):
        stage.apply(params, state, X, key=KEY, batch=0, train=train)
    assert seen == [True, False]


def test_a_layer_that_does_not_fit_is_named_by_its_place_in_the_network():
    with pytest.raises(ValueError, match=r"layer 6 \(project\) cannot take float32\[8, 3\], the output of the layer"):
        start(nn.Dense(3), jd.from_function(lambda x: x @ jnp.ones((4, 2)), "project"), first=5)


def test_stages_number_their_layers_through():
    first, second = as_stages([Stage((jd.as_layer(nn.Dense(2)), jd.as_layer(jnp.sin))), nn.Dense(3)])
    assert (*first.keys, *second.keys) == ("000_Dense", "001_sin", "002_Dense")
    assert as_stages([first, second]) == (first, second)
    with pytest.raises(ValueError, match=r"stage 1 starts at layer 0, .* hold layers 0 to 1; write .*first=2"):
        as_stages([first, Stage(second.layers)])
    with pytest.raises(ValueError, match="a stage needs at least one layer"):
        Stage(())


def test_shapes_of_host_arrays_are_those_on_the_device(x64):
    tree = {"double": np.zeros((2, 3)), "number": 1.5, "label": np.int32(3)}
    assert describe(shape_of(tree)) == "float64[2, 3], int32[], float64[]"
    with jax.enable_x64(False):
        assert describe(shape_of(tree)) == "float32[2, 3], int32[], float32[]"
    assert describe(()) == "nothing"
