"""The models are those of the papers: parameter counts, shapes, padding, shortcuts, and the user's dtypes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import models, schedules
from jaxdecouple.models import BasicBlock, ConvLayer, Stem, resnet


def shapes(layers, x):
    """Parameters, and the output of every layer, as shapes and dtypes; nothing is computed."""
    params, outputs = [], []
    for index, layer in enumerate(layers):
        stage = jd.Stage((jd.as_layer(layer),), first=index)

        def both(key, x, stage=stage):
            params, state = stage.init(key, x)
            return params, stage.apply(params, state, x, key=key, batch=0, train=True)

        layer_params, (x, _) = jax.eval_shape(both, jax.random.key(0), x)
        params.append(layer_params)
        outputs.append(x)
    return params, outputs


def images(size, dtype=np.float32):
    return jax.ShapeDtypeStruct((2, size, size, 3), dtype)


def count(depth):
    """Parameters of a CIFAR ResNet, written out: convolutions, two numbers per normalised channel, the classifier."""
    n, total, below = (depth - 2) // 6, 9 * 3 * 16 + 2 * 16, 16
    for channels in (16, 32, 64):
        for _ in range(n):
            total += 9 * below * channels + 9 * channels * channels + 2 * 2 * channels
            below = channels
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "exactly", "published"),  # He et al. (2016), Table 6, in millions
    [(20, 269_722, 0.27), (32, 464_154, 0.46), (44, 658_586, 0.66), (56, 853_018, 0.85), (110, 1_727_962, 1.7)],
)
def test_parameters_of_the_papers_resnets(depth, exactly, published):
    params, outputs = shapes(resnet(depth), images(32))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == exactly == count(depth)
    assert round(total / 1e6, 2 if published < 1 else 1) == published
    assert outputs[-1].shape == (2, 10)


@pytest.mark.parametrize("size", [32, 33, 40])
def test_sizes_halve_twice(size):
    _, outputs = shapes(resnet(14, num_classes=7), images(size))
    half, quarter = -(-size // 2), -(-size // 4)
    blocks = [(2, size, size, 16)] * 3 + [(2, half, half, 32)] * 2 + [(2, quarter, quarter, 64)] * 2
    assert [y.shape for y in outputs] == [*blocks, (2, 7)]


def test_depth_counts_layers_with_weights():
    for depth in (8, 20, 56):
        params, _ = shapes(resnet(depth), images(8))
        kernels = [leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1]
        assert len(kernels) == depth


def test_named_depths():
    for name in ("resnet8", "resnet20", "resnet32", "resnet56", "resnet110"):
        depth = int(name.removeprefix("resnet"))
        layers = getattr(models, name)(num_classes=5)
        assert layers == resnet(depth, 5)
        assert len(layers) == (depth - 2) // 2 + 2


@pytest.mark.parametrize(("depth", "advice"), [(2, "8 or 14"), (11, "8 or 14"), (19, "14 or 20"), (21, "20 or 26")])
def test_refuses_other_depths(depth, advice):
    with pytest.raises(ValueError, match=f"depth is {depth}; .* 6n . 2 layers: write {advice}"):
        resnet(depth)


def block_and_parameters(x, channels, stride):
    """A block and its parameters, both convolutions copying the first channels of the pixel under their centre."""
    block = BasicBlock(channels, stride)
    variables = block.init(jax.random.key(0), x, train=False)
    for name in ("Conv_0", "Conv_1"):
        kernel = np.zeros_like(variables["params"][name]["kernel"])
        kernel[1, 1] = np.eye(*kernel.shape[2:])
        variables["params"][name]["kernel"] = kernel
    return block, variables


def test_stride_and_padding_are_pytorchs():
    # With one pixel of padding on each side, a convolution of stride 2 is centred on the pixels 0, 2, 4, ...; padding
    # as "SAME" would centre it on 1, 3, 5, ... and away from the shortcut's.
    x = np.random.default_rng(0).uniform(size=(2, 6, 6, 4)).astype(np.float32)
    block, variables = block_and_parameters(x, channels=4, stride=2)
    y = block.apply(variables, x, train=False)
    np.testing.assert_allclose(y, 2 * x[:, ::2, ::2], rtol=1e-4)


def test_shortcut_subsamples_and_pads_with_zero_channels():
    x = np.random.default_rng(0).uniform(size=(2, 5, 5, 3)).astype(np.float32)
    block, variables = block_and_parameters(x, channels=6, stride=2)
    variables["params"] = jax.tree.map(np.zeros_like, variables["params"])
    y = block.apply(variables, x, train=False)
    expected = np.zeros((2, 3, 3, 6), np.float32)
    expected[..., 1:4] = x[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


def test_block_in_training_equals_numpy():
    """relu(x + norm(conv(relu(norm(conv(x)))))), with statistics of the batch, and running averages of 0.9."""
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    block, variables = block_and_parameters(x, channels=2, stride=1)
    y, updated = block.apply(variables, x, train=True, mutable=["batch_stats"])

    def norm(z):
        return (z - z.mean(axis=(0, 1, 2))) / np.sqrt(z.var(axis=(0, 1, 2)) + 1e-5)

    inner = np.maximum(norm(x), 0)
    np.testing.assert_allclose(y, np.maximum(x + norm(inner), 0), atol=1e-5)
    for name, z in (("_Norm_0", x), ("_Norm_1", inner)):
        stats = updated["batch_stats"][name]["BatchNorm_0"]
        np.testing.assert_allclose(stats["mean"], 0.1 * z.mean(axis=(0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * z.var(axis=(0, 1, 2)), atol=1e-6)


def test_convolutions_start_with_variance_two_over_fan_out():
    x = jnp.zeros((1, 4, 4, 32))
    params = BasicBlock(64).init(jax.random.key(0), x, train=True)["params"]
    for name in ("Conv_0", "Conv_1"):
        kernel = np.asarray(params[name]["kernel"])
        assert "bias" not in params[name]
        assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


def test_head_is_the_mean_over_space_and_a_dense_layer():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    head = models.Head(num_classes=3)
    variables = head.init(jax.random.key(0), x)
    dense = variables["params"]["Dense_0"]
    np.testing.assert_allclose(head.apply(variables, x), x.mean(axis=(1, 2)) @ dense["kernel"], atol=1e-6)
    assert not dense["bias"].any()


def test_stem_ends_in_a_relu():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    y, _ = Stem().init_with_output(jax.random.key(0), x, train=True)
    assert y.shape == (2, 8, 8, 16) and y.min() == 0


BUILD = {
    "resnet": lambda **dtypes: resnet(8, **dtypes),
    "resnet, not normalised": lambda **dtypes: resnet(8, normalise=False, **dtypes),
    "mlp": lambda **dtypes: models.mlp(10, hidden=(4, 4), **dtypes),
    "cnn": lambda **dtypes: models.cnn(10, channels=(4, 4), hidden=(4,), **dtypes),
}


@pytest.mark.parametrize("model", BUILD)
def test_single_precision_by_default(model):
    params, outputs = shapes(BUILD[model](), images(8))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {np.dtype(np.float32)}


@pytest.mark.parametrize("model", BUILD)
def test_double_precision(model, x64):
    params, outputs = shapes(BUILD[model](param_dtype=jnp.float64), images(8, np.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {np.dtype(np.float64)}


@pytest.mark.parametrize("model", BUILD)
def test_half_precision(model):
    params, outputs = shapes(BUILD[model](dtype=jnp.bfloat16), images(8))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    params, outputs = shapes(BUILD[model](param_dtype=jnp.bfloat16), images(8, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {np.dtype(jnp.bfloat16)}


def test_everything_is_computed_in_the_given_dtype():
    for module in (Stem(dtype=jnp.bfloat16), BasicBlock(3, dtype=jnp.bfloat16)):

        def run(key, x, module=module):
            variables = module.init(key, x, train=True)
            return module.apply(variables, x, train=False, capture_intermediates=True)[1]["intermediates"]

        computed = jax.tree.leaves(jax.eval_shape(run, jax.random.key(0), images(8, jnp.bfloat16)))
        assert len(computed) >= 4 and {leaf.dtype for leaf in computed} == {np.dtype(jnp.bfloat16)}


def test_mlp_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 2, 1)).astype(np.float32)
    layers = models.mlp(4, hidden=(5, 6), activation=jnp.tanh)
    assert [layer.features for layer in layers] == [5, 6, 4]
    y = expected = x
    for layer in layers:
        variables = layer.init(jax.random.key(1), y)
        dense = variables["params"]["Dense_0"]
        dense["bias"] = rng.normal(size=dense["bias"].shape).astype(np.float32)
        y = layer.apply(variables, y)
        expected = expected.reshape(3, -1) @ np.asarray(dense["kernel"]) + dense["bias"]
        expected = np.tanh(expected) if layer is not layers[-1] else expected
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert len(models.mlp(2, hidden=())) == 1


def after_one_batch(layers, x, y, num_stages, schedule):
    """Parameters and model state, by layer, after one batch, and nothing left in flight: no method has been stale."""
    pipeline = jd.Pipeline(
        jd.partition(layers, num_stages, sample=x), schedule(num_stages), optimizer=jd.stagewise(optax.sgd(0.1))
    )
    state = pipeline.init(jax.random.key(0), x)
    before = jax.device_get([stage.params for stage in state.stages])
    state, _ = pipeline.step(state, (x, y))
    stages = jax.device_get(pipeline.flush(state).stages)
    after = [stage.params for stage in stages]
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    trees = [tree for stage in stages for tree in (stage.params, stage.model_state)]
    return {
        f"{name}{jax.tree_util.keystr(path)}": leaf
        for tree in trees
        for name, own in tree.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(own)
    }


def same_when_cut(layers, x, y):
    whole = after_one_batch(layers, x, y, 1, schedules.backprop)
    cut = after_one_batch(layers, x, y, 2, schedules.fdg)
    assert whole.keys() == cut.keys()
    for name, expected in whole.items():
        np.testing.assert_allclose(cut[name], expected, rtol=0, atol=1e-12)
    return whole


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        (resnet(8, 3, normalise=False, split_blocks=True, param_dtype=jnp.float64), 8),
        (models.cnn(3, channels=(2, 3), hidden=(4,), activation=nn.sigmoid, param_dtype=jnp.float64), 7),
    ],
    ids=["resnet", "cnn"],
)
def test_networks_without_normalisation_train_when_cut(layers, size, x64):
    rng = np.random.default_rng(0)
    trained = same_when_cut(layers, rng.normal(size=(4, size, size, 3)), rng.integers(0, 3, 4))
    assert len(trained) == 2 * sum(leaf.ndim > 1 for leaf in trained.values())  # of each layer a kernel and a bias


def test_resnets_without_normalisation():
    """A bias for each convolution, in place of two numbers per normalised channel; the kernels start the same."""
    for split_blocks in (False, True):
        params, outputs = shapes(resnet(8, normalise=False, split_blocks=split_blocks), images(32))
        channels = 16 + 2 * (16 + 32 + 64)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count(8) - channels == 75_050
        assert outputs[-1].shape == (2, 10)
    assert models.by_name("resnet8", normalise=False) == models.resnet8(normalise=False) != models.resnet8()
    x = jnp.ones((2, 8, 8, 16))
    whole, without = (BasicBlock(16, 2, normalise=given).init(jax.random.key(0), x, True) for given in (True, False))
    assert set(without) == {"params"} and set(without["params"]) == {"Conv_0", "Conv_1"}
    for name, layer in without["params"].items():
        np.testing.assert_array_equal(layer["kernel"], whole["params"][name]["kernel"])
        assert set(layer) == {"kernel", "bias"} and not layer["bias"].any()


def test_cnn_is_for_mnist_by_default():
    params, outputs = shapes(models.cnn(), jax.ShapeDtypeStruct((2, 28, 28, 1), np.float32))
    assert [y.shape for y in outputs] == [(2, 14, 14, 32), (2, 7, 7, 64), (2, 4, 4, 64), (2, 128), (2, 10)]
    by_layer = [sum(leaf.size for leaf in jax.tree.leaves(layer)) for layer in params]
    assert by_layer == [25 * 32 + 32, 25 * 32 * 64 + 64, 25 * 64 * 64 + 64, 16 * 64 * 128 + 128, 1290]


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 2)])
def test_convolutional_layer_equals_numpy(size):
    """Means over the cells that there are: those outside are not a number here, and left out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    layer = ConvLayer(4, nn.sigmoid)
    conv = layer.init(jax.random.key(0), x)["params"]["Conv_0"]
    conv["bias"] = rng.normal(size=4).astype(np.float32)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    y = 1 / (1 + np.exp(-np.einsum("bhwcij,ijcd->bhwd", windows, conv["kernel"]) - conv["bias"]))
    half = [-(-length // 2) for length in size]
    y = np.pad(y, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), constant_values=np.nan)
    expected = np.nanmean(y.reshape(2, half[0], 2, half[1], 2, 4), axis=(2, 4))
    np.testing.assert_allclose(layer.apply({"params": {"Conv_0": conv}}, x), expected, atol=1e-5)


def test_cnn_has_the_given_layers():
    layers = models.cnn(3, channels=(4, 5), hidden=(6, 7), activation=nn.sigmoid)
    conv = [ConvLayer(4, nn.sigmoid), ConvLayer(5, nn.sigmoid)]
    assert layers == [*conv, *models.mlp(3, hidden=(6, 7), activation=nn.sigmoid)]
    assert models.cnn(3, channels=(), hidden=(6,)) == models.mlp(3, hidden=(6,))


def test_cnn_keeps_single_precision_where_double_is_the_default(x64):
    _, outputs = shapes(BUILD["cnn"](), images(7))
    assert {y.dtype for y in outputs} == {np.dtype(np.float32)}


def test_cnn_refuses_what_is_no_image():
    # Flax would take three axes for a single image.
    with pytest.raises(ValueError, match=r"the input is \(2, 28, 28\); write images \[B, H, W, C\], grey .* C = 1"):
        ConvLayer(4).init(jax.random.key(0), np.zeros((2, 28, 28), np.float32))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_models_without_normalisation_refuse_to_leave_it_out(name):
    says = f"normalise is False, but '{name}' never .*write normalise=True, .*resnet<6n.2>, .*resnet18.*vgg19"
    with pytest.raises(ValueError, match=says):
        models.by_name(name, normalise=False)
