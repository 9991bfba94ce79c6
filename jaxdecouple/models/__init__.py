"""Models, as sequences of Flax modules that can be cut between any two."""

from jaxdecouple.models.blocks import BasicBlock, Bottleneck
from jaxdecouple.models.cnn import ConvLayer, cnn
from jaxdecouple.models.imagenet_resnet import (
    PoolingStem,
    imagenet_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from jaxdecouple.models.mlp import DenseLayer, mlp
from jaxdecouple.models.names import by_name
from jaxdecouple.models.resnet import Head, Stem, resnet, resnet8, resnet20, resnet32, resnet56, resnet110
from jaxdecouple.models.vgg import VGGLayer, vgg, vgg11, vgg13, vgg16, vgg19

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvLayer",
    "DenseLayer",
    "Head",
    "PoolingStem",
    "Stem",
    "VGGLayer",
    "by_name",
    "cnn",
    "imagenet_resnet",
    "mlp",
    "resnet",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
