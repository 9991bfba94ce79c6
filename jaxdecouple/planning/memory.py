"""Memory in flight is what a stage keeps for batches that are on their way, at any time.

Counted for each batch, between operations (what one needs for itself while it runs is not):

* the input activation, from its arrival to the end of the forward; where the forward is redone (``remat``, ``replay``)
  to the end of the backward. At stage 0 it arrives as its forward starts: how far ahead a host feeds is not counted;
* the residuals, from the end of the forward to the end of the backward; none where the forward is redone. A stage
  that learns in its ``FORWARD`` has its own while that runs;
* the gradient of the stage's output, from its arrival to the end of the backward; where stages learn from synthetic
  gradients, the output itself as well, from the end of the forward on;
* where backwards are split, residuals and gradient to the end of the ``WEIGHT``: all residuals, though that needs but
  some, and one gradient, though it needs those of the layers within as well;
* under ``stash`` and ``remat``, each version of the weights that is no longer the stage's own and that a batch still
  refers to.
"""

from __future__ import annotations

import numpy as np

from jaxdecouple.planning.timelines import Timeline
from jaxdecouple.planning.times import Sizes
from jaxdecouple.schedules import ends_group, keeps_versions, redoes_forward


def bytes_over_time(timeline: Timeline, device: int, accumulate: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, ascending, and the bytes in flight on ``device`` from each of them until the next.

    Args:
      timeline: made with ``sizes``.
      device: 0, 1, ...
      accumulate: M, as given to the optimizer: weights change after every M batches.

    Raises:
      ValueError: the timeline was made without sizes, or has no such device, or ``accumulate`` is below 1.
    """
    sizes = timeline.sizes
    if sizes is None:
        raise ValueError("this timeline has no sizes; write timeline(schedule, times, sizes=Sizes(...))")
    if not 0 <= device < timeline.num_devices:
        raise ValueError(f"device is {device}, but there are {timeline.num_devices}; write one of 0, 1, ...")
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; write how many batches an update takes, at least 1")
    stages = [stage for stage, place in enumerate(timeline.devices) if place == device]
    spans = [span for stage in stages for span in _spans(timeline, sizes, stage, accumulate)]
    moments = np.concatenate([[0.0], *(np.concatenate(span[:2]) for span in spans)])
    changes = np.concatenate([[0.0], *(np.repeat([size, -size], len(span)) for span, _, size in spans)])
    seconds, where = np.unique(moments, return_inverse=True)
    return seconds, np.cumsum(np.bincount(where, changes))


def peak_bytes(timeline: Timeline, accumulate: int = 1) -> tuple[float, ...]:
    """For each device the most bytes that are ever in flight; arguments and errors as for `bytes_over_time`."""
    devices = range(timeline.num_devices)
    return tuple(float(bytes_over_time(timeline, device, accumulate)[1].max()) for device in devices)


def _spans(timeline: Timeline, sizes: Sizes, stage: int, accumulate: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """(from, until, bytes) of everything that ``stage`` keeps, batch by batch."""
    schedule, weights = timeline.schedule, timeline.schedule.weights
    here = timeline.stage == stage
    forward, backward, weight = (np.flatnonzero(here & (timeline.kind == kind)) for kind in "FBW")
    ending = weight if schedule.splits_backward else backward
    started, forwarded = timeline.start[forward], timeline.end[forward]
    arrived = timeline.arrival[forward]
    if schedule.learns_in_forward(stage):
        until = timeline.end[weight] if schedule.splits_backward else forwarded
        spans = [(arrived, forwarded, sizes.inputs[stage]), (started, until, sizes.residuals[stage])]
        if schedule.has_backward(stage):  # an output and its gradient, for the auxiliary network to learn from
            finished = timeline.end[backward]
            spans.append((forwarded, finished, sizes.inputs[stage + 1]))
            spans.append((timeline.arrival[backward], finished, sizes.inputs[stage + 1]))
        return spans
    finished = timeline.end[ending]
    spans = [(timeline.arrival[backward], finished, sizes.inputs[stage + 1])]
    if redoes_forward(weights):
        spans.append((arrived, timeline.end[backward], sizes.inputs[stage]))
        if schedule.splits_backward:
            spans.append((timeline.end[backward], finished, sizes.residuals[stage]))
    else:
        spans.append((arrived, forwarded, sizes.inputs[stage]))
        spans.append((forwarded, finished, sizes.residuals[stage]))
    if keeps_versions(weights):
        spans.append((*_old_versions(timeline, forward, ending, accumulate), sizes.params[stage]))
    return spans


def _old_versions(
    timeline: Timeline, forward: np.ndarray, backward: np.ndarray, accumulate: int
) -> tuple[np.ndarray, np.ndarray]:
    """When each version of the weights was replaced, and when the last batch that refers to it was done."""
    # Every stage does its batches in order, so the n-th forward and the n-th backward belong to one batch.
    updates = backward[[ends_group(int(batch), accumulate) for batch in timeline.batch[backward]]]
    version = np.searchsorted(updates, forward)  # updates dispatched before the forward
    current = np.arange(len(updates))  # the version that each update replaces
    users = np.searchsorted(version, current, side="right") - 1  # the last batch that may refer to it
    used = (users >= 0) & (version[np.maximum(users, 0)] == current)
    replaced, done = timeline.end[updates], timeline.end[backward[np.maximum(users, 0)]]
    return replaced, np.where(used, np.maximum(replaced, done), replaced)
