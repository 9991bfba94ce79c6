"""The networks of the papers: published numbers of parameters, the sizes of their tables, layers that are one loop."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

import jaxdecouple as jd
from jaxdecouple import models
from jaxdecouple.models import Bottleneck, ConvLayer, PoolingStem, Stem, by_name, imagenet_resnet, resnet, vgg
from jaxdecouple.network.stack import LayerStack, stack_layers
from tests.oracles.modules import count, images, trace


def shapes(layers, x):
    """Parameters, and the output of every layer, as shapes and dtypes; nothing is computed."""
    params, outputs = [], []
    for layer in layers:
        x, variables = trace(layer, x)
        params.append(variables["params"])
        outputs.append(x)
    return params, outputs


def named(name, classes, size, **form):
    return shapes(by_name(name, classes, **form), images(size))


def kernels(params):
    """Of layers with weights, projections of shortcuts aside."""
    found = [keystr(path) for path, leaf in tree_leaves_with_path(params) if len(leaf.shape) > 1]
    return [path for path in found if "projection" not in path and "excitation" not in path]


def basic(depth, classes=10):
    """Parameters of a CIFAR ResNet of basic blocks: convolutions, and a scale and a bias for each channel."""
    n, total, below = (depth - 2) // 6, 9 * 3 * 16 + 2 * 16, 16
    for c in (16, 32, 64):
        total += 9 * below * c + (2 * n - 1) * 9 * c * c + 2 * n * 2 * c
        below = c
    return total + 65 * classes


def bottlenecks(depth, pre_activated=False, classes=10):
    """Parameters of a CIFAR ResNet of bottlenecks of widths c, c, 4c, with a projection in each group's first."""
    n, total, below = (depth - 2) // 9, 9 * 3 * 16, 16
    for c in (16, 32, 64):
        first, other = (below * c + 13 * c * c, 4 * c * c + 13 * c * c)
        total += first + below * 4 * c + (n - 1) * other
        after = n * (c + c + 4 * c) + 4 * c  # normalised channels: after each convolution and projection,
        before = n * (c + c) + below + (n - 1) * 4 * c  # or before each convolution
        total += 2 * (before if pre_activated else after)
        below = 4 * c
    return total + 2 * (256 if pre_activated else 16) + 257 * classes


def wide(depth, k, classes=10):
    """Parameters of WRN-depth-k, Zagoruyko & Komodakis (2016), Table 1; normalised are inputs of 3x3 convolutions."""
    n, total, below = (depth - 4) // 6, 9 * 3 * 16, 16
    for c in (16 * k, 32 * k, 64 * k):
        total += below * c + 9 * below * c + (2 * n - 1) * 9 * c * c + 2 * (below + (2 * n - 1) * c)
        below = c
    return total + 2 * below + (below + 1) * classes


def grouped(cardinality, d, classes=10):
    """Parameters of ResNeXt-29; Xie et al. (2017), section 5.3: a block has C (256 d + 9 d d + 256 d) weights."""
    total, below = 9 * 3 * 64 + 2 * 64, 64
    for out, w in ((256, d), (512, 2 * d), (1024, 4 * d)):
        for inputs in (below, out, out):
            total += cardinality * (inputs * w + 9 * w * w + w * out) + 2 * (2 * cardinality * w + out)
        total += below * out + 2 * out
        below = out
    return total + (1024 + 1) * classes


def straight(torchvisions, channels, classes=10):
    """Parameters of a VGG network with one dense layer for torchvision's three, and with batch normalisation."""
    classifier = (7 * 7 * 512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    return torchvisions - classifier + channels + 513 * classes


def excited(torchvisions, sizes, width):
    """Hu et al. (2018), equation 5: 2 / r times the sum of C * C over all blocks more than without."""
    return torchvisions + sum(2 * n * (width * 2**group) ** 2 // 16 for group, n in enumerate(sizes))


CIFAR = {  # 10 classes: exactly, independently, as the papers print it in millions, layers with weights
    "resnet20": (269_722, basic(20), 0.27, 20),
    "resnet32": (464_154, basic(32), 0.46, 32),
    "resnet44": (658_586, basic(44), 0.66, 44),
    "resnet56": (853_018, basic(56), 0.85, 56),  # FDG's Table III says 0.46 M, which is ResNet-32
    "resnet98": (1_533_530, basic(98), None, 98),
    "resnet110": (1_727_962, basic(110), 1.73, 110),
    "resnet164": (2_602_906, basic(164), None, 164),
    "resnet1202": (19_421_274, basic(1202), 19.4, 1202),
    "resnet164_bottleneck": (1_704_154, bottlenecks(164), 1.7, 164),
    "resnet1001": (10_328_602, bottlenecks(1001), 10.2, 1001),
    "preact_resnet164": (1_703_258, bottlenecks(164, pre_activated=True), 1.7, 164),
    "preact_resnet1001": (10_327_706, bottlenecks(1001, pre_activated=True), 10.2, 1001),
    "wrn28_10": (36_479_194, wide(28, 10), 36.5, 26),  # it counts convolutions, of which three are projections
    "wrn16_8": (10_961_370, wide(16, 8), 11.0, 14),
    "wrn40_4": (8_949_210, wide(40, 4), 8.9, 38),
    "resnext29_8x64d": (34_426_698, grouped(8, 64), 34.4, 29),
    "resnext29_16x64d": (68_155_210, grouped(16, 64), 68.1, 29),
    "vgg11": (9_228_362, straight(132_863_336, 2752), None, 9),
    "vgg13": (9_413_066, straight(133_047_848, 2944), None, 11),
    "vgg16": (14_724_042, straight(138_357_544, 4224), None, 14),
    "vgg19": (20_035_018, straight(143_667_240, 5504), None, 17),
}


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_of_the_networks_for_cifar(name):
    exactly, independently, papers, depth = CIFAR[name]
    params, outputs = named(name, 10, 32)
    assert count(params) == exactly == independently
    assert papers is None or exactly / 1e6 == pytest.approx(papers, rel=0.015)
    assert outputs[-1].shape == (2, 10) and len(kernels(params)) == depth
    if not name.startswith("vgg"):  # split, each layer with weights is a module
        split, outputs = named(name, 10, 32, split_blocks=True)
        assert len(split) == depth and count(split) == exactly and outputs[-1].shape == (2, 10)


IMAGENET = {  # torchvision's, 1000 classes; of SE-ResNets by the paper's equation; layers with weights
    "resnet18": (11_689_512, 18),
    "resnet34": (21_797_672, 34),
    "resnet50": (25_557_032, 50),
    "resnet101": (44_549_160, 101),
    "resnet152": (60_192_808, 152),
    "se_resnet18": (excited(11_689_512, (2, 2, 2, 2), 64), 18),
    "se_resnet50": (excited(25_557_032, (3, 4, 6, 3), 256), 50),
    "mobilenet_v2": (3_504_872, 53),
    "densenet121": (7_978_856, 121),
}
SMALL = {  # parameters, classes, size of the images, layers with weights
    "resnet18": (11_173_962, 10, 32),  # "11.2M" in FDG, Table III
    "resnet34": (21_282_122, 10, 32),
    "resnet50": (23_520_842, 10, 32),
    "resnet101": (42_512_970, 10, 32),
    "resnet152": (58_156_618, 10, 32),
    "se_resnet18": (11_776_552 - 513 * 800 - (49 - 9) * 3 * 64, 200, 64),
    "mobilenet_v2": (3_504_872 - 1281 * 800, 200, 64),  # only the ends change
}


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_of_the_networks_for_imagenet(name):
    exactly, depth = IMAGENET[name]
    forms = [(exactly, 1000, 224, False), *((*SMALL[name], True) for _ in range(name in SMALL))]
    for (expected, classes, size, small), split in itertools.product(forms, (False, True)):
        params, outputs = named(name, classes, size, small_images=small, split_blocks=split)
        assert count(params) == expected and outputs[-1].shape == (2, classes)
        assert len(kernels(params)) == depth
        assert not (split and "resnet" in name) or len(params) == depth


MOBILE = (32, 16, 24, 32, 64, 96, 160, 320, 1280)
VGG = (128, 128, 256, 256, 512, 512, 512)
SIZES = [  # (rows, channels) of the papers' tables; as PyTorch, each stride halves, and rounds up
    *(
        (name, 225, False, tuple(zip((57, 29, 15, 8), channels, strict=True)))
        for name, channels in (("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048)))
    ),
    ("resnet18", 224, False, ((56, 64), (28, 128), (14, 256), (7, 512))),
    ("resnet18", 32, False, ((8, 64), (4, 128), (2, 256), (1, 512))),
    ("resnet50", 32, True, ((32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048))),
    ("resnet14", 32, False, ((32, 16), (16, 32), (8, 64))),
    ("resnet14", 33, False, ((33, 16), (17, 32), (9, 64))),
    ("resnet164_bottleneck", 32, False, ((32, 16), (32, 64), (16, 128), (8, 256))),
    ("preact_resnet164", 33, False, ((33, 16), (33, 64), (17, 128), (9, 256))),
    ("wrn28_10", 32, False, ((32, 16), (32, 160), (16, 320), (8, 640))),
    ("resnext29", 32, False, ((32, 64), (32, 256), (16, 512), (8, 1024))),
    ("se_resnet18", 224, False, ((56, 64), (28, 128), (14, 256), (7, 512))),
    ("se_resnet18", 32, True, ((32, 64), (16, 128), (8, 256), (4, 512))),
    ("mobilenet_v2", 224, False, tuple(zip((112, 112, 56, 28, 14, 14, 7, 7, 7), MOBILE, strict=True))),
    ("mobilenet_v2", 64, True, tuple(zip((64, 64, 64, 32, 16, 16, 8, 8, 8), MOBILE, strict=True))),
    ("vgg11", 32, False, ((16, 64), (8, 128), (8, 256), (4, 256), (4, 512), (2, 512), (1, 512))),
    ("vgg16", 63, False, ((63, 64), (31, 64), *zip((31, 15, 15, 7, 7, 3, 1), VGG, strict=True))),
]


@pytest.mark.parametrize(("name", "size", "small_images", "groups"), SIZES, ids=str)
def test_sizes_are_those_of_the_papers(name, size, small_images, groups):
    outputs = [y.shape for y in named(name, 7, size, small_images=small_images)[1]]
    found = tuple(shape[1::2] for shape, _ in itertools.groupby(outputs[:-1]))
    assert found[-len(groups) :] == groups and outputs[-1] == (2, 7)
    assert found[: -len(groups)] in ((), ((groups[0][0], 64),))  # before bottlenecks, the stem


def test_densenet_grows_and_halves():
    """Huang et al. (2017), Table 1: 6, 12, 24 and 16 layers of 32 channels, and transitions to half of them."""
    outputs = [y.shape[1::2] for y in named("densenet121", 1000, 224)[1]][:-1]
    expected, channels = [], 32
    for rows, layers in ((56, 6), (28, 12), (14, 24), (7, 16)):
        channels = 64 if rows == 56 else channels // 2
        expected += [(rows, channels + 32 * index) for index in range(layers + 1)]
        channels += 32 * layers
    assert outputs == expected and expected[-1] == (7, 1024)


@pytest.mark.parametrize(
    ("depth", "growth", "blocks"),  # Huang et al. (2017), Table 1
    [(121, 32, (6, 12, 24, 16)), (161, 48, (6, 12, 36, 24)), (169, 32, (6, 12, 32, 32)), (201, 32, (6, 12, 48, 32))],
)
def test_each_dense_layer_is_a_module(depth, growth, blocks):
    stem, *layers, _ = models.densenet(depth)
    runs = [(layer, len(list(run))) for layer, run in itertools.groupby(layers)]
    expected = [[(models.DenseNetTransition(), 1), (models.DenseNetLayer(growth), size)] for size in blocks]
    assert runs == list(itertools.chain(*expected))[1:] and stem == models.PoolingStem(2 * growth)
    assert 2 * sum(blocks) + 3 + 2 == depth


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50", "vgg13", "mobilenet_v2"])
def test_without_normalisation_there_is_a_bias_in_place_of_a_scale_and_a_bias(name):
    whole, outputs = named(name, 10, 32)
    without, outputs_without = named(name, 10, 32, normalise=False)
    paths = [keystr(path) for path, _ in tree_leaves_with_path(without)]
    scales = sum(leaf.size for path, leaf in tree_leaves_with_path(whole) if "scale" in keystr(path))
    assert outputs == outputs_without and count(without) == count(whole) - scales
    assert scales and not any("orm" in path for path in paths)


@pytest.mark.parametrize(
    ("name", "normalise"),
    [
        *((name, True) for name in ("resnet8", "resnet50", "wrn10_1", "mobilenet_v2", "densenet121", "vgg11")),
        *((name, False) for name in ("resnet8", "resnet18", "preact_resnet11", "vgg11")),
    ],
)
def test_dtypes_follow_the_user(name, normalise, x64):
    """From images in single precision on, whatever is the default."""
    single, double, half = (np.dtype(dtype) for dtype in (jnp.float32, jnp.float64, jnp.bfloat16))
    for given, kept, computed in (
        ({}, single, single),
        ({"param_dtype": double}, double, double),
        ({"dtype": half}, single, half),
    ):
        params, outputs = named(name, 10, 32, normalise=normalise, split_blocks=normalise, **given)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {kept}
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {computed}


@pytest.mark.parametrize(
    ("layers", "lengths"),
    [
        (resnet(20), [1, 3, 1, 2, 1, 2, 1]),
        (imagenet_resnet(18), [1, 2, 1, 1, 1, 1, 1, 1, 1]),
        (imagenet_resnet(50), [1, 1, 2, 1, 3, 1, 5, 1, 2, 1]),
        (imagenet_resnet(101, small_images=True), [1, 1, 2, 1, 3, 1, 22, 1, 2, 1]),
        (vgg(19), [1, 1, 1, 1, 3, 1, 3, 1, 3, 1, 1]),
    ],
)
def test_runs_of_identical_layers(layers, lengths):
    """Layers that are equal modules, one after another, are of one hash, parameters, inputs and outputs."""
    assert [len(list(run)) for _, run in itertools.groupby(layers)] == lengths
    assert all(len({hash(layer) for layer in run}) == 1 for _, run in itertools.groupby(layers))


@pytest.mark.parametrize("name", ["resnet1001", "preact_resnet1001", "resnet1202"])
def test_the_deepest_compile_as_few_loops(name):
    n = 200 if name == "resnet1202" else 111
    layers, _ = stack_layers([jd.as_layer(layer) for layer in by_name(name)], np.zeros((1, 8, 8, 3), np.float32))
    runs = [layer.count for layer in layers if isinstance(layer, LayerStack)]
    assert runs == [n if name == "resnet1202" else n - 1, n - 1, n - 1] and len(layers) <= 8


def test_small_images_change_the_stem_only():
    assert imagenet_resnet(50)[1:] == imagenet_resnet(50, small_images=True)[1:]
    assert imagenet_resnet(50)[0] == PoolingStem(64) and imagenet_resnet(50, small_images=True)[0] == Stem(64)


def test_each_layer_of_vgg_says_what_it_and_those_above_need():
    smallest = [(layer.smallest, layer.pool) for layer in vgg(13)[:-1]]
    assert smallest == [(size, pool) for size in (32, 16, 8, 4, 2) for pool in (False, True)]
    assert named("vgg11", 7, 64)[0][-1]["Dense_0"]["kernel"].shape == (512 * 2 * 2, 7)


@pytest.mark.parametrize("shape", [(2, 31, 40, 3), (2, 40, 28, 1), (2, 32, 32), (2, 3072)])
def test_vgg_refuses_images_that_would_vanish(shape):
    said = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"layer 0 .* the input is {said}; write images \[B, H, W, C\] of .* 32x32"):
        jd.partition(models.vgg11(), 2, sample=np.zeros(shape, np.float32))


def test_mlp_and_cnn_have_the_given_layers():
    mlp = models.mlp(4, hidden=(5, 6), activation=nn.tanh)
    assert [(layer.features, layer.activation) for layer in mlp] == [(5, nn.tanh), (6, nn.tanh), (4, None)]
    assert len(models.mlp(2, hidden=())) == 1
    layers = models.cnn(3, channels=(4, 5), hidden=(6, 7), activation=nn.sigmoid)
    conv = [ConvLayer(4, nn.sigmoid), ConvLayer(5, nn.sigmoid)]
    assert layers == [*conv, *models.mlp(3, hidden=(6, 7), activation=nn.sigmoid)]
    assert models.cnn(3, channels=(), hidden=(6,)) == models.mlp(3, hidden=(6,))


def test_cnn_is_for_mnist_by_default():
    params, outputs = shapes(models.cnn(), images(28, 1))
    assert [y.shape for y in outputs] == [(2, 14, 14, 32), (2, 7, 7, 64), (2, 4, 4, 64), (2, 128), (2, 10)]
    assert list(map(count, params)) == [
        25 * 32 + 32, 25 * 32 * 64 + 64, 25 * 64 * 64 + 64, 16 * 64 * 128 + 128, 1290
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fcn", "cnn"])
def test_five_layers_with_sigmoids(name):
    """Chapter 4 of Huo's thesis; on MNIST's images of 28x28, which the poolings make 14x14, 7x7 and 4x4."""
    widths = (784, 128, 128, 128, 128, 10)
    layers, exactly = {
        "fcn": (models.mlp(hidden=(128,) * 4, activation=nn.sigmoid), sum(map(np.dot, widths, widths[1:])) + 522),
        "cnn": (
            models.cnn(channels=(8, 16, 16), hidden=(64,), activation=nn.sigmoid),
            (25 * 8 + 8) + (25 * 8 * 16 + 16) + (25 * 16 * 16 + 16) + (16 * 16 * 64 + 64) + (64 * 10 + 10),
        ),
    }[name]
    params, outputs = shapes(layers, images(28, 1))
    assert len(layers) == 5 and all(layer.activation is nn.sigmoid for layer in layers[:-1])
    assert count(params) == exactly and layers[-1].activation is None and outputs[-1].shape == (2, 10)


# ---- Blocks cut into parts.


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(resnet, 14),
        functools.partial(resnet, 8, normalise=False),
        functools.partial(imagenet_resnet, 50, small_images=True),
    ],
)
def test_split_networks_have_the_blocks_parameters_in_order(build):
    def leaves(layers):
        found, x = [], images(8)
        for layer in layers:
            x, variables = trace(layer, x)
            found.append(sorted((keystr(p), v.shape) for p, v in tree_leaves_with_path(variables)))
        return found, x

    (whole, y), (split, y_split) = leaves(build()), leaves(build(split_blocks=True))
    assert y == y_split
    parts = iter(split)
    for block, expected in zip(build(), whole, strict=True):
        number = len(block.parts()) if hasattr(block, "parts") else 1
        assert sorted(sum((next(parts) for _ in range(number)), [])) == expected
    assert next(parts, None) is None


def test_repeated_blocks_have_equal_parts():
    assert resnet(20, split_blocks=True)[1:3] == resnet(20, split_blocks=True)[3:5] == models.BasicBlock(16).parts()
    layers = imagenet_resnet(50, split_blocks=True)
    assert layers[4:7] == layers[7:10] == Bottleneck(256).parts() != layers[1:4]
