"""An oracle: every decoupled method as a naive float64 NumPy loop, written from its paper.

The methods share `Run`, which knows layers, weights and the optimizer but nothing of time; each brings
its paper's clock and buffers.
One turn of a loop over `run.ticks()` is one iteration t. Batch t enters stage 0 at tick t; after
the last one the clock runs on until every stage has backwarded every batch.

FDG: Zhuang et al., fully decoupled learning. ADL: Zhuang et al., accumulated decoupled learning.
DSP: Xu et al., diversely stale parameters. Thesis: Huo, chapters 5 (DDG) and 6 (features replay).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from tests.oracles.network import (
    ORDERS,
    WEIGHTS,
    Layer,
    Message,
    Policy,
    Problem,
    Run,
    Saved,
    Slots,
    Stage,
    Trajectory,
    backward_layers,
    cross_entropy,
    forward_layers,
)


def backprop(problem: Problem, *, weights: Policy = None) -> Trajectory:
    """Back-propagation, thesis eq. 5.2 to 5.5: forward, backward, update of batch t at tick t."""
    run = Run(problem, weights or "stash")
    for t in run.ticks():
        saved = run.forward_all(t)
        gradient = run.loss(saved[run.last])
        for k in reversed(range(run.num_stages)):
            gradient = run.backward(k, saved[k], gradient)
    return run.trajectory


def gpipe(problem: Problem, *, chunks: int, weights: Policy = None) -> Trajectory:
    """GPipe: rounds of `chunks` micro-batches, t = r chunks .. (r + 1) chunks - 1.

    The top stage finishes micro-batch t at tick t; the others run the round's backwards at its last
    tick, in the order of the batches. accumulate = chunks makes a round one large-batch step.
    """
    run = Run(problem, weights or "stash")
    in_round: list[tuple[list[Saved], Message]] = []
    for t in run.ticks():
        if t < run.num_batches:
            saved = run.forward_all(t)
            in_round.append((saved, run.backward(run.last, saved[-1], run.loss(saved[-1]))))
        if (t + 1) % chunks == 0:
            for saved, gradient in in_round:
                for k in reversed(range(run.last)):
                    gradient = run.backward(k, saved[k], gradient)
            in_round = []
    return run.trajectory


def ddg(problem: Problem, *, weights: Policy = None) -> Trajectory:
    """DDG, thesis Algorithm 9: the whole forward with w^t, then all stages update at once.

    Stage k has the gradient of batch i = t - K + k, k = 1..K, taken at w^i (eq. 5.6 to 5.9).
    """
    run = Run(problem, weights or "stash")
    history: dict[int, list[Saved]] = {}  # w^i and h^i of all stages, by i
    delta: Slots = {}  # delta[k]: gradient of the input of stage k, sent in iteration t - 1
    for t in run.ticks():
        if t < run.num_batches:
            history[t] = run.forward_all(t)
            delta[run.num_stages] = run.loss(history[t][run.last])
        sent: Slots = {}
        for k in range(run.num_stages):  # in parallel
            i = t - (run.last - k)
            if 0 <= i < run.num_batches:
                sent[k] = run.backward(k, history[i][k], delta[k + 1])
        delta = sent
    return run.trajectory


def features_replay(problem: Problem, *, weights: Policy = None) -> Trajectory:
    """Features replay, thesis Algorithm 11: stage k replays h^{t+k-K}, k = 1..K, with w^t.

    A departure: where Algorithm 11 sets h = 0 for t + k - K < 0, nothing is done.
    """
    run = Run(problem, weights or "replay")
    memory: list[deque[Saved]] = [deque() for _ in range(run.num_stages)]
    delta: Slots = {}  # eq. 6.7, sent in iteration t - 1
    for t in run.ticks():
        if t < run.num_batches:
            for k, played in enumerate(run.forward_all(t)):  # lines 4-8: play
                memory[k].append(played)
            delta[run.num_stages] = run.loss(memory[run.last][-1])  # line 9
        sent: Slots = {}
        for k in range(run.num_stages):  # lines 10-15, in parallel: replay, eq. 6.8 and 6.9
            if t >= run.last - k and memory[k]:
                sent[k] = run.backward(k, memory[k].popleft(), delta[k + 1])
        delta = sent
    return run.trajectory


def fdg(problem: Problem, *, order: str = "backward", weights: Policy = None) -> Trajectory:
    """FDG, Algorithm I (eq. 10 to 17), and with order="forward" the FDG-forward of Table VIII.

    Between two stages there is one slot each way, exchanged when the iteration ends (Fig. 1a).
    Backward runs in the graph saved 2 (K - k) iterations ago, k = 1..K (Fig. 1b).
    """
    run = Run(problem, weights or "stash")
    graphs: list[deque[Saved]] = [deque() for _ in range(run.num_stages)]
    up: Slots = {}  # up[k]: input of stage k
    down: Slots = {}  # down[k]: gradient of the input of stage k
    for t in run.ticks():
        if t < run.num_batches:
            up[0] = run.feed(t)
        sent_up, sent_down = {}, {}
        for k in range(run.last):  # parallel for
            for step in ORDERS[order]:
                if step == "backward" and k + 1 in down:
                    sent_down[k] = run.backward(k, graphs[k].popleft(), down[k + 1])
                if step == "forward" and k in up:
                    graphs[k].append(run.forward(k, up[k]))
                    sent_up[k + 1] = graphs[k][-1].output
        if run.last in up:  # the top stage has no delay: 2 (K - K) = 0
            saved = run.forward(run.last, up[run.last])
            sent_down[run.last] = run.backward(run.last, saved, run.loss(saved))
        up, down = sent_up, sent_down  # communication
    return run.trajectory


def adl(problem: Problem, *, order: str = "forward", accumulate: int = 0, weights: Policy = None) -> Trajectory:
    """ADL, Algorithm 1 (eq. 14 to 21), by the batch index that each symbol carries.

    In iteration t = 0, 1, ... stage k = 0..K-1 forwards batch i = t - k, and backwards batch
    i - 2 (K - 1 - k) (eq. 15). `accumulate` is the paper's M, if not the problem's own. Its groups
    are the same batches U_s .. U_s + M - 1, U_s = M s, in every stage, as section 4.2 demands.
    """
    run = Run(replace(problem, accumulate=accumulate or problem.accumulate), weights or "stash")
    z = {(0, i): run.feed(i) for i in range(run.num_batches)}  # z[k, i]: input of stage k
    g: dict[tuple[int, int], Message] = {}  # g[k, i]: gradient of z[k, i]
    graph: dict[tuple[int, int], Saved] = {}
    for t in run.ticks():
        for k in range(run.num_stages):
            i, old = t - k, t - k - 2 * (run.last - k)
            for step in ORDERS["forward" if k == run.last else order]:
                if step == "forward" and 0 <= i < run.num_batches:
                    graph[k, i] = run.forward(k, z[k, i])
                    z[k + 1, i] = graph[k, i].output
                    if k == run.last:
                        g[k + 1, i] = run.loss(graph[k, i])
                if step == "backward" and 0 <= old < run.num_batches:
                    g[k, old] = run.backward(k, graph[k, old], g[k + 1, old])
    return run.trajectory


def dsp(problem: Problem, *, p: tuple, m: tuple, order: str = "forward", weights: Policy = None) -> Trajectory:
    """DSP(p_0 .. p_{K-1}; m_0 .. m_{K-1}), eq. 5, by the timestamps at which block k meets batch n.

    It is forwarded at t_k = n + p_0 + .. + p_{k-1} and backwarded at t_{2K-1-k} = t_k + m_k (3.1, 3.3), both with
    the weights of that timestamp, x_k^{t+1} = x_k^t - alpha G_{x_k}(x^t). So in appendix D x_k^n - x_k^{n'} is the
    sum of the m_k updates i = n - m_k .. n - 1. With order="backward", blocks update before they forward: m_k - 1.
    """
    run = Run(problem, weights or "replay")
    blocks = range(run.num_stages)
    up = [sum(p[:k]) for k in blocks]  # t_k - n
    down = [up[k] + m[k] for k in blocks]  # t_{2K-1-k} - n
    if p[-1] or m[-1] or any(b <= a for a, b in pairwise(up)) or any(a <= b for a, b in pairwise(down)):
        raise ValueError(f"DSP with p={p}, m={m} breaks t_0 < .. < t_{{K-1}} <= t_K < .. < t_{{2K-1}} (section 3.2)")
    phases = {
        "forward": [(up, blocks), (down, blocks)],
        "backward": [(down, blocks[:-1]), (up, blocks), (down, blocks[-1:])],
    }
    h = {(0, n): run.feed(n) for n in range(run.num_batches)}  # h[k, n]: input of block k
    error: dict[tuple[int, int], Message] = {}  # error[k, n]: gradient of h[k, n]
    met: dict[tuple[int, int], Saved] = {}
    for t in run.ticks():
        for clock, members in phases[order]:
            for k in members:
                n = t - clock[k]
                if 0 <= n < run.num_batches and clock is up:
                    met[k, n] = run.forward(k, h[k, n])
                    h[k + 1, n] = met[k, n].output
                elif 0 <= n < run.num_batches:
                    error_above = run.loss(met[k, n]) if k == run.last else error[k + 1, n]
                    error[k, n] = run.backward(k, met[k, n], error_above)
    return run.trajectory


def pipedream(problem: Problem, *, weights: Policy = None) -> Trajectory:
    """PipeDream with weight stashing: activations climb one stage per tick, gradients do not wait.

    Stage k forwards batch t - k at tick t; then batch t - (K - 1) is backwarded by every stage.
    """
    run = Run(problem, weights or "stash")
    stash: dict[tuple[int, int], Saved] = {}
    up: Slots = {}
    for t in run.ticks():
        if t < run.num_batches:
            up[0] = run.feed(t)
        sent: Slots = {}
        for k, entering in up.items():
            stash[k, entering.batch] = run.forward(k, entering)
            sent[k + 1] = stash[k, entering.batch].output
        if run.num_stages in sent:  # what leaves the top stage meets the loss
            n = sent.pop(run.num_stages).batch
            gradient = run.loss(stash[run.last, n])
            for k in reversed(range(run.num_stages)):
                gradient = run.backward(k, stash.pop((k, n)), gradient)
        up = sent
    return run.trajectory


__all__ = [  # with what they are made of, for other oracles
    "METHODS",
    "WEIGHTS",
    "Layer",
    "Message",
    "Problem",
    "Run",
    "Saved",
    "Stage",
    "Trajectory",
    "backward_layers",
    "cross_entropy",
    "forward_layers",
]
METHODS: dict[str, Callable[..., Trajectory]] = {
    method.__name__: method for method in (backprop, gpipe, ddg, features_replay, fdg, adl, dsp, pipedream)
}
