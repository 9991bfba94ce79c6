"""Models, as sequences of Flax modules that can be cut between any two."""

from jaxdecouple.models.mlp import DenseLayer, mlp
from jaxdecouple.models.resnet import BasicBlock, Head, Stem, resnet, resnet8, resnet20, resnet32, resnet56, resnet110

__all__ = [
    "BasicBlock",
    "DenseLayer",
    "Head",
    "Stem",
    "mlp",
    "resnet",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet110",
]
