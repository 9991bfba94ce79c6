"""VGG networks are those of the paper, of torchvision up to their classifier, and can be cut anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import jaxdecouple as jd
from jaxdecouple import models
from jaxdecouple.models import DenseLayer, VGGLayer, vgg
from tests.models.test_models import images, same_when_cut, shapes

DEPTHS = (11, 13, 16, 19)
# Three dense layers, on 7x7 pixels, for 1000 classes.
TORCHVISIONS_CLASSIFIER = (7 * 7 * 512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("depth", "torchvisions"), [(11, 132_863_336), (13, 133_047_848), (16, 138_357_544), (19, 143_667_240)]
)
def test_parameters(depth, torchvisions):
    params, outputs = shapes(vgg(depth, normalise=False), images(32))
    assert count(params[:-1]) == torchvisions - TORCHVISIONS_CLASSIFIER
    assert count(params[-1]) == 512 * 10 + 10 and outputs[-1].shape == (2, 10)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert len(outputs) == len(kernels) == depth - 2  # one dense layer for the paper's three


def test_parameters_of_vgg11_by_hand():
    below = [3, 64, 128, 256, 256, 512, 512, 512]
    channels = [64, 128, 256, 256, 512, 512, 512, 512]
    kernels = sum(9 * a * b for a, b in zip(below, channels, strict=True))
    params, _ = shapes(models.vgg11(), images(32))
    assert count(params) == kernels + 2 * sum(channels) + 512 * 10 + 10 == 9_228_362
    params, _ = shapes(models.vgg11(normalise=False), images(32))
    assert count(params) == kernels + sum(channels) + 512 * 10 + 10 == 9_225_610


@pytest.mark.parametrize("size", [32, 63, 64])
@pytest.mark.parametrize(("depth", "per_group"), [(11, (1, 1, 2, 2, 2)), (16, (2, 2, 3, 3, 3))])
def test_sizes_halve_after_each_group(depth, per_group, size):
    params, outputs = shapes(vgg(depth, 7), images(size))
    expected = []
    for channels, number in zip((64, 128, 256, 512, 512), per_group, strict=True):
        expected += [(2, size, size, channels)] * (number - 1)
        size //= 2
        expected.append((2, size, size, channels))
    assert [y.shape for y in outputs] == [*expected, (2, 7)]
    assert params[-1][f"{depth - 3:03d}_DenseLayer"]["Dense_0"]["kernel"].shape == (512 * size * size, 7)


def test_layer_equals_numpy():
    """max over 2x2 of relu(norm(conv(x))), the convolution copying the pixel under its centre; an odd row is lost."""
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)
    for normalise in (True, False):
        outputs = []
        for pool in (False, True):
            layer = VGGLayer(3, pool, normalise=normalise)
            variables = layer.init(jax.random.key(0), x, train=True)
            variables["params"]["Conv_0"]["kernel"] = kernel
            outputs.append(np.asarray(layer.apply(variables, x, train=True, mutable=["batch_stats"])[0]))
        normal = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
        expected = np.maximum(normal if normalise else x, 0)
        np.testing.assert_allclose(outputs[0], expected, atol=1e-5)
        pooled = expected[:, :4].reshape(2, 2, 2, 3, 2, 3).max(axis=(2, 4))
        np.testing.assert_allclose(outputs[1], pooled, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_normalisation_or_bias(normalise):
    layers = vgg(13, normalise=normalise)
    params, _ = shapes(layers, images(32))
    for layer, own in zip(layers, params, strict=True):
        (own,) = own.values()
        names = sorted(keystr(path) for path, _ in tree_leaves_with_path(own))
        if isinstance(layer, DenseLayer):
            assert names == ["['Dense_0']['bias']", "['Dense_0']['kernel']"]
        elif normalise:
            norm = "['_Norm_0']['BatchNorm_0']"
            assert names == ["['Conv_0']['kernel']", f"{norm}['bias']", f"{norm}['scale']"]
        else:
            assert names == ["['Conv_0']['bias']", "['Conv_0']['kernel']"]


def test_convolutions_start_with_variance_two_over_fan_out():
    for normalise in (True, False):
        layer = VGGLayer(64, normalise=normalise)
        params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), train=True)["params"]
        assert np.asarray(params["Conv_0"]["kernel"]).std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


def test_layers_within_a_group_are_equal():
    layers = vgg(19)
    assert layers[8] == layers[9] == layers[10] != layers[11]
    assert layers[12] == layers[13] == layers[14] != layers[15]


@pytest.mark.parametrize("normalise", [True, False])
def test_a_cut_network_trains_as_the_whole(normalise, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 32, 32, 1)), rng.integers(0, 3, 2)
    layers = vgg(11, 3, normalise=normalise, param_dtype=jnp.float64)
    trained = same_when_cut(layers, x, y)
    assert any("mean" in name for name in trained) == normalise


@pytest.mark.parametrize("normalise", [True, False])
def test_dtypes_follow_the_user(normalise, x64):
    single, double, half = (np.dtype(dtype) for dtype in (jnp.float32, jnp.float64, jnp.bfloat16))
    for given, of_params, of_outputs in [
        ({}, single, single),
        ({"param_dtype": double}, double, double),
        ({"dtype": half}, single, half),
    ]:
        params, outputs = shapes(vgg(11, normalise=normalise, **given), images(32))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {of_params}
        assert {y.dtype for y in outputs} == {of_outputs}


@pytest.mark.parametrize("shape", [(2, 31, 40, 3), (2, 40, 28, 1), (2, 32, 32), (2, 3072)])
def test_refuses_images_that_would_vanish(shape):
    said = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"layer 0 .* the input is {said}; write images \[B, H, W, C\] of .* 32x32"):
        jd.partition(models.vgg11(), 2, sample=np.zeros(shape, np.float32))


def test_each_layer_says_what_it_and_those_above_need():
    smallest = [(layer.smallest, layer.pool) for layer in vgg(13)[:-1]]
    assert smallest == [(size, pool) for size in (32, 16, 8, 4, 2) for pool in (False, True)]
    with pytest.raises(ValueError, match="at least 2x2 pixels"):
        VGGLayer(3, pool=True).init(jax.random.key(0), np.zeros((2, 2, 1, 3), np.float32), train=True)


@pytest.mark.parametrize(("depth", "near"), [(8, 11), (12, 11), (14, 13), (17, 16), (152, 19)])
def test_refuses_other_depths(depth, near):
    with pytest.raises(ValueError, match=f"depth is {depth}; .* VGG are 11, 13, 16, 19: write {near}, the nearest"):
        vgg(depth)


@pytest.mark.parametrize("depth", DEPTHS)
def test_named_depths(depth):
    named = getattr(models, f"vgg{depth}")
    assert named(5, normalise=False) == vgg(depth, 5, normalise=False)
    assert models.by_name(f"vgg{depth}", 5, normalise=False, dtype=jnp.bfloat16) == named(
        5, normalise=False, dtype=jnp.bfloat16
    )
