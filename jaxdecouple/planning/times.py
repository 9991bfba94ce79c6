"""Times say how long each operation takes, and sizes how many bytes it keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxdecouple.schedules import FORWARD, WEIGHT, Kind, Learning, Weights, redoes_forward

_ZEROS: Any = None  # left out: as many as there are edges take its place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a network of K stages, for one batch.

    Any unit will do as long as it is one for all; figures and traces take it for seconds. The last stage's ``FORWARD``
    contains loss, backward and update, so it takes ``forward[-1] + backward[-1]``; where stages learn locally, so does
    every stage's, its auxiliary network included.

    Attributes:
      forward: K times of a stage's forward.
      backward: K times of a stage's backward, update included, without redoing the forward.
      weight: K times of a ``WEIGHT``, for schedules that split backwards: a part of ``backward``. ``None``: half of
        that; the two gradients of a product of matrices are two such products.
      up: K - 1 times of an activation's transfer k -> k+1; 0 by default.
      down: K - 1 times of a gradient's transfer k+1 -> k; 0 by default.
      joined: K - 1 times of one dispatch that does a ``BACKWARD`` and the ``FORWARD`` that follows it (see
        `schedules.join`), as measured under the weights policy in force. ``None``: operations are dispatched singly.
      teach: K - 1 times of a ``BACKWARD`` where stages learn from synthetic gradients: the auxiliary network is taught
        what it should have predicted; 0 by default.
      host: what the host needs to issue one dispatch; it issues them in order, and none starts before it is issued.
      slowdown: how many times longer an operation takes while 1, 2, ... devices are busy at once, for devices that
        share cores; the last entry serves for more devices. Empty: devices do not disturb one another.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    weight: Sequence[float] | None = None
    up: Sequence[float] = _ZEROS
    down: Sequence[float] = _ZEROS
    joined: Sequence[float] | None = None
    teach: Sequence[float] = _ZEROS
    host: float = 0.0
    slowdown: Sequence[float] = ()

    def __post_init__(self) -> None:
        forward = _numbers("forward", self.forward, "seconds, one per stage")
        stages = len(forward)
        if not stages:
            raise ValueError("forward is empty; write the seconds of at least one stage")
        backward = _numbers("backward", self.backward, "seconds, one per stage", stages)
        if not any(forward + backward):
            raise ValueError("forward and backward are all 0; write the seconds of what takes time")
        weight = None if self.weight is None else _numbers("weight", self.weight, "seconds, one per stage", stages)
        if weight is not None and any(part > whole for part, whole in zip(weight, backward, strict=True)):
            raise ValueError(f"weight = {weight} exceeds backward = {backward}, of which it is a part; write less")
        edges = {
            "up": "activation k -> k+1",
            "down": "gradient k+1 -> k",
            "joined": "backward with its forward",
            "teach": "auxiliary network",
        }
        found: dict[str, Any] = {"forward": forward, "backward": backward, "weight": weight}
        for name, what in edges.items():
            given = getattr(self, name)
            if given is None:
                found[name] = None if name == "joined" else (0.0,) * (stages - 1)
            else:
                found[name] = _numbers(name, given, f"seconds, one per {what}", stages - 1)
        found["host"] = _number(self.host)
        if math.isnan(found["host"]):
            raise ValueError(f"host is {self.host!r}; write the seconds of one dispatch, a finite number of at least 0")
        found["slowdown"] = slowdown = _numbers("slowdown", self.slowdown, "factors for 1, 2, ... busy devices")
        if slowdown and (slowdown[0] != 1 or min(slowdown) <= 0):
            raise ValueError(f"slowdown = {slowdown} must start with 1, one busy device, and be positive")
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.forward)

    @property
    def serial(self) -> float:
        """Seconds per batch of the whole network on one device: all forwards and backwards, no transfer."""
        return math.fsum(self.forward) + math.fsum(self.backward)

    def duration(
        self, kind: Kind, stage: int, weights: Weights, learning: Learning = "gradient", split: bool = False
    ) -> float:
        """Seconds of one operation; under ``remat`` and ``replay`` a ``BACKWARD`` redoes the forward first.

        With ``split``, the time of a ``WEIGHT`` is no part of the others'.
        """
        local = learning != "gradient"
        weight = self.backward[stage] / 2 if self.weight is None else self.weight[stage]
        if kind is WEIGHT:
            return weight
        backward = self.backward[stage] - (weight if split else 0.0)
        if stage == self.num_stages - 1 or (local and kind is FORWARD):
            return self.forward[stage] + backward
        if local:
            return self.teach[stage]
        if kind is FORWARD:
            return self.forward[stage]
        return backward + (self.forward[stage] if redoes_forward(weights) else 0.0)

    def work(self, stage: int, weights: Weights) -> float:
        """Seconds of ``stage`` per batch, dispatched singly or joined, whichever is less."""
        if stage == self.num_stages - 1:
            return self.duration(FORWARD, stage, weights)
        singly = self.forward[stage] + self.duration(Kind.BACKWARD, stage, weights)
        return singly if self.joined is None else min(singly, self.joined[stage])

    def bound(self, weights: Weights) -> float:
        """Seconds per batch that no schedule can beat: the most work of any device, any link, or the host."""
        dispatches = 2 * self.num_stages - 1 if self.joined is None else self.num_stages
        work = [self.work(stage, weights) for stage in range(self.num_stages)]
        return max(*work, *self.up, *self.down, dispatches * self.host)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of what a stage keeps for one batch.

    Attributes:
      inputs: K sizes of a stage's input activation; the first is the batch. A gradient has the size of the activation
        it belongs to.
      residuals: K or K - 1 sizes of what a forward leaves for its backward; the last stage's may be left out.
      params: K sizes of one version of a stage's weights.
    """

    inputs: Sequence[float]
    residuals: Sequence[float]
    params: Sequence[float]

    def __post_init__(self) -> None:
        inputs = _numbers("inputs", self.inputs, "bytes, one per stage")
        if not inputs:
            raise ValueError("inputs is empty; write the bytes of at least one stage")
        residuals = _numbers("residuals", self.residuals, "bytes, one per stage")
        if len(residuals) not in (len(inputs) - 1, len(inputs)):
            raise ValueError(
                f"residuals has {len(residuals)} entries, but inputs has {len(inputs)}; "
                "write one per stage, with or without the last"
            )
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "residuals", residuals + (0.0,) * (len(inputs) - len(residuals)))
        object.__setattr__(self, "params", _numbers("params", self.params, "bytes, one per stage", len(inputs)))


def _numbers(name: str, values: Sequence[float], what: str, length: int | None = None) -> tuple[float, ...]:
    try:
        numbers = tuple(map(_number, values))
    except TypeError:  # not even a sequence
        numbers = (math.nan,)
    if any(map(math.isnan, numbers)):
        raise ValueError(f"{name} = {values!r} must hold finite numbers of at least 0 ({what}); none may be missing")
    if length is not None and len(numbers) != length:
        raise ValueError(f"{name} has {len(numbers)} entries; write {length}: {what}")
    return numbers


def _number(value: float) -> float:
    """A finite number of at least 0, or NaN for anything else."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except TypeError:
        return math.nan
    return number if 0 <= number < math.inf else math.nan


def check_times(times: Any) -> None:
    """Refuses what are no `Times`.

    Raises:
      ValueError: says what to write.
    """
    if not isinstance(times, Times):
        raise ValueError(
            f"times is {times!r}; write jaxdecouple.Times(forward=[...], backward=[...]), seconds for each stage"
        )
