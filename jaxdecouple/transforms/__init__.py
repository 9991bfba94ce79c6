"""Optax transforms: gradient shrinking, accumulation, and the optimizer of each stage. Usable without a pipeline."""

from jaxdecouple.transforms.accumulation import Accumulation, AccumulationState, accumulate_gradients
from jaxdecouple.transforms.shrinking import shrink_gradients
from jaxdecouple.transforms.stagewise import StageOptimizer, stagewise, transform_of

__all__ = [
    "Accumulation",
    "AccumulationState",
    "StageOptimizer",
    "accumulate_gradients",
    "shrink_gradients",
    "stagewise",
    "transform_of",
]
