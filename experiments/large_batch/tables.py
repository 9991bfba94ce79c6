"""Tables and axes of results by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib

from jaxdecouple.network.trees import PyTree


def layer_labels(params: dict[str, PyTree]) -> dict[str, str]:
    """What to call each layer: its number, from the input on, and the shape of its weights."""
    return {name: f"{number} ({_weight_shape(layer)})" for number, (name, layer) in enumerate(params.items(), 1)}


def style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the layer of this index, from 0 on."""
    return {
        "color": matplotlib.colormaps["tab10"](index % 10),
        "linestyle": ("-", "--", ":", "-.")[index % 4],
        "marker": "osD^vP<>"[index % 8],
    }


def rounded(values: Sequence[float], digits: int = 6) -> list[float | None]:
    """For JSON: so many significant digits, and ``None`` where a value is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def _weight_shape(layer: PyTree) -> str:
    weights = max(jax.tree.leaves(layer), key=lambda leaf: leaf.ndim)
    return "x".join(map(str, weights.shape))
