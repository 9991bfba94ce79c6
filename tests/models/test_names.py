"""A name gives its network, with every option passed on; another name, or another depth, is refused with advice."""

import functools

import jax.numpy as jnp
import pytest

import jaxdecouple as jd
from jaxdecouple import models
from jaxdecouple.models import BasicBlock, by_name

IMAGENET = (18, 34, 50, 101, 152)
BUILD = {
    "mlp": models.mlp,
    "cnn": models.cnn,
    **{f"vgg{depth}": functools.partial(models.vgg, depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": functools.partial(models.resnet, depth) for depth in (8, 20, 32, 56, 98, 110, 164, 1202)},
    "resnet1001": functools.partial(models.resnet, 1001, bottleneck=True),
    "resnet164_bottleneck": functools.partial(models.resnet, 164, bottleneck=True),
    # 50 and 152 are 6n + 2 as well.
    **{f"resnet{depth}": functools.partial(models.imagenet_resnet, depth) for depth in IMAGENET},
    "preact_resnet164": functools.partial(models.preact_resnet, 164),
    "preact_resnet1001": functools.partial(models.preact_resnet, 1001),
    "wrn28_10": functools.partial(models.wide_resnet, 28, 10),
    "resnext29_8x64d": functools.partial(models.resnext, 29),
    "resnext29_16x64d": functools.partial(models.resnext, 29, cardinality=16),
    "se_resnet18": functools.partial(models.imagenet_resnet, 18, reduction=16),
    "se_resnet50": functools.partial(models.imagenet_resnet, 50, reduction=16),
    "mobilenet_v2": models.mobilenet_v2,
    "densenet121": functools.partial(models.densenet, 121),
}


@pytest.mark.parametrize("name", BUILD)
def test_names(name):
    """Each name gives its model, as the function of that name does, with every option passed on."""
    model, function = BUILD[name](num_classes=7), getattr(models, name)
    assert by_name(name, 7) == function(num_classes=7) == model
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.float16}
    normalised = name not in ("mlp", "cnn")
    layers = by_name(name, 7, split_blocks=True, small_images=True, normalise=not normalised, **dtypes)
    for layer in layers:
        assert (layer.dtype, layer.param_dtype) == (jnp.bfloat16, jnp.float16)
        assert not getattr(layer, "normalise", False)
        assert not hasattr(layer, "parts") or layer.part is not None
    if name.startswith(("se_resnet", "mobilenet_v2", "densenet", *(f"resnet{depth}" for depth in (18, 34, 50, 152)))):
        assert by_name(name, 7, small_images=True) == function(num_classes=7, small_images=True) != model
    if "resnet" in name:
        assert by_name(name, 7, split_blocks=True) == function(num_classes=7, split_blocks=True) != model
    if normalised:
        assert by_name(name, 7, normalise=False) == function(num_classes=7, normalise=False) != model


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
        ("resnt20", "; did you mean 'resnet20'"),
        ("ResNet50", "; did you mean 'resnet50'"),
        ("mpl", "; did you mean 'mlp'"),
        ("vgg", "; did you mean 'vgg"),
        ("wrn-28-10", "; did you mean 'wrn28_10'"),
        ("SE-ResNet-18", "; did you mean 'se_resnet18'"),
        ("mobilenet", "; did you mean 'mobilenet_v2'"),
        ("densnet121", "; did you mean 'densenet121'"),
        ("resnext29_8x64", "; did you mean 'resnext29_8x64d'"),
        ("transformer", "; write mlp, cnn, gpt_nano, .*, resnet<6n.2>, .*, or one of: resnet18, .*, vgg19$"),
        ("resnet21", ": depth is 21; .*write 20 or 26; or one of: resnet18, resnet34"),
        ("vgg12", ": depth is 12; the depths of VGG are 11, 13, 16, 19: write 11, the nearest$"),
        ("wrn27_10", ": depth is 27; a wide ResNet has 6n . 4 convolutions: write 22 or 28$"),
        ("wrn28_0", ": width is 0; write how many times"),
        ("resnext28", ": depth is 28; a CIFAR ResNeXt has 9n . 2 layers: write 20 or 29$"),
        ("resnext29_0x64d", ": cardinality is 0 and width 64; write 1 or more"),
        ("resnet98_bottleneck", ": depth is 98; a CIFAR ResNet of bottlenecks has 9n . 2 layers: write 92 or 101$"),
        ("preact_resnet98", ": depth is 98; a pre-activation ResNet has 9n . 2 layers: write 92 or 101$"),
        ("preact_resnet2", ": depth is 2; .* write 11 or 20$"),
        (
            "se_resnet20",
            ": depth is 20; the depths of an ImageNet ResNet are 18, 34, 50, 101, 152: write 18, the nearest$",
        ),
        ("densenet120", ": depth is 120; the depths of DenseNet are 121, 161, 169, 201: write 121, the nearest$"),
    ],
)
def test_unknown_names_are_refused(name, advice):
    with pytest.raises(ValueError, match=f"^unknown model '{name}'{advice}"):
        by_name(name)


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        *((models.resnet, (depth, f"6n . 2 layers: write {advice}")) for depth, advice in (
            (2, "8 or 14"), (11, "8 or 14"), (19, "14 or 20"), (21, "20 or 26"),
            (1001, "998 or 1004; or bottleneck=True"))),
        *((models.imagenet_resnet, (depth, f"an ImageNet ResNet are 18, 34, 50, 101, 152: write {near}, the nearest"))
          for depth, near in ((8, 18), (20, 18), (56, 50), (110, 101), (1000, 152))),
        *((models.vgg, (depth, f"VGG are 11, 13, 16, 19: write {near}, the nearest"))
          for depth, near in ((8, 11), (12, 11), (14, 13), (17, 16), (152, 19))),
    ],
)  # fmt: skip
def test_refuses_other_depths(build, advice):
    depth, says = advice
    with pytest.raises(ValueError, match=f"depth is {depth}; .* {says}"):
        build(depth)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_models_without_normalisation_refuse_to_leave_it_out(name):
    says = f"normalise is False, but '{name}' never .*write normalise=True, .*resnet<6n.2>, .*resnet18.*vgg19"
    with pytest.raises(ValueError, match=says):
        jd.models.by_name(name, normalise=False)
