"""Optax transforms: shrinking, accumulation, clipping, LARS and CLARS, and the optimizer of each stage.

Usable without a pipeline.
"""

from jaxdecouple.transforms.accumulation import Accumulation, AccumulationState, accumulate_gradients
from jaxdecouple.transforms.dependence import Dependence, dependence_of
from jaxdecouple.transforms.global_norm import OverStages, clip_by_global_norm
from jaxdecouple.transforms.gradient_norms import per_example_gradient_norms
from jaxdecouple.transforms.layer_groups import weight_mask
from jaxdecouple.transforms.layer_scaling import clars, lars, scale_by_clars, scale_by_lars
from jaxdecouple.transforms.shrinking import shrink_gradients
from jaxdecouple.transforms.stagewise import StageOptimizer, stagewise, transform_of

__all__ = [
    "Accumulation",
    "AccumulationState",
    "Dependence",
    "OverStages",
    "StageOptimizer",
    "accumulate_gradients",
    "clars",
    "clip_by_global_norm",
    "dependence_of",
    "lars",
    "per_example_gradient_norms",
    "scale_by_clars",
    "scale_by_lars",
    "shrink_gradients",
    "stagewise",
    "transform_of",
    "weight_mask",
]
