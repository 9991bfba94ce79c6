"""The ImageNet residual networks are torchvision's: parameter counts, shapes, padding, strides and shortcuts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecouple import models
from jaxdecouple.models import BasicBlock, Bottleneck, Head, PoolingStem, Stem, imagenet_resnet, resnet

DEPTHS = (18, 34, 50, 101, 152)


@functools.cache  # equal layers are traced once, whichever network they are in
def trace(layer, x):
    switch = {} if isinstance(layer, Head) else {"train": True}
    return jax.eval_shape(lambda key, x: layer.init_with_output(key, x, **switch), jax.random.key(0), x)


def shapes(layers, x):
    """Parameters, and the output of every layer, as shapes and dtypes; nothing is computed."""
    params, outputs = [], []
    for layer in layers:
        x, variables = trace(layer, x)
        params.append(variables["params"])
        outputs.append(x)
    return params, outputs


def images(size, dtype=np.float32):
    return jax.ShapeDtypeStruct((2, size, size, 3), dtype)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("depth", "exactly", "small"),  # torchvision's, 1000 classes; with the stem for small images, 10 classes
    [
        (18, 11_689_512, 11_173_962),  # "11.2M" in FDG, Table III
        (34, 21_797_672, 21_282_122),
        (50, 25_557_032, 23_520_842),
        (101, 44_549_160, 42_512_970),
        (152, 60_192_808, 58_156_618),
    ],
)
@pytest.mark.parametrize("split_blocks", [False, True])
def test_parameters(depth, exactly, small, split_blocks):
    layers = imagenet_resnet(depth, split_blocks=split_blocks)
    params, outputs = shapes(layers, images(224))
    assert count(params) == exactly and outputs[-1].shape == (2, 1000)
    kernels = [path for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.ndim > 1]
    assert sum("projection" not in jax.tree_util.keystr(path) for path in kernels) == depth
    if split_blocks:
        assert len(layers) == depth
    layers = imagenet_resnet(depth, 10, small_images=True, split_blocks=split_blocks)
    params, outputs = shapes(layers, images(32))
    assert count(params) == small and outputs[-1].shape == (2, 10)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    ("size", "small_images", "sizes"),  # as PyTorch: each stride halves, and rounds up
    [
        (224, False, (56, 28, 14, 7)),
        (225, False, (57, 29, 15, 8)),
        (32, False, (8, 4, 2, 1)),
        (32, True, (32, 16, 8, 4)),
    ],
)
def test_sizes_halve(depth, size, small_images, sizes):
    _, (stem, *blocks, logits) = shapes(imagenet_resnet(depth, 7, small_images=small_images), images(size))
    assert stem.shape == (2, sizes[0], sizes[0], 64) and logits.shape == (2, 7)
    groups = [shape for shape, _ in itertools.groupby(y.shape for y in blocks)]
    width = 64 if depth == 18 else 256
    assert groups == [(2, size, size, width * 2**group) for group, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("layers", "lengths"),
    [
        (resnet(20), [1, 3, 1, 2, 1, 2, 1]),
        (imagenet_resnet(18), [1, 2, 1, 1, 1, 1, 1, 1, 1]),
        (imagenet_resnet(50), [1, 1, 2, 1, 3, 1, 5, 1, 2, 1]),
        (imagenet_resnet(101, small_images=True), [1, 1, 2, 1, 3, 1, 22, 1, 2, 1]),
    ],
)
def test_runs_of_identical_layers(layers, lengths):
    """Layers that are equal modules, one after another, have the same parameters, inputs and outputs in shape."""
    assert [len(list(run)) for _, run in itertools.groupby(layers)] == lengths
    assert all(len({hash(layer) for layer in run}) == 1 for _, run in itertools.groupby(layers))
    params, outputs = shapes(layers, images(32))
    inputs = [images(32), *outputs]
    position = 0
    for length in lengths:
        signatures = [str((params[i], inputs[i].shape, outputs[i].shape)) for i in range(position, position + length)]
        assert len(set(signatures)) == 1
        position += length


def test_stem_is_pytorchs():
    # Padding as "SAME" would centre the convolution on the pixels 1, 3, 5, ... and start the maxima one further.
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    stem = PoolingStem(3)
    variables = stem.init(jax.random.key(0), x, train=False)
    kernel = np.zeros((7, 7, 3, 3), np.float32)
    kernel[3, 3] = np.eye(3)
    variables["params"]["Conv_0"]["kernel"] = kernel
    inner = np.pad(np.maximum(x[:, ::2, ::2], 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[inner[:, i : i + 3, j : j + 3].max(axis=(1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
    expected = np.moveaxis(np.array(windows), 2, 0)
    np.testing.assert_allclose(stem.apply(variables, x, train=False), expected, rtol=1e-4)


def copying(block, x):
    """Variables of a block whose convolutions all copy their first channels from the pixel under their centre."""
    variables = block.init(jax.random.key(0), x, train=False)
    for layer in variables["params"].values():
        if "kernel" in layer:
            kernel = np.zeros_like(layer["kernel"])
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = np.eye(*kernel.shape[2:])
            layer["kernel"] = kernel
    return variables


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize(
    "block", [BasicBlock(8, 2, projection=True), Bottleneck(8, 2, projection=True), Bottleneck(8, projection=True)]
)
def test_convolutions_and_projection_have_the_same_centres(block, size):
    x = np.random.default_rng(0).uniform(size=(2, size, size, 2)).astype(np.float32)
    y = block.apply(copying(block, x), x, train=False)
    expected = np.zeros((*x[:, :: block.stride, :: block.stride].shape[:3], 8), np.float32)
    expected[..., :2] = 2 * x[:, :: block.stride, :: block.stride]
    np.testing.assert_allclose(y, expected, rtol=1e-4)


def test_bottleneck_has_its_stride_in_the_3x3_convolution():
    def run(key, x):
        return Bottleneck(16, 2, projection=True).init_with_output(key, x, train=True, capture_intermediates=True)[1]

    variables = jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((2, 6, 6, 8), np.float32))
    inner = {name: value["__call__"][0].shape for name, value in variables["intermediates"].items() if "Conv" in name}
    assert inner == {"Conv_0": (2, 6, 6, 4), "Conv_1": (2, 3, 3, 4), "Conv_2": (2, 3, 3, 16)}
    kernels = {name: value["kernel"].shape[:2] for name, value in variables["params"].items() if "kernel" in value}
    assert kernels == {"Conv_0": (1, 1), "Conv_1": (3, 3), "Conv_2": (1, 1), "projection": (1, 1)}


def test_convolutions_start_with_variance_two_over_fan_out():
    x = jnp.zeros((1, 2, 2, 64))
    params = Bottleneck(256, projection=True).init(jax.random.key(0), x, train=True)["params"]
    for name, fan_out in {"Conv_0": 64, "Conv_1": 9 * 64, "Conv_2": 256, "projection": 256}.items():
        assert np.asarray(params[name]["kernel"]).std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_small_images_change_the_stem_only():
    assert imagenet_resnet(50)[1:] == imagenet_resnet(50, small_images=True)[1:]
    assert imagenet_resnet(50)[0] == PoolingStem(64) and imagenet_resnet(50, small_images=True)[0] == Stem(64)


@pytest.mark.parametrize("depth", DEPTHS)
def test_named_depths(depth):
    named = getattr(models, f"resnet{depth}")
    assert named(5, split_blocks=True) == imagenet_resnet(depth, 5, split_blocks=True)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("split_blocks", [False, True])
def test_dtypes_follow_the_user(depth, split_blocks, x64):
    build = functools.partial(imagenet_resnet, depth, small_images=depth == 18, split_blocks=split_blocks)
    for given, dtype in [
        ({}, jnp.float32),
        ({"param_dtype": jnp.float64}, jnp.float64),
        ({"dtype": jnp.bfloat16},) * 2,
    ]:
        dtype = given.get("dtype", dtype)
        params, outputs = shapes(build(**given), images(32, np.float32))
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(given.get("param_dtype", jnp.float32))}


@pytest.mark.parametrize(("depth", "near"), [(8, 18), (20, 18), (56, 50), (110, 101), (1000, 152)])
def test_refuses_other_depths(depth, near):
    with pytest.raises(ValueError, match=f"depth is {depth}; .* 18, 34, 50, 101 or 152 layers: write {near}, the"):
        imagenet_resnet(depth)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mlp", models.mlp(7)),
        ("cnn", models.cnn(7)),
        *((f"vgg{depth}", models.vgg(depth, 7)) for depth in (11, 13, 16, 19)),
        ("resnet8", resnet(8, 7, split_blocks=True)),
        ("resnet56", resnet(56, 7, split_blocks=True)),
        # 50 and 152 are 6n + 2 as well.
        *((f"resnet{depth}", imagenet_resnet(depth, 7, small_images=True, split_blocks=True)) for depth in DEPTHS),
    ],
)
def test_by_name(name, model):
    assert models.by_name(name, 7, small_images=True, split_blocks=True) == model


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("resnt20", "did you mean 'resnet20'"),
        ("ResNet50", "did you mean 'resnet50'"),
        ("mpl", "did you mean 'mlp'"),
        ("vgg", "did you mean 'vgg"),
        ("transformer", "write mlp, cnn, resnet<6n.2>, .*, or one of: resnet18, .*, vgg19$"),
        ("resnet21", "depth is 21; .*write 20 or 26; or one of: resnet18, resnet34"),
        ("vgg12", "depth is 12; the depths of VGG are 11, 13, 16, 19: write 11, the nearest$"),
    ],
)
def test_unknown_names_are_refused(name, advice):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; {advice}".replace("'; depth", "': depth")):
        models.by_name(name)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("small_images", [False, True])
def test_without_normalisation(depth, small_images):
    """A bias for each convolution, projections included, in place of two numbers per normalised channel."""
    layers = imagenet_resnet(depth, 10, small_images=small_images, normalise=False)
    assert layers == models.by_name(f"resnet{depth}", small_images=small_images, normalise=False)
    without, outputs = shapes(layers, images(32))
    whole, outputs_of_whole = shapes(imagenet_resnet(depth, 10, small_images=small_images), images(32))
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}
    assert outputs == outputs_of_whole
    assert count(without) == count(whole) - sum(leaf.size for name, leaf in named.items() if "scale" in name)
    assert not any("orm" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(without))
