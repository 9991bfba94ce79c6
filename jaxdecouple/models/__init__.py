"""Models, as sequences of Flax modules that can be cut between any two."""

from jaxdecouple.models.auxiliary import GradientPredictor, MLPClassifier
from jaxdecouple.models.blocks import BasicBlock, Bottleneck, SqueezeExcitation
from jaxdecouple.models.cnn import ConvLayer, cnn
from jaxdecouple.models.densenet import DenseNetLayer, DenseNetTransition, densenet, densenet121
from jaxdecouple.models.gpt import SIZES as GPT_SIZES
from jaxdecouple.models.gpt import gpt, gpt2_large, gpt2_medium, gpt2_small, gpt2_xl, gpt_of_size
from jaxdecouple.models.imagenet_resnet import (
    PoolingStem,
    imagenet_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    se_resnet18,
    se_resnet50,
)
from jaxdecouple.models.mlp import DenseLayer, mlp
from jaxdecouple.models.mobilenet import InvertedResidual, MobileLayer, mobilenet_v2
from jaxdecouple.models.names import by_name
from jaxdecouple.models.preactivation import (
    ActivationHead,
    PlainStem,
    PreActivationBlock,
    PreActivationBottleneck,
    preact_resnet,
    preact_resnet164,
    preact_resnet1001,
)
from jaxdecouple.models.resnet import (
    Head,
    Stem,
    resnet,
    resnet8,
    resnet20,
    resnet32,
    resnet56,
    resnet98,
    resnet110,
    resnet164,
    resnet164_bottleneck,
    resnet1001,
    resnet1202,
)
from jaxdecouple.models.resnext import resnext, resnext29_8x64d, resnext29_16x64d
from jaxdecouple.models.transformer import (
    FeedForward,
    LanguageHead,
    SelfAttention,
    TokenEmbedding,
    TransformerBlock,
)
from jaxdecouple.models.vgg import VGGLayer, vgg, vgg11, vgg13, vgg16, vgg19
from jaxdecouple.models.wide_resnet import wide_resnet, wrn28_10

__all__ = [
    "GPT_SIZES",
    "ActivationHead",
    "BasicBlock",
    "Bottleneck",
    "ConvLayer",
    "DenseLayer",
    "DenseNetLayer",
    "DenseNetTransition",
    "FeedForward",
    "GradientPredictor",
    "Head",
    "InvertedResidual",
    "LanguageHead",
    "MLPClassifier",
    "MobileLayer",
    "PlainStem",
    "PoolingStem",
    "PreActivationBlock",
    "PreActivationBottleneck",
    "SelfAttention",
    "SqueezeExcitation",
    "Stem",
    "TokenEmbedding",
    "TransformerBlock",
    "VGGLayer",
    "by_name",
    "cnn",
    "densenet",
    "densenet121",
    "gpt",
    "gpt2_large",
    "gpt2_medium",
    "gpt2_small",
    "gpt2_xl",
    "gpt_of_size",
    "imagenet_resnet",
    "mlp",
    "mobilenet_v2",
    "preact_resnet",
    "preact_resnet164",
    "preact_resnet1001",
    "resnet",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet98",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnet164_bottleneck",
    "resnet1001",
    "resnet1202",
    "resnext",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "se_resnet18",
    "se_resnet50",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wide_resnet",
    "wrn28_10",
]
