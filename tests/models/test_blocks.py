"""The blocks of wide, pre-activated, grouped, excited, mobile and dense networks are what their papers' formulas say.

Each is computed once more by NumPy alone, in double precision, from the same variables.
"""

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
    DenseNetLayer,
    DenseNetTransition,
    Head,
    InvertedResidual,
    MobileLayer,
    PlainStem,
    PreActivationBlock,
    PreActivationBottleneck,
    Stem,
)
from jaxdecouple.network.layer import walk
from jaxdecouple.network.stage import Stage
from tests.models.test_models import same_when_cut

DOUBLE = {"param_dtype": jnp.float64}


class Variables:
    """A module's random variables, and NumPy's convolution and normalisation with them."""

    def __init__(self, module, x, train):
        rng = np.random.default_rng(7)
        shapes = jax.eval_shape(lambda key: module.init(key, x, **switch(module)), jax.random.key(0))
        names, structure = jax.tree_util.tree_flatten_with_path(shapes)

        def draw(path, shape):
            # Variances are positive; scales are so large that a ReLU6 reaches its end.
            return rng.uniform(0.5, 2, shape) if "var" in str(path) else rng.normal(size=shape, scale=3)

        self.tree = jax.tree.unflatten(structure, [draw(path[-1], leaf.shape) for path, leaf in names])
        self.params, self.stats = self.tree["params"], self.tree.get("batch_stats")
        self.train = train

    def conv(self, x, name, stride=1, groups=1):
        kernel = self.params[name]["kernel"]
        pad = kernel.shape[0] // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
        windows = windows[:, ::stride, ::stride]
        inputs, outputs = np.split(windows, groups, axis=3), np.split(kernel, groups, axis=3)
        return np.concatenate(
            [np.einsum("bhwcij,ijcd->bhwd", a, b) for a, b in zip(inputs, outputs, strict=True)], axis=3
        )

    def norm(self, x, name):
        own, stats = self.params[name]["BatchNorm_0"], self.stats[name]["BatchNorm_0"]
        mean = x.mean(axis=(0, 1, 2)) if self.train else stats["mean"]
        var = x.var(axis=(0, 1, 2)) if self.train else stats["var"]
        return (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]


def switch(module, train=True):
    return {} if isinstance(module, PlainStem | Head) else {"train": train}


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def grouped_bottleneck(v, block, x):
    """Xie et al. (2017), Figure 3c."""
    y = relu(v.norm(v.conv(x, "Conv_0"), "_Norm_0"))
    y = relu(v.norm(v.conv(y, "Conv_1", block.stride, block.groups), "_Norm_1"))
    y = v.norm(v.conv(y, "Conv_2"), "_Norm_2")
    return relu(y + v.norm(v.conv(x, "projection", block.stride), "projection_norm"))


def excited_block(v, block, x):
    """Hu et al. (2018), equations 2 to 4 and Figure 3, after two convolutions."""
    u = v.norm(v.conv(relu(v.norm(v.conv(x, "Conv_0"), "_Norm_0")), "Conv_1"), "_Norm_1")
    z = u.mean(axis=(1, 2))
    own = v.params["excitation"]
    assert own["Dense_0"]["kernel"].shape == (8, 8 // block.reduction) and set(own["Dense_0"]) == {"kernel"}
    s = 1 / (1 + np.exp(-relu(z @ own["Dense_0"]["kernel"]) @ own["Dense_1"]["kernel"]))
    return relu(x + s[:, None, None, :] * u)


def pre_activated(v, block, x):
    """He et al. (2016b), Figure 1b: x + conv(relu(norm(conv(relu(norm(x)))))), or with one convolution more.

    Where the shape changes, the shortcut forks off after the first ReLU.
    """
    strides = (block.stride, 1) if isinstance(block, BasicBlock) else (1, block.stride, 1)
    first = y = relu(v.norm(x, "_Norm_0"))
    y = v.conv(y, "Conv_0", strides[0])
    for index, stride in enumerate(strides[1:], 1):
        y = v.conv(relu(v.norm(y, f"_Norm_{index}")), f"Conv_{index}", stride)
    return y + (v.conv(first, "projection", block.stride) if block.projection else x)


def inverted_residual(v, block, x):
    """Sandler et al. (2018), Table 1 and Figure 4d."""
    wide, names = x, iter((f"Conv_{index}", f"_Norm_{index}") for index in range(3))
    if block.expansion > 1:
        conv, norm = next(names)
        wide = relu6(v.norm(v.conv(x, conv), norm))
    conv, norm = next(names)
    wide = v.norm(v.conv(wide, conv, block.stride, groups=wide.shape[-1]), norm)
    assert wide.shape[-1] == block.expansion * x.shape[-1] and wide.max() > 6  # or the test sees no 6
    conv, norm = next(names)
    y = v.norm(v.conv(relu6(wide), conv), norm)
    return x + y if block.stride == 1 and block.channels == x.shape[-1] else y


def mobile_layer(v, block, x):
    return relu6(v.norm(v.conv(x, "Conv_0", block.stride), "_Norm_0"))


def dense_layer(v, block, x):
    """Huang et al. (2017), section 3, DenseNet-B: [x, H(x)]."""
    y = v.conv(relu(v.norm(x, "_Norm_0")), "Conv_0")
    assert y.shape[-1] == 4 * block.growth
    return np.concatenate([x, v.conv(relu(v.norm(y, "_Norm_1")), "Conv_1")], axis=3)


def transition(v, block, x):
    """Half the channels, then the means of 2x2; an odd row and column are lost."""
    y = v.conv(relu(v.norm(x, "_Norm_0")), "Conv_0")
    assert y.shape[-1] == x.shape[-1] // 2
    return (y[:, 0:4:2, 0:4:2] + y[:, 1:4:2, 0:4:2] + y[:, 0:4:2, 1:4:2] + y[:, 1:4:2, 1:4:2]) / 4


def activation_head(v, block, x):
    dense = v.params["head"]["Dense_0"]
    return relu(v.norm(x, "_Norm_0")).mean(axis=(1, 2)) @ dense["kernel"] + dense["bias"]


def plain_stem(v, block, x):
    return v.conv(x, "Conv_0")


CASES = {
    "grouped": (Bottleneck(16, 2, projection=True, width=12, groups=3), grouped_bottleneck),
    "grouped, no stride": (Bottleneck(10, projection=True, width=8, groups=4), grouped_bottleneck),
    "excited": (BasicBlock(8, reduction=4), excited_block),
    "pre-activated": (PreActivationBlock(8), pre_activated),
    "pre-activated, projected": (PreActivationBlock(12, 2, projection=True), pre_activated),
    "pre-activated bottleneck": (PreActivationBottleneck(8), pre_activated),
    "pre-activated bottleneck, widened": (PreActivationBottleneck(16, projection=True), pre_activated),
    "pre-activated bottleneck, projected": (PreActivationBottleneck(16, 2, projection=True), pre_activated),
    "inverted": (InvertedResidual(8), inverted_residual),
    "inverted, no expansion": (InvertedResidual(8, expansion=1), inverted_residual),
    "inverted, no shortcut": (InvertedResidual(6, expansion=2), inverted_residual),
    "inverted, stride": (InvertedResidual(8, 2, expansion=3), inverted_residual),
    "mobile": (MobileLayer(6, 3, 2), mobile_layer),
    "dense": (DenseNetLayer(3), dense_layer),
    "transition": (DenseNetTransition(), transition),
    "head": (ActivationHead(3), activation_head),
    "stem": (PlainStem(5), plain_stem),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_block_equals_numpy(name, train, x64):
    block, reference = CASES[name]
    block = block.clone(**DOUBLE)
    x = np.random.default_rng(1).normal(size=(3, 5, 5, 8))
    variables = Variables(block, x, train)
    apply = jax.jit(lambda tree, x: block.apply(tree, x, mutable=["batch_stats"], **switch(block, train))[0])
    y = apply(variables.tree, x)
    expected = reference(variables, block, x)
    assert y.dtype == np.float64 and np.abs(expected).max() > 0
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


def grouped_and_excited(**given):
    block = {"width": 6, "groups": 3, "reduction": 2, **given}
    layers = [Stem(4, **given), Bottleneck(8, 2, projection=True, **block), Bottleneck(8, **block)]
    return [*layers, Head(3, **dtypes_of(given))]


def pre_activation(**given):
    blocks = [PreActivationBottleneck(8, projection=True, **given), PreActivationBlock(12, 2, **given)]
    return [PlainStem(4, **given), *blocks, *PreActivationBlock(12, **given).parts(), ActivationHead(3, **given)]


def mobile(**given):
    shapes = ((6, 2, 2), (6, 1, 1))
    blocks = [InvertedResidual(*shape, **given) for shape in shapes]
    return [MobileLayer(4, 3, **given), *blocks, Head(3, **dtypes_of(given))]


def dense(**given):
    layers = [Stem(4, **given), DenseNetLayer(2, **given), DenseNetTransition(**given)]
    return [*layers, DenseNetLayer(2, **given), ActivationHead(3, **given)]


def dtypes_of(given):
    return {name: value for name, value in given.items() if "dtype" in name}


NETWORKS = {
    "grouped and excited": grouped_and_excited,
    "pre-activation": pre_activation,
    "mobile": mobile,
    "dense": dense,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_anywhere_is_the_same_function(name, x64):
    layers = [jd.as_layer(layer) for layer in NETWORKS[name](**DOUBLE)]
    x, key = np.random.default_rng(2).normal(size=(4, 8, 8, 3)), jax.random.key(3)

    def run(stage, y):
        apply = jax.jit(lambda *variables: stage.apply(*variables, key=key, batch=0, train=True))
        return apply(*stage.init(key, y), y)

    y, gathered = x, {}
    for index, layer in enumerate(layers):
        y, state = run(Stage((layer,), first=index), y)
        gathered |= state
    expected = run(Stage(tuple(layers)), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), (y, gathered), expected)
    assert y.shape == (4, 3) and len(gathered) >= len(layers) - 2


def test_a_cut_network_trains_as_the_whole(x64):
    rng = np.random.default_rng(0)
    modules = [PlainStem(4), InvertedResidual(4, expansion=2), DenseNetLayer(2), ActivationHead(3)]
    layers = [module.clone(**DOUBLE) for module in modules]
    same_when_cut(layers, rng.normal(size=(4, 8, 8, 3)), rng.integers(0, 3, 4))


def test_training_lowers_the_loss():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, 8)
    block = Bottleneck(8, 2, projection=True, width=6, groups=3, reduction=2, dtype=jnp.bfloat16)
    layers = [MobileLayer(4, 3, 2, dtype=jnp.bfloat16), block, Head(3, dtype=jnp.bfloat16)]
    stages = jd.partition(layers, boundaries=(1,))
    pipeline = jd.Pipeline(stages, schedules.backprop(2), optimizer=jd.stagewise(optax.sgd(0.1)))
    state, losses = pipeline.init(jax.random.key(0), x), []
    for _ in range(4):
        state, metrics = pipeline.step(state, (x, y))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.8 * losses[0] and np.isfinite(losses).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_dtypes_follow_the_user(name, x64):
    """Parameters, activations and logits; batch statistics are in single precision beside computation in half."""
    single, double, half = (np.dtype(dtype) for dtype in (jnp.float32, jnp.float64, jnp.bfloat16))
    for given, kept, computed in (
        ({}, single, single),
        ({"param_dtype": double}, double, double),
        ({"dtype": half}, single, half),
    ):
        layers = [jd.as_layer(layer) for layer in NETWORKS[name](**given)]
        found = list(walk(layers, jax.ShapeDtypeStruct((2, 8, 8, 3), single)))
        assert {leaf.dtype for leaf in jax.tree.leaves([layer.params for layer in found])} == {kept}
        assert kept == double or {leaf.dtype for leaf in jax.tree.leaves([layer.model_state for layer in found])} == {
            single
        }
        assert {leaf.dtype for leaf in jax.tree.leaves([layer.y for layer in found])} == {computed}


@pytest.mark.parametrize("name", NETWORKS)
def test_without_normalisation_each_convolution_has_a_bias(name):
    layers = [jd.as_layer(layer) for layer in NETWORKS[name](normalise=False)]
    for layer in walk(layers, jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)):
        assert not layer.model_state
        for own in jax.tree.leaves(layer.params, is_leaf=lambda tree: "kernel" in tree):
            assert set(own) == {"kernel", "bias"} or own["kernel"].ndim == 2  # an excitation's dense layers


@pytest.mark.parametrize("reduction", [0, 9])
def test_squeeze_needs_a_channel(reduction):
    with pytest.raises(ValueError, match=f"reduction is {reduction}, and the input has 8 channels; write 1 to 8"):
        models.SqueezeExcitation(reduction).init(jax.random.key(0), np.zeros((1, 2, 2, 8)))


def test_convolutions_start_with_variance_two_over_fan_out():
    """Of grouped ones as well, as PyTorch counts: the kernel's size times all output channels."""
    x = jnp.zeros((1, 4, 4, 32))
    modules = Bottleneck(64, projection=True, width=64, groups=2), InvertedResidual(16)
    grouped, depthwise = jax.jit(lambda key: [module.init(key, x, train=True)["params"] for module in modules])(
        jax.random.key(0)
    )
    for kernel, fan_out in ((grouped["Conv_1"], 9 * 64), (depthwise["Conv_1"], 9 * 192), (depthwise["Conv_0"], 192)):
        assert np.asarray(kernel["kernel"]).std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.04)


def test_refuses_images_that_would_vanish():
    with pytest.raises(ValueError, match=r"input is \(2, 1, 5, 8\), too small for a 2x2 mean; write .* 29x29 pixels"):
        DenseNetTransition().init(jax.random.key(0), np.zeros((2, 1, 5, 8), np.float32), train=True)
