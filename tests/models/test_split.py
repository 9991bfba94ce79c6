"""A block cut into its parts is the same function, with as little as possible travelling between the parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.models import (
    BasicBlock,
    Bottleneck,
    Head,
    PreActivationBlock,
    PreActivationBottleneck,
    Stem,
    imagenet_resnet,
    resnet,
)
from jaxdecouple.partitioning.partition import flops
from tests.models.test_imagenet import trace

BLOCKS = {
    "basic": BasicBlock(8),
    "basic, padded": BasicBlock(12, 2),
    "basic, projected": BasicBlock(16, 2, projection=True),
    "bottleneck": Bottleneck(8),
    "bottleneck, widened": Bottleneck(32, projection=True),
    "bottleneck, projected": Bottleneck(16, 2, projection=True),
    "basic, not normalised": BasicBlock(12, 2, normalise=False),
    "bottleneck, not normalised": Bottleneck(32, projection=True, normalise=False),
    "bottleneck, grouped and excited": Bottleneck(16, 2, projection=True, width=12, groups=3, reduction=4),
    "pre-activated, padded": PreActivationBlock(12, 2),
    "pre-activated, projected": PreActivationBlock(16, 2, projection=True),
    "pre-activated bottleneck, widened": PreActivationBottleneck(32, projection=True),
}


def variables_of(block, x, seed=0):
    """A block's variables, all different."""
    variables = block.init(jax.random.key(seed), x, train=True)
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.uniform(0.2, 1, leaf.shape) for leaf in leaves])


def of_part(block, part, x):
    """The names of a part's variables, by collection."""
    shapes = jax.eval_shape(lambda x: block.parts()[part].init(jax.random.key(0), x, train=True), x)
    return {collection: set(names) for collection, names in shapes.items()}


@pytest.mark.parametrize(("name", "train"), [*((name, True) for name in BLOCKS), ("bottleneck, projected", False)])
def test_parts_in_order_are_the_block(name, train, x64):
    """The same output, batch statistics and gradients, to rounding, from the same parameters under the same names."""
    block = BLOCKS[name]
    x = np.random.default_rng(1).normal(size=(3, 5, 5, 8))
    variables = variables_of(block, x)
    stats = variables.get("batch_stats", {})
    names = []

    def whole(params, x):
        return block.apply({"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"])

    def split(params, x):
        updated = {}
        for index, part in enumerate(block.parts()):
            own = of_part(block, index, x)
            names.extend(own["params"])
            mine = {"params": params, "batch_stats": stats}
            mine = {kind: {name: mine[kind][name] for name in own[kind]} for kind in own}
            x, changed = part.apply(mine, x, train=train, mutable=["batch_stats"])
            updated |= changed.get("batch_stats", {})
        return x, {"batch_stats": updated}

    def everything(function):
        def run(params, x):
            y, back, updated = jax.vjp(function, params, x, has_aux=True)
            return y, updated, back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        return jax.jit(run)(variables["params"], x)

    expected, got = everything(whole), everything(split)
    assert sorted(names) == sorted(variables["params"])  # every parameter is in one part only
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda **s: resnet(14, **s),
        lambda **s: resnet(8, normalise=False, **s),
        lambda **s: imagenet_resnet(50, small_images=True, **s),
    ],
)
def test_split_networks_have_the_blocks_parameters_in_order(build):
    def leaves(layers):
        found, x = [], jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
        for layer in layers:
            x, variables = trace(layer, x)
            found.append(sorted((keystr(p), v.shape) for p, v in tree_leaves_with_path(variables)))
        return found, x

    whole, y = leaves(build())
    split, y_split = leaves(build(split_blocks=True))
    assert y == y_split
    blocks = build()
    parts = iter(split)
    for block, expected in zip(blocks, whole, strict=True):
        number = len(block.parts()) if hasattr(block, "parts") else 1
        assert sorted(sum((next(parts) for _ in range(number)), [])) == expected
    assert next(parts, None) is None


def travelling(block, x):
    """Shapes of the pairs between a block's parts."""
    pairs = []
    for part in block.parts():
        x, _ = trace(part, x)
        pairs.append(x)
    return [tuple(leaf.shape for leaf in pair) for pair in pairs[:-1]]


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("basic", [((2, 6, 6, 8), (2, 6, 6, 8))]),
        ("basic, padded", [((2, 3, 3, 12), (2, 3, 3, 8))]),
        ("basic, projected", [((2, 3, 3, 16), (2, 3, 3, 16))]),
        ("bottleneck", [((2, 6, 6, 2), (2, 6, 6, 8))] * 2),
        ("bottleneck, widened", [((2, 6, 6, 8), (2, 6, 6, 8))] * 2),
        ("bottleneck, projected", [((2, 6, 6, 4), (2, 3, 3, 16)), ((2, 3, 3, 4), (2, 3, 3, 16))]),
        ("bottleneck, grouped and excited", [((2, 6, 6, 12), (2, 3, 3, 16)), ((2, 3, 3, 12), (2, 3, 3, 16))]),
        ("pre-activated, projected", [((2, 3, 3, 16), (2, 3, 3, 16))]),
        ("pre-activated bottleneck, widened", [((2, 6, 6, 8), (2, 6, 6, 8))] * 2),
    ],
)
def test_what_travels_between_parts(name, pairs):
    assert travelling(BLOCKS[name], jax.ShapeDtypeStruct((2, 6, 6, 8), np.float32)) == pairs


@pytest.mark.parametrize("depth", [18, 50])
def test_shortcuts_travel_in_their_smaller_form(depth):
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    for block in imagenet_resnet(depth)[:-1]:
        y, _ = trace(block, x)
        if hasattr(block, "parts"):
            for _, shortcut in travelling(block, x):
                assert np.prod(shortcut) == min(x.size, y.size)
        x = y


def test_initial_values_depend_on_key_and_name_alone():
    """A module's seed gives the values that it gives to convolutions which Flax names itself, in parts too."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
            for _ in range(2):
                x = nn.Conv(8, (3, 3), use_bias=False, kernel_init=init)(x)
            return x

    key, x = jax.random.key(4), jnp.zeros((1, 4, 4, 8))
    expected = Plain().init(key, x)["params"]
    whole = BasicBlock(8).init(key, x, train=True)["params"]
    first, second = (
        part.init(key, given, train=True)["params"]
        for part, given in zip(BasicBlock(8).parts(), (x, (x, x)), strict=True)
    )
    assert set(whole) == {"Conv_0", "_Norm_0", "Conv_1", "_Norm_1"}
    for name, part in (("Conv_0", first), ("Conv_1", second)):
        np.testing.assert_array_equal(whole[name]["kernel"], expected[name]["kernel"])
        np.testing.assert_array_equal(part[name]["kernel"], expected[name]["kernel"])


def test_repeated_blocks_have_equal_parts():
    assert resnet(20, split_blocks=True)[1:3] == resnet(20, split_blocks=True)[3:5] == BasicBlock(16).parts()
    layers = imagenet_resnet(50, split_blocks=True)
    assert layers[4:7] == layers[7:10] == Bottleneck(256).parts() != layers[1:4]


@pytest.mark.parametrize(
    ("block", "boundaries", "schedule"),
    [
        (BasicBlock(6, 2), (2,), schedules.fdg(2)),
        (Bottleneck(8, projection=True), (2, 3), schedules.features_replay(3)),  # a stage that passes a shortcut on
    ],
)
def test_a_cut_inside_a_block_trains_as_the_whole_network(block, boundaries, schedule, x64):
    # One batch, and then nothing in flight: no method has a stale gradient.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6, 6, 3)), rng.integers(0, 3, 4)
    dtype = {"param_dtype": jnp.float64}
    layers = [Stem(4, **dtype), *block.clone(**dtype).parts(), Head(3, **dtype)]
    results = []
    for schedule_, boundaries_ in ((schedules.backprop(1), ()), (schedule, boundaries)):
        stages = jd.partition(layers, boundaries=boundaries_)
        pipeline = jd.Pipeline(stages, schedule_, optimizer=jd.stagewise(optax.sgd(0.1)))
        state = pipeline.init(jax.random.key(0), x)
        before = jax.device_get([stage.params for stage in state.stages])
        state, _ = pipeline.step(state, (x, y))
        state = jax.device_get(pipeline.flush(state).stages)
        after = [stage.params for stage in state]
        assert all((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
        params = {name: value for stage in state for name, value in stage.params.items()}
        results.append((params, {name: value for stage in state for name, value in stage.model_state.items()}))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BLOCKS)
def test_operations_of_the_parts_are_those_of_the_block(name):
    x = np.zeros((2, 6, 6, 8), np.float32)
    parts = flops([jd.as_layer(part) for part in BLOCKS[name].parts()], x)
    assert min(parts) > 0 and sum(parts) == pytest.approx(flops([jd.as_layer(BLOCKS[name])], x)[0], rel=0.01)


@pytest.mark.parametrize("given", [np.zeros((2, 4, 4, 8), np.float32), (np.zeros((2, 4, 4, 8), np.float32),)])
def test_later_parts_refuse_what_is_no_pair(given):
    # An array of two images would unpack into two values as well.
    with pytest.raises(ValueError, match="part 1 of a BasicBlock takes a pair .* as part 0 gives"):
        BasicBlock(8, part=1).init(jax.random.key(0), given, train=True)


@pytest.mark.parametrize("part", [-1, 2])
def test_refuses_other_parts(part):
    with pytest.raises(ValueError, match=f"part is {part}; a BasicBlock has the parts 0..1"):
        BasicBlock(8, part=part).init(jax.random.key(0), np.zeros((2, 4, 4, 8)), train=True)


def test_fewer_channels_need_a_projection():
    with pytest.raises(ValueError, match="channels is 4, but the input has 8; write projection=True"):
        BasicBlock(4).init(jax.random.key(0), np.zeros((2, 4, 4, 8)), train=True)
