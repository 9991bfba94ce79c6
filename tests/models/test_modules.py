"""The modules of the models: what they compute, the dtypes they keep, how they start, and what they refuse.

Each is computed once more by NumPy alone, in double precision, from the same variables; and again from its parts,
where it can be cut.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import models, schedules
from jaxdecouple.models import (
    ActivationHead,
    BasicBlock,
    Bottleneck,
    ConvLayer,
    DenseLayer,
    DenseNetLayer,
    DenseNetTransition,
    Head,
    InvertedResidual,
    MobileLayer,
    PlainStem,
    PoolingStem,
    PreActivationBlock,
    PreActivationBottleneck,
    Stem,
    VGGLayer,
)
from jaxdecouple.partitioning.partition import flops
from tests.oracles import modules
from tests.oracles.modules import Variables, images, switch, trace

# name: module, what it is, height and width of the input
CASES = {
    "basic": (BasicBlock(8), modules.residual),
    "basic, padded": (BasicBlock(12, 2), modules.residual),
    "basic, padded unevenly": (BasicBlock(11, 2), modules.residual, 6),
    "basic, projected": (BasicBlock(16, 2, projection=True), modules.residual),
    "basic, not normalised": (BasicBlock(12, 2, normalise=False), modules.residual),
    "basic, excited": (BasicBlock(8, reduction=4), modules.residual),
    "bottleneck": (Bottleneck(8), modules.residual),
    "bottleneck, widened": (Bottleneck(32, projection=True), modules.residual),
    "bottleneck, projected": (Bottleneck(16, 2, projection=True), modules.residual, 6),
    "bottleneck, not normalised": (Bottleneck(32, projection=True, normalise=False), modules.residual),
    "bottleneck, grouped and excited": (
        Bottleneck(16, 2, projection=True, width=12, groups=3, reduction=4),
        modules.residual,
    ),
    "pre-activated": (PreActivationBlock(8), modules.pre_activated),
    "pre-activated, padded": (PreActivationBlock(12, 2), modules.pre_activated),
    "pre-activated, projected": (PreActivationBlock(16, 2, projection=True), modules.pre_activated),
    "pre-activated bottleneck": (PreActivationBottleneck(8), modules.pre_activated),
    "pre-activated bottleneck, widened": (PreActivationBottleneck(32, projection=True), modules.pre_activated),
    "pre-activated bottleneck, projected": (PreActivationBottleneck(16, 2, projection=True), modules.pre_activated),
    "inverted": (InvertedResidual(8), modules.inverted_residual),
    "inverted, no expansion": (InvertedResidual(8, expansion=1), modules.inverted_residual),
    "inverted, no shortcut": (InvertedResidual(6, expansion=2), modules.inverted_residual),
    "inverted, stride": (InvertedResidual(8, 2, expansion=3), modules.inverted_residual),
    "mobile": (MobileLayer(6, 3, 2), modules.mobile_layer),
    "densenet": (DenseNetLayer(3), modules.densenet_layer),
    "transition": (DenseNetTransition(), modules.transition),
    "vgg": (VGGLayer(3), modules.vgg_layer),
    "vgg, pooled": (VGGLayer(3, pool=True), modules.vgg_layer),
    "vgg, not normalised": (VGGLayer(3, pool=True, normalise=False), modules.vgg_layer),
    "stem": (Stem(5), modules.stem),
    "pooling stem": (PoolingStem(3), modules.pooling_stem, 12),
    "plain stem": (PlainStem(5), modules.plain_stem),
    "head": (Head(3), modules.head),
    "activation head": (ActivationHead(3), modules.activation_head),
    "dense": (DenseLayer(4, jnp.tanh), modules.dense_layer),
    "dense, the last": (DenseLayer(4), modules.dense_layer),
    "convolution": (ConvLayer(4, jnp.tanh), modules.conv_layer),
    "convolution, even": (ConvLayer(4, jnp.tanh), modules.conv_layer, 4),
    "convolution, one pixel": (ConvLayer(4, jnp.tanh), modules.conv_layer, 1),
}
NORMALISED = [name for name, (module, *_) in CASES.items() if getattr(module, "normalise", False)]


def own_variables(part, x, variables):
    """Those of ``variables`` that a part has."""
    shapes = trace(part, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x))[1]
    return {kind: {name: variables[kind][name] for name in own} for kind, own in shapes.items()}


def in_parts(block, variables, x):
    """Output, batch statistics, and the names of each part's parameters, in training."""
    stats, names = {}, []
    for part in block.parts():
        own = own_variables(part, x, variables)
        names += own["params"]
        x, updated = part.apply(own, x, mutable=["batch_stats"], train=True)
        stats |= updated.get("batch_stats", {})
    return x, stats, names


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy_whole_and_in_parts(name, x64):
    module, reference, size = (*CASES[name], 5)[:3]
    module = module.clone(param_dtype=jnp.float64)
    x = np.random.default_rng(1).normal(size=(3, size, size, 8))
    variables, names = Variables(module, x), []

    @jax.jit
    def computed(tree, x):
        found = [module.apply(tree, x, mutable=["batch_stats"], **switch(module, train)) for train in (True, False)]
        if hasattr(module, "parts"):
            y, stats, found_names = in_parts(module, tree, x)
            names.extend(found_names)
            found.append((y, {"batch_stats": stats} if stats else {}))
        return found

    (y, updated), (evaluated, kept), *parts = computed(variables.tree, x)
    expected = reference(variables, module, x)
    assert y.dtype == np.float64 and np.abs(expected).max() > 0
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
    chex.assert_trees_all_close(updated.get("batch_stats", {}), variables.updated, rtol=1e-10, atol=1e-10)
    variables.train = False
    np.testing.assert_allclose(evaluated, reference(variables, module, x), rtol=1e-10, atol=1e-10)
    chex.assert_trees_all_equal(kept.get("batch_stats", {}), variables.stats)
    for y_of_parts, updated_of_parts in parts:
        np.testing.assert_allclose(y_of_parts, y, rtol=0, atol=1e-12)
        chex.assert_trees_all_close(updated_of_parts, dict(updated), rtol=0, atol=1e-12)
        assert sorted(names) == sorted(variables.params)  # every parameter is in one part only


@pytest.mark.parametrize("name", CASES)
def test_dtypes_follow_the_user(name, x64):
    """Parameters and outputs; running averages are in single precision beside computation in half."""
    single, double, half = (np.dtype(dtype) for dtype in (jnp.float32, jnp.float64, jnp.bfloat16))
    for given, kept, computed, x in (
        ({}, single, single, images(8, 8)),
        ({"param_dtype": double}, double, double, images(8, 8)),
        ({"param_dtype": double}, double, double, images(8, 8, double)),
        ({"dtype": half}, single, half, images(8, 8, half)),
        ({"param_dtype": half}, half, half, images(8, 8, half)),
    ):
        module = CASES[name][0].clone(**given)
        y, variables = trace(module, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {kept} and y.dtype == computed
        assert {leaf.dtype for leaf in jax.tree.leaves(variables.get("batch_stats", {}))} <= {single, double}
        if "dtype" in given:  # everything, not the output alone

            def run(key, x, module=module):
                return module.init_with_output(key, x, **switch(module, False), capture_intermediates=True)[1]

            inner = jax.eval_shape(run, jax.random.key(0), images(8, 8, half))["intermediates"]
            assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {half}


@pytest.mark.parametrize("name", NORMALISED)
def test_without_normalisation_each_convolution_has_a_bias(name):
    module = CASES[name][0]
    whole, without = (trace(module.clone(normalise=given), images(8, 8))[1] for given in (True, False))
    assert ("batch_stats" in whole) == (name not in ("plain stem", "head")) and set(without) == {"params"}
    for layer, own in without["params"].items():
        if layer not in ("excitation", "head", "Dense_0"):
            assert set(own) == {"kernel", "bias"} and own["kernel"] == whole["params"][layer]["kernel"]
    assert all("bias" not in own for layer, own in whole["params"].items() if layer.startswith(("Conv", "proj")))


def test_convolutions_start_with_variance_two_over_fan_out():
    """As PyTorch counts, of grouped ones as well: the kernel's size times all output channels. Biases start at 0."""
    wide = (
        *(BasicBlock(64, normalise=given) for given in (True, False)),
        Bottleneck(256, projection=True, width=64, groups=2),
        InvertedResidual(16),
        VGGLayer(64),
    )
    x = jnp.zeros((1, 2, 2, 32))
    found = jax.jit(lambda key: [module.init(key, x, train=True)["params"] for module in wide])(jax.random.key(0))
    for params in found:
        kernels = [own["kernel"] for own in params.values() if "kernel" in own]
        assert len(kernels) == sum(name.startswith("Conv") or name == "projection" for name in params)
        for kernel in kernels:
            fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
            assert np.asarray(kernel).std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
    for name in ("Conv_0", "Conv_1"):  # the kernels are the same with and without normalisation
        np.testing.assert_array_equal(found[0][name]["kernel"], found[1][name]["kernel"])
        assert not found[1][name]["bias"].any()


# A block is cut inside, and a stage passes a shortcut on.
LAYERS = [
    PlainStem(4),
    *Bottleneck(8, projection=True, normalise=False).parts(),
    VGGLayer(4, pool=True),
    ActivationHead(3),
]


def test_a_network_cut_inside_a_block_trains_as_the_whole(x64):
    """One batch, and then nothing in flight: no method has a stale gradient."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6, 6, 3)), rng.integers(0, 3, 4)
    layers, results = [layer.clone(param_dtype=jnp.float64) for layer in LAYERS], []
    for schedule, boundaries in ((schedules.backprop(1), ()), (schedules.features_replay(3), (2, 3))):
        stages = jd.partition(layers, boundaries=boundaries)
        pipeline = jd.Pipeline(stages, schedule, optimizer=jd.stagewise(optax.sgd(0.1)))
        before = pipeline.init(jax.random.key(0), x)
        weights = {name: tree for stage in jax.device_get(before.stages) for name, tree in stage.params.items()}
        after = jax.device_get(pipeline.flush(pipeline.step(before, (x, y))[0]).stages)
        params = {name: tree for stage in after for name, tree in stage.params.items()}
        results.append((params, {name: tree for stage in after for name, tree in stage.model_state.items()}))
        trained = jax.tree.map(lambda a, b: bool((a != b).any()), weights, params)
        assert all(jax.tree.leaves(trained))
    chex.assert_trees_all_close(*results, rtol=0, atol=1e-12)


def test_half_precision_learns():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, 8)
    block = Bottleneck(8, 2, projection=True, width=6, groups=3, reduction=2)
    layers = [module.clone(dtype=jnp.bfloat16) for module in (block, Head(3))]
    stage = jd.Stage(tuple(map(jd.as_layer, layers)))
    params, state = stage.init(jax.random.key(0), x)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits, new_state = stage.apply(params, state, x, key=jax.random.key(0), batch=0, train=True)
            return jd.softmax_cross_entropy(logits, y), new_state

        (value, state_after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient), state_after, value

    losses = []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0] and np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        # Flax would take three axes for a single image.
        (ConvLayer(4), (2, 28, 28), r"the input is \(2, 28, 28\); write images \[B, H, W, C\], grey .* C = 1"),
        (VGGLayer(3, pool=True), (2, 2, 1, 3), "at least 2x2 pixels"),
        (
            DenseNetTransition(),
            (2, 1, 5, 8),
            r"input is \(2, 1, 5, 8\), too small for a 2x2 mean; write .* 29x29 pixels",
        ),
        (models.SqueezeExcitation(0), (1, 2, 2, 8), "reduction is 0, and the input has 8 channels; write 1 to 8"),
        (models.SqueezeExcitation(9), (1, 2, 2, 8), "reduction is 9, and the input has 8 channels; write 1 to 8"),
        (BasicBlock(4), (2, 4, 4, 8), "channels is 4, but the input has 8; write projection=True"),
        (BasicBlock(8, part=-1), (2, 4, 4, 8), r"part is -1; a BasicBlock has the parts 0\.\.1"),
        (BasicBlock(8, part=2), (2, 4, 4, 8), r"part is 2; a BasicBlock has the parts 0\.\.1"),
        # An array of two images would unpack into two values as well.
        (BasicBlock(8, part=1), (2, 4, 4, 8), "part 1 of a BasicBlock takes a pair .* as part 0 gives"),
        (BasicBlock(8, part=1), [(2, 4, 4, 8)], "part 1 of a BasicBlock takes a pair .* as part 0 gives"),
    ],
)
def test_refuses_and_says_what_to_write(module, shape, says):
    x = tuple(map(np.zeros, shape)) if isinstance(shape, list) else np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=says):
        module.init(jax.random.key(0), x, **({} if isinstance(module, models.SqueezeExcitation) else switch(module)))


# ---- Parts of blocks.

BLOCKS = {name: module for name, (module, *_) in CASES.items() if hasattr(module, "parts")}


@pytest.mark.parametrize("name", ["basic, padded", "bottleneck, projected", "pre-activated bottleneck, widened"])
def test_gradients_pass_through_parts_as_through_the_block(name, x64):
    block, x = BLOCKS[name], np.random.default_rng(1).normal(size=(3, 5, 5, 8))
    variables = Variables(block.clone(param_dtype=jnp.float64), x).tree

    def whole(params, x):
        return block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]

    def split(params, x):
        return in_parts(block, {**variables, "params": params}, x)[0]

    gradients = jax.jit(lambda at: [jax.grad(lambda at, f=f: jnp.sum(f(*at) ** 2))(at) for f in (whole, split)])
    got, want = gradients((variables["params"], x))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want))
    chex.assert_trees_all_close(got, want, rtol=1e-10)


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
    assert travelling(BLOCKS[name], images(6, 8)) == pairs


@pytest.mark.parametrize("depth", [18, 50])
def test_shortcuts_travel_in_their_smaller_form(depth):
    x = images(64)
    for block in models.imagenet_resnet(depth)[:-1]:
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

    x, block = jnp.zeros((1, 4, 4, 8)), BasicBlock(8)

    @jax.jit
    def init(key):
        parts = zip(block.parts(), (x, (x, x)), strict=True)
        blocks = [block.init(key, x, True), *(part.init(key, given, True) for part, given in parts)]
        return [variables["params"] for variables in (Plain().init(key, x), *blocks)]

    expected, whole, *parts = init(jax.random.key(4))
    assert set(whole) == {"Conv_0", "_Norm_0", "Conv_1", "_Norm_1"}
    for name, part in zip(("Conv_0", "Conv_1"), parts, strict=True):
        for found in (whole, part):
            np.testing.assert_array_equal(found[name]["kernel"], expected[name]["kernel"])


@pytest.mark.parametrize("name", BLOCKS)
def test_operations_of_the_parts_are_those_of_the_block(name):
    x = np.zeros((2, 6, 6, 8), np.float32)
    parts = flops([jd.as_layer(part) for part in BLOCKS[name].parts()], x)
    assert min(parts) > 0 and sum(parts) == pytest.approx(flops([jd.as_layer(BLOCKS[name])], x)[0], rel=0.01)
