"""Optax transforms: shrinking, accumulation, clipping, LARS and CLARS, and the optimizer of each stage.

Usable without a pipeline.
"""

from jaxdecouple.transforms.accumulation import Accumulation, AccumulationState, accumulate_gradients
from jaxdecouple.transforms.delays import delay_gradients
from jaxdecouple.transforms.dependence import Dependence, dependence_of
from jaxdecouple.transforms.global_norm import OverStages, clip_by_global_norm
from jaxdecouple.transforms.gradient_norms import Statistics, batch_statistics, per_example_gradient_norms
from jaxdecouple.transforms.layer_scaling import clars, lars, scale_by_clars, scale_by_lars
from jaxdecouple.transforms.matrices import muon, rotated_adam, scale_by_rotated_adam
from jaxdecouple.transforms.momentum import nadam, scale_by_nadam, sum_momentum
from jaxdecouple.transforms.stagewise import StageOptimizer, count_from, shrink_gradients, stagewise, transform_of
from jaxdecouple.transforms.tensor_paths import weight_mask
from jaxdecouple.transforms.weight_views import (
    WeightView,
    correct_weights,
    delayed_learning_rate,
    predict_weights,
    two_versions,
)

__all__ = [
    "Accumulation",
    "AccumulationState",
    "Dependence",
    "OverStages",
    "StageOptimizer",
    "WeightView",
    "Statistics",
    "accumulate_gradients",
    "batch_statistics",
    "clars",
    "clip_by_global_norm",
    "correct_weights",
    "delay_gradients",
    "delayed_learning_rate",
    "dependence_of",
    "count_from",
    "lars",
    "muon",
    "nadam",
    "per_example_gradient_norms",
    "predict_weights",
    "rotated_adam",
    "scale_by_clars",
    "scale_by_lars",
    "scale_by_nadam",
    "scale_by_rotated_adam",
    "shrink_gradients",
    "stagewise",
    "sum_momentum",
    "transform_of",
    "two_versions",
    "weight_mask",
]
