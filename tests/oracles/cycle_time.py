"""The period of a delay schedule from its precedence graph alone: an answer to hold simulations and plans against.

Operation v of batch n starts no sooner than w seconds after operation u of batch n - h. The period, in seconds per
batch, is the largest sum(w) / sum(h) over the cycles of this graph (its maximum cycle ratio).
"""

import numpy as np


def joined_stages(schedule):
    """By the rule for one tick of a delay schedule: backward first, and no neighbour below waits within the tick."""
    if schedule.order == "forward_first":
        return set()
    inner = range(schedule.num_stages - 1)
    return {k for k in inner if k == 0 or (schedule.p[k - 1] > 0 and schedule.q[k - 1] > 0)}


def graph(schedule, times, late=0.0):
    """(w, h), each [n, n]; nodes are the forwards 0..K-1 and the backwards K..2K-2. Absent edges have w = -inf."""
    K, size = schedule.num_stages, 2 * schedule.num_stages - 1
    w, h = np.full((size, size), -np.inf), np.zeros((size, size))
    joined = joined_stages(schedule) if times.joined is not None else set()
    replay = schedule.weights == "replay"
    f, b = list(times.forward), [b + replay * f for f, b in zip(times.forward, times.backward, strict=True)]
    f[-1] += times.backward[-1]
    for k in joined:
        f[k] = b[k] = times.joined[k]
    for k in range(K - 1):
        above = K - 1 if k + 1 == K - 1 else K + k + 1
        w[k, k + 1] = f[k] + times.up[k] + late
        w[above, K + k] = (f[-1] if above == K - 1 else b[k + 1]) + times.down[k] + late
        m = schedule.lag[k]
        s = m if schedule.order == "forward_first" else m - 1
        if k in joined:  # both start at once
            w[k, K + k], h[k, K + k] = 0.0, -m
            w[K + k, k], h[K + k, k] = 0.0, m
            w[k, k], h[k, k] = f[k], 1
        else:
            w[k, K + k], h[k, K + k] = f[k], -s
            w[K + k, k], h[K + k, k] = b[k], s + 1
    w[K - 1, K - 1], h[K - 1, K - 1] = f[-1], 1
    return w, h


def cycle_times(schedules, times, late=0.0):
    """Seconds per batch of each schedule (all of one K); ``late`` seconds are added to every transfer, as latency."""
    w, h = (np.stack(parts) for parts in zip(*(graph(schedule, times, late) for schedule in schedules), strict=True))
    low, high = np.zeros(len(schedules)), np.full(len(schedules), w[np.isfinite(w)].sum() + 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        longest = w - middle[:, None, None] * h
        for k in range(w.shape[1]):
            longest = np.maximum(longest, longest[:, :, k, None] + longest[:, None, k, :])
        growing = (np.diagonal(longest, axis1=1, axis2=2) > 1e-12).any(axis=1)
        low, high = np.where(growing, middle, low), np.where(growing, high, middle)
    return np.maximum(high, max((*times.up, *times.down), default=0.0))
