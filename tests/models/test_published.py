"""The networks of the papers have the published numbers of parameters, the sizes of their tables, and their names."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple import models
from jaxdecouple.models import BasicBlock, by_name
from jaxdecouple.network.layer import walk
from jaxdecouple.network.stack import LayerStack, stack_layers


@functools.cache
def shapes(name, classes, size, small_images=False, split_blocks=False):
    """Parameters, and the shape of the output, of every layer; nothing is computed."""
    layers = by_name(name, classes, small_images=small_images, split_blocks=split_blocks)
    found = walk([jd.as_layer(layer) for layer in layers], jax.ShapeDtypeStruct((2, size, size, 3), np.float32))
    return [(layer.params, layer.y) for layer in found]


def count(name, classes, size, **form):
    return sum(leaf.size for leaf in jax.tree.leaves([params for params, _ in shapes(name, classes, size, **form)]))


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


def excited(torchvisions, sizes, width):
    """Hu et al. (2018), equation 5: 2 / r times the sum of C * C over all blocks more than without."""
    return torchvisions + sum(2 * n * (width * 2**group) ** 2 // 16 for group, n in enumerate(sizes))


@pytest.mark.parametrize(
    ("name", "exactly", "independently", "papers"),  # 10 classes; in millions, as the papers print it
    [
        ("resnet20", 269_722, basic(20), 0.27),
        ("resnet56", 853_018, basic(56), 0.85),  # FDG's Table III says 0.46 M, which is ResNet-32
        ("resnet98", 1_533_530, basic(98), None),
        ("resnet110", 1_727_962, basic(110), 1.7),
        ("resnet164", 2_602_906, basic(164), None),
        ("resnet1202", 19_421_274, basic(1202), 19.4),
        ("resnet164_bottleneck", 1_704_154, bottlenecks(164), 1.7),
        ("resnet1001", 10_328_602, bottlenecks(1001), 10.2),
        ("preact_resnet164", 1_703_258, bottlenecks(164, pre_activated=True), 1.7),
        ("preact_resnet1001", 10_327_706, bottlenecks(1001, pre_activated=True), 10.2),
        ("wrn28_10", 36_479_194, wide(28, 10), 36.5),
        ("wrn16_8", 10_961_370, wide(16, 8), 11.0),
        ("wrn40_4", 8_949_210, wide(40, 4), 8.9),
        ("resnext29_8x64d", 34_426_698, grouped(8, 64), 34.4),
        ("resnext29_16x64d", 68_155_210, grouped(16, 64), 68.1),
    ],
)
def test_parameters_of_the_networks_for_cifar(name, exactly, independently, papers):
    assert count(name, 10, 32) == exactly == independently
    if papers:
        assert exactly / 1e6 == pytest.approx(papers, rel=0.02)
    assert shapes(name, 10, 32)[-1][1].shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "exactly"),  # torchvision's, 1000 classes; of SE-ResNets by the paper's equation
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("se_resnet18", excited(11_689_512, (2, 2, 2, 2), 64)),
        ("se_resnet50", excited(25_557_032, (3, 4, 6, 3), 256)),
        ("mobilenet_v2", 3_504_872),
        ("densenet121", 7_978_856),
    ],
)
def test_parameters_of_the_networks_for_imagenet(name, exactly):
    assert count(name, 1000, 224) == exactly
    assert shapes(name, 1000, 224)[-1][1].shape == (2, 1000)


@pytest.mark.parametrize(("name", "imagenets"), [("mobilenet_v2", 3_504_872), ("se_resnet18", 11_776_552)])
def test_other_classes_and_smaller_images_change_only_the_ends(name, imagenets):
    width = {"mobilenet_v2": 1280, "se_resnet18": 512}[name]
    stem = 0 if name == "mobilenet_v2" else (49 - 9) * 3 * 64
    assert count(name, 200, 64, small_images=True) == imagenets - (width + 1) * 800 - stem


@pytest.mark.parametrize(
    ("name", "kernels"),  # layers with weights
    [("resnet164", 164), ("resnet164_bottleneck", 164), ("resnext29", 29), ("preact_resnet164", 164), ("wrn28_10", 26)],
)
def test_split_blocks_have_a_module_for_each_layer_with_weights(name, kernels):
    found = shapes(name, 10, 32, split_blocks=True)
    assert len(found) == kernels  # WRN counts convolutions, of which three are projections inside blocks
    in_blocks = jax.tree_util.tree_leaves_with_path([params for params, _ in found])
    assert sum("kernel" in str(path) and "projection" not in str(path) for path, _ in in_blocks) == kernels
    assert count(name, 10, 32, split_blocks=True) == count(name, 10, 32)


MOBILE = (32, 16, 24, 32, 64, 96, 160, 320, 1280)


@pytest.mark.parametrize(
    ("name", "size", "small_images", "groups"),  # (rows, channels) of the papers' tables
    [
        ("resnet164_bottleneck", 32, False, ((32, 16), (32, 64), (16, 128), (8, 256))),
        ("preact_resnet164", 33, False, ((33, 16), (33, 64), (17, 128), (9, 256))),
        ("wrn28_10", 32, False, ((32, 16), (32, 160), (16, 320), (8, 640))),
        ("resnext29", 32, False, ((32, 64), (32, 256), (16, 512), (8, 1024))),
        ("se_resnet18", 224, False, ((56, 64), (28, 128), (14, 256), (7, 512))),
        ("se_resnet18", 32, True, ((32, 64), (16, 128), (8, 256), (4, 512))),
        ("mobilenet_v2", 224, False, tuple(zip((112, 112, 56, 28, 14, 14, 7, 7, 7), MOBILE, strict=True))),
        ("mobilenet_v2", 64, True, tuple(zip((64, 64, 64, 32, 16, 16, 8, 8, 8), MOBILE, strict=True))),
    ],
)
def test_sizes_are_those_of_the_papers(name, size, small_images, groups):
    outputs = [y.shape for _, y in shapes(name, 10, size, small_images=small_images)]
    assert tuple(shape[1::2] for shape, _ in itertools.groupby(outputs[:-1])) == groups


def test_densenet_grows_and_halves():
    """Huang et al. (2017), Table 1: 6, 12, 24 and 16 layers of 32 channels, and transitions to half of them."""
    outputs = [y.shape[1::2] for _, y in shapes("densenet121", 1000, 224)][:-1]
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


@pytest.mark.parametrize("name", ["resnet1001", "preact_resnet1001", "resnet1202"])
def test_the_deepest_compile_as_few_loops(name):
    n = 200 if name == "resnet1202" else 111
    layers, _ = stack_layers([jd.as_layer(layer) for layer in by_name(name)], np.zeros((1, 8, 8, 3), np.float32))
    runs = [layer.count for layer in layers if isinstance(layer, LayerStack)]
    assert runs == [n if name == "resnet1202" else n - 1, n - 1, n - 1] and len(layers) <= 8


NAMED = {
    **{f"resnet{depth}": models.resnet(depth, 7) for depth in (20, 98, 110, 164, 1202)},
    "resnet1001": models.resnet(1001, 7, bottleneck=True),
    "resnet164_bottleneck": models.resnet(164, 7, bottleneck=True),
    "preact_resnet164": models.preact_resnet(164, 7),
    "preact_resnet1001": models.preact_resnet(1001, 7),
    "wrn28_10": models.wide_resnet(28, 10, 7),
    "resnext29_8x64d": models.resnext(29, 7),
    "resnext29_16x64d": models.resnext(29, 7, cardinality=16),
    "se_resnet18": models.imagenet_resnet(18, 7, reduction=16),
    "se_resnet50": models.imagenet_resnet(50, 7, reduction=16),
    "mobilenet_v2": models.mobilenet_v2(7),
    "densenet121": models.densenet(121, 7),
}


@pytest.mark.parametrize("name", NAMED)
def test_names(name):
    """Each name gives its model, as the function of that name does, with every option passed on."""
    assert by_name(name, 7) == NAMED[name] == getattr(models, name)(num_classes=7)
    options = {"normalise": False, "dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    for layer in by_name(name, 7, split_blocks=True, small_images=True, **options):
        assert (layer.dtype, layer.param_dtype) == (jnp.bfloat16, jnp.float16)
        assert not getattr(layer, "normalise", False)
        assert not hasattr(layer, "parts") or layer.part is not None
    if name in ("se_resnet18", "mobilenet_v2", "densenet121"):
        assert by_name(name, 7, small_images=True) == getattr(models, name)(7, small_images=True) != NAMED[name]


def test_one_name_of_two_networks_is_that_of_basic_blocks():
    for depth in (20, 56, 110, 164):
        assert by_name(f"resnet{depth}") == models.resnet(depth) and isinstance(models.resnet(depth)[1], BasicBlock)
        assert by_name(f"resnet{depth}_bottleneck") == models.resnet(depth, bottleneck=True) != models.resnet(depth)
    assert by_name("resnet29") == models.resnet(29, bottleneck=True)  # none of basic blocks has this depth
    assert by_name("resnet101") == models.resnet101(10) != by_name("resnet101_bottleneck")
    assert by_name("resnext29") == by_name("resnext29_8x64d")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("wrn-28-10", "; did you mean 'wrn28_10'"),
        ("SE-ResNet-18", "; did you mean 'se_resnet18'"),
        ("mobilenet", "; did you mean 'mobilenet_v2'"),
        ("densnet121", "; did you mean 'densenet121'"),
        ("resnext29_8x64", "; did you mean 'resnext29_8x64d'"),
        ("wrn27_10", ": depth is 27; a wide ResNet has 6n . 4 convolutions: write 22 or 28$"),
        ("wrn28_0", ": width is 0; write how many times"),
        ("resnext28", ": depth is 28; a CIFAR ResNeXt has 9n . 2 layers: write 20 or 29$"),
        ("resnext29_0x64d", ": cardinality is 0 and width 64; write 1 or more"),
        ("resnet98_bottleneck", ": depth is 98; a CIFAR ResNet of bottlenecks has 9n . 2 layers: write 92 or 101$"),
        ("preact_resnet98", ": depth is 98; a pre-activation ResNet has 9n . 2 layers: write 92 or 101$"),
        ("preact_resnet2", ": depth is 2; .* write 11 or 20$"),
        ("se_resnet20", ": depth is 20; an ImageNet ResNet has 18, 34, 50, 101 or 152 layers: write 18, the nearest$"),
        ("densenet120", ": depth is 120; the depths of DenseNet are 121, 161, 169, 201: write 121, the nearest$"),
    ],
)
def test_unknown_names_are_refused(name, advice):
    with pytest.raises(ValueError, match=f"^unknown model '{name}'{advice}"):
        by_name(name)


def test_a_depth_of_bottlenecks_alone_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"depth is 1001; .* 6n . 2 layers: write 998 or 1004; or bottleneck=True"):
        models.resnet(1001)


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
    found = list(walk([jd.as_layer(layer) for layer in layers], jax.ShapeDtypeStruct((2, 28, 28, 1), np.float32)))
    assert len(layers) == 5 and all(layer.activation is nn.sigmoid for layer in layers[:-1])
    assert sum(leaf.size for leaf in jax.tree.leaves([layer.params for layer in found])) == exactly
    assert layers[-1].activation is None and found[-1].y.shape == (2, 10)
