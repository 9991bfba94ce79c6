"""All kinds of rows, by name."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.reproduction import diagnostics, memory, predictions, speed, stragglers, training
from experiments.reproduction.kind import Kind

KINDS: Mapping[str, Kind] = {
    "training": training.KIND,
    "diagnostics": diagnostics.KIND,
    "speed": speed.KIND,
    "memory": memory.KIND,
    "stragglers": stragglers.KIND,
    "ideal": predictions.IDEAL,
    "staleness": predictions.STALENESS,
}
