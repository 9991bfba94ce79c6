"""The schedules of the papers, by name. K is the number of stages; K = 1 is plain training for every one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxdecouple.schedules.schedule import (
    DelaySchedule,
    FlushSchedule,
    Learning,
    Order,
    ScheduleError,
    Weights,
    as_integer,
)


def delays(
    p: Sequence[int],
    q: Sequence[int],
    *,
    order: Order = "forward_first",
    weights: Weights = "stash",
    learning: Learning = "gradient",
    name: str = "delays",
) -> DelaySchedule:
    """A schedule from activation delays ``p`` and gradient delays ``q``, in ticks, one of each per edge."""
    return DelaySchedule(
        name=name, num_stages=len(p) + 1, p=tuple(p), q=tuple(q), order=order, weights=weights, learning=learning
    )


def backprop(num_stages: int) -> DelaySchedule:
    """Back-propagation: no delay, no staleness. With one device per stage, the papers' BP-K."""
    return _uniform("backprop", num_stages, p=0, q=0, order="forward_first", weights="latest")


def gpipe(num_stages: int, chunks: int, *, weights: Weights = "replay") -> FlushSchedule:
    """GPipe (Huang et al. 2019): rounds of ``chunks`` micro-batches, each round flushed.

    A batch of this library is one micro-batch; give ``jaxdecouple.stagewise`` the argument ``accumulate=chunks``.
    ``replay`` is GPipe's re-materialisation; ``stash`` trades its arithmetic for memory, with the same result.
    """
    return FlushSchedule(name="gpipe", num_stages=num_stages, chunks=chunks, weights=weights)


def ddg(num_stages: int, *, weights: Weights = "stash") -> DelaySchedule:
    """Decoupled parallel back-propagation with delayed gradients (thesis, Algorithms 9 and 10).

    Stage k updates with the gradient of batch t - (K-1-k) (eq. 5.9) at that batch's weights (eq. 5.6).
    """
    return _uniform("ddg", num_stages, p=0, q=1, order="forward_first", weights=weights)


def features_replay(num_stages: int, *, weights: Weights = "replay") -> DelaySchedule:
    """Features Replay (thesis, Algorithm 11): DDG's delays, the forward redone with today's weights (eq. 6.8)."""
    return _uniform("features_replay", num_stages, p=0, q=1, order="forward_first", weights=weights)


def fdg(num_stages: int, *, order: Order = "backward_first", weights: Weights = "stash") -> DelaySchedule:
    """Fully decoupled training with delayed gradients (FDG, Algorithm I; both orders: Table VIII).

    Stage k updates with the gradient of batch t - 2(K-1-k), counted in its own forwards (eqs. 13, 14).
    """
    return _uniform("fdg", num_stages, p=1, q=1, order=order, weights=weights)


def adl(num_stages: int, *, order: Order = "forward_first", weights: Weights = "stash") -> DelaySchedule:
    """Accumulated decoupled learning (ADL, Algorithm 1): FDG's delays, and M gradients for each update.

    M is the optimizer's: ``jaxdecouple.stagewise(optimizer, accumulate=M)``.
    """
    return _uniform("adl", num_stages, p=1, q=1, order=order, weights=weights)


def pipedream(num_stages: int, *, weights: Weights = "stash") -> DelaySchedule:
    """PipeDream (Narayanan et al. 2019), one forward one backward: a gradient descends all stages in its tick."""
    return _uniform("pipedream", num_stages, p=1, q=0, order="forward_first", weights=weights)


def paci(num_stages: int) -> DelaySchedule:
    """Accumulation without a stash of weights (PACI, arXiv 2606.07881): PipeDream's order, with the weights of today.

    Give ``jaxdecouple.stagewise`` the argument ``accumulate=M``. Then at most ceil((K-1)/M) updates come between the
    forward and the backward of a batch, and no version of the weights but the last is kept.
    """
    return _uniform("paci", num_stages, p=1, q=0, order="forward_first", weights="latest")


def dgl(num_stages: int) -> DelaySchedule:
    """Decoupled greedy learning (Belilovsky et al. 2020) as a pipeline: a stage learns from a classifier of its own.

    Only activations travel, those from before the stage's update. Give the pipeline ``auxiliary``, such as
    `models.MLPClassifier`.
    """
    return dataclasses.replace(_uniform("dgl", num_stages, p=1, q=0, order="forward_first"), learning="greedy")


def dni(num_stages: int, *, weights: Weights = "replay") -> DelaySchedule:
    """Decoupled neural interfaces (Jaderberg et al. 2017): each stage learns from a gradient that it predicts.

    In its forward a stage updates with the predicted gradient of its output, and sends the gradient of its input down,
    where it teaches the predictor a tick later (``BACKWARD``). ``weights`` are those of the predictor that is taught:
    today's (``replay``), or those that made the prediction (``stash``, ``remat``: here one and the same). Give the
    pipeline ``auxiliary``, such as `models.GradientPredictor`.
    """
    schedule = _uniform("dni", num_stages, p=1, q=1, order="forward_first", weights=weights)
    return dataclasses.replace(schedule, learning="synthetic")


def dsp(
    p: Sequence[int], m: Sequence[int], *, order: Order = "forward_first", weights: Weights = "replay"
) -> DelaySchedule:
    """Diversely stale parameters, in the paper's notation DSP(p_0, ..., p_{K-1}; m_0, ..., m_{K-1}) (DSP, 3.3).

    m_k is block k's layer-wise staleness: m_k updates lie between a batch's forward and its recomputation (3.3 and
    appendix D). In one tick both use the weights from before the update, so forwards come first; backward first, a
    block makes m_k - 1 updates meanwhile.

    The gradient queues follow, q_k = m_{k-1} - p_{k-1} - m_k (appendix A). Appendix A asks for m_k > 0 at every
    block, yet every configuration of the paper ends in m_{K-1} = 0, p_{K-1} = 0, and so must this one.

    Raises:
      ScheduleError: lengths differ, p_{K-1} or m_{K-1} is not 0, or a queue p_k or q_k of an edge is not positive.
    """
    if isinstance(p, int) or isinstance(m, int):
        raise ScheduleError(f"p is {p} and m {m}; write one of each per stage, as dsp((1, 1, 0), (4, 2, 0))")
    p, m = tuple(map(as_integer, p)), tuple(map(as_integer, m))
    given = f"DSP({','.join(map(str, p))};{','.join(map(str, m))})"
    if not p or len(p) != len(m):
        raise ScheduleError(f"{given} has {len(p)} p and {len(m)} m; write one of each per stage, as DSP(1,1,0;4,2,0)")
    if any(not isinstance(value, int) for value in p + m):
        raise ScheduleError(f"{given} must hold integers (ticks), as DSP(1,1,0;4,2,0)")
    if p[-1] != 0 or m[-1] != 0:
        raise ScheduleError(
            f"{given} must end in p = 0 and m = 0: the last stage sends nothing up and its backward follows its "
            "forward at once"
        )
    edges = range(len(p) - 1)
    q = tuple(m[k] - p[k] - m[k + 1] for k in edges)
    for k in edges:
        if p[k] < 1:
            raise ScheduleError(f"{given}: p_{k} = {p[k]} must be at least 1; without a delay, use schedules.delays")
        if q[k] < 1:
            raise ScheduleError(
                f"{given} needs a gradient queue q_{k + 1} = m_{k} - p_{k} - m_{k + 1} = {m[k]} - {p[k]} - {m[k + 1]} "
                f"= {q[k]}, which must be at least 1; write m_{k} >= {p[k] + m[k + 1] + 1}"
            )
    return delays(p[:-1], q, order=order, weights=weights, name=f"dsp{given[3:]}")


def _uniform(name: str, num_stages: int, *, p: int, q: int, order: Order, weights: Weights = "stash") -> DelaySchedule:
    num_stages = as_integer(num_stages)
    edges = max(0, num_stages - 1) if isinstance(num_stages, int) else 0
    return DelaySchedule(name=name, num_stages=num_stages, p=(p,) * edges, q=(q,) * edges, order=order, weights=weights)
