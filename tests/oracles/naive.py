"""An oracle: every decoupled method as a naive float64 NumPy loop, written from its paper.

The network is an MLP: h_l = tanh(h_{l-1} W_l + b_l), the last layer linear, mean softmax cross
entropy, cut into stages k = 0..K-1 (the papers' modules 1..K). The methods share `Run`, which knows
layers, weights and the optimizer but nothing of time; each brings its paper's clock and buffers.
One turn of a loop over `run.ticks()` is one iteration t. Batch t enters stage 0 at tick t; after
the last one the clock runs on until every stage has backwarded every batch.

FDG: Zhuang et al., fully decoupled learning. ADL: Zhuang et al., accumulated decoupled learning.
DSP: Xu et al., diversely stale parameters. Thesis: Huo, chapters 5 (DDG) and 6 (features replay).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Layer = tuple[Array, Array]
Slots = dict[int, "Message"]  # what is under way, by stage
Policy = str | None  # which weights a backward uses; None: what the method's paper says

WEIGHTS = ("stash", "replay", "latest")
ORDERS = {"forward": ("forward", "backward"), "backward": ("backward", "forward")}


@dataclass(frozen=True)
class Problem:
    """A network cut into stages, its data, and the optimizer that every stage runs.

    A stage's gradient is the mean over `accumulate` consecutive batches n, in groups that start at
    multiples of `accumulate`; a partial group at the end stays unapplied. Its s-th update is then
        g = g + weight_decay w,   buffer = momentum buffer + g,   w = w - learning_rate(s) buffer;
    with eta, LARS (thesis eq. 4.3), the learning rate of each tensor is eta |w| / |g| times that.
    """

    layers: tuple[Layer, ...]  # (W, b) with W: (inputs, outputs), b: (outputs,)
    boundaries: tuple[int, ...]  # the K - 1 layer indices at which a new stage starts
    batches: list[tuple[Array, Array]]  # x: (examples, inputs), y: (examples,) integer labels
    learning_rate: float | Callable[[int], float]  # or a function of the stage's update index s
    momentum: float = 0.0
    weight_decay: float = 0.0
    beta: float = 1.0  # gradient shrinking factor, FDG eq. 15
    accumulate: int = 1  # M of ADL eq. 16
    eta: float | None = None
    adam: str | None = None  # "own" or "global": thesis, Algorithm 10, by the stage's updates or by iterations t


@dataclass
class Trajectory:
    """What a run did. `parameters[t][l]` is (W, b) of layer l after tick t, flush included.

    `staleness[k, n]` counts the updates that stage k made between its forward of batch n and the
    update that consumed the gradient; a batch of an unapplied group has no entry.
    """

    parameters: list[list[Layer]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)  # by batch
    staleness: dict[tuple[int, int], int] = field(default_factory=dict)  # by (stage, batch)


class Message(NamedTuple):
    """What travels between stages: an activation (up) or its gradient (down), of one batch."""

    batch: int
    value: Array


class Saved(NamedTuple):
    """What a stage's forward of one batch leaves for its backward."""

    batch: int
    layers: list[Layer]  # the weights it used
    activations: list[Array]  # the stage's input, then the output of each of its layers
    updates: int  # updates the stage had made by then
    output: Message  # the last of the activations


def forward_layers(layers: list[Layer], x: Array, top: bool) -> list[Array]:
    """The input x and the output of each layer; in the top stage the last layer is linear."""
    activations = [x]
    for index, (w, b) in enumerate(layers):
        z = activations[-1] @ w + b
        activations.append(z if top and index == len(layers) - 1 else np.tanh(z))
    return activations


def backward_layers(
    layers: list[Layer], activations: list[Array], gradient: Array, top: bool
) -> tuple[list[Layer], Array]:
    """(dW, db) of each layer and the gradient of the stage's input.

    Every W that is read comes from `layers`; inputs and tanh' come from `activations`.
    """
    gradients: list[Layer] = []
    for index in reversed(range(len(layers))):
        if not (top and index == len(layers) - 1):
            gradient = gradient * (1.0 - activations[index + 1] ** 2)
        gradients.insert(0, (activations[index].T @ gradient, gradient.sum(axis=0)))
        gradient = gradient @ layers[index][0].T
    return gradients, gradient


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean softmax cross entropy and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    gradient = np.exp(log_p)
    gradient[rows, labels] -= 1.0
    return -log_p[rows, labels].mean(), gradient / len(labels)


class Stage:
    """The layers of one stage and its optimizer. Arrays are replaced, never written to."""

    def __init__(self, problem: Problem, first: int, end: int) -> None:
        layers = problem.layers[first:end]
        self.problem, self.top = problem, end == len(problem.layers)
        self.layers = [(np.array(w, np.float64), np.array(b, np.float64)) for w, b in layers]
        self.buffers: list[tuple] = [(0.0, 0.0)] * len(layers)
        self.group: list[tuple[Saved, list[Layer]]] = []  # the gradients of this group so far
        self.updates = 0

    def accumulate(self, saved: Saved, gradients: list[Layer], t: int = 0) -> dict[int, int]:
        """Takes the gradients of one batch in iteration t; {batch: staleness} of the group that it completes."""
        self.group.append((saved, gradients))
        if (saved.batch + 1) % self.problem.accumulate:
            return {}
        for index, layer in enumerate(self.layers):
            group = (gradients[index] for _, gradients in self.group)
            w_and_b = zip(layer, self.buffers[index], *group, strict=True)
            step = self.update if self.problem.adam is None else partial(self.adam, t)
            stepped = [step(*part) for part in w_and_b]
            self.layers[index], self.buffers[index] = zip(*stepped, strict=True)
        staleness = {s.batch: self.updates - s.updates for s, _ in self.group}
        self.updates += 1
        self.group = []
        return staleness

    def update(self, w: Array, buffer: Array, *gradients: Array) -> tuple[Array, Array]:
        """ADL eq. 16, the mean over the group, with weight decay and momentum."""
        rate = self.problem.learning_rate
        rate = rate(self.updates) if callable(rate) else rate
        g = sum(gradients) / len(gradients) + self.problem.weight_decay * w
        if self.problem.eta is not None:
            rate = rate * self.problem.eta * np.linalg.norm(w) / np.linalg.norm(g)
        buffer = self.problem.momentum * buffer + g
        return w - rate * buffer, buffer

    def adam(self, t: int, w: Array, moments: tuple, *gradients: Array) -> tuple[Array, tuple]:
        """Thesis, Algorithm 10, lines 4 to 8. While g^t = 0 (eq. 5.8), moments and weights stay, and t goes on."""
        rate, (g,) = self.problem.learning_rate, gradients
        time = t if self.problem.adam == "global" else self.updates
        rate = rate(time) if callable(rate) else rate
        m, v = moments or (0.0, 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9 ** (time + 1)), v / (1 - 0.999 ** (time + 1))
        return w - rate * m_hat / (np.sqrt(v_hat) + 1e-8), (m, v)


class Run:
    """The stages of one run, and the record of what they did."""

    def __init__(self, problem: Problem, weights: str) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"weights is {weights!r}; it must be one of {WEIGHTS}")
        edges = (0, *problem.boundaries, len(problem.layers))
        self.problem, self.weights = problem, weights
        self.stages = [Stage(problem, *edge) for edge in pairwise(edges)]
        self.num_stages, self.num_batches = len(self.stages), len(problem.batches)  # K, N
        self.last = self.num_stages - 1
        self.unfinished = self.num_stages * self.num_batches  # backwards still to do
        self.trajectory = Trajectory()

    def ticks(self) -> Iterator[int]:
        """t = 0, 1, ... until all is backwarded; records the weights at the end of each tick."""
        while self.unfinished:
            yield len(self.trajectory.parameters)
            layers = [layer for stage in self.stages for layer in stage.layers]
            self.trajectory.parameters.append([(w.copy(), b.copy()) for w, b in layers])

    def feed(self, t: int) -> Message:
        """Batch t on its way into stage 0."""
        return Message(t, np.asarray(self.problem.batches[t][0], np.float64))

    def forward(self, k: int, entering: Message) -> Saved:
        """The forward of stage k with its current weights."""
        stage = self.stages[k]
        activations = forward_layers(stage.layers, entering.value, stage.top)
        output = Message(entering.batch, activations[-1])
        return Saved(entering.batch, list(stage.layers), activations, stage.updates, output)

    def forward_all(self, t: int) -> list[Saved]:
        """Batch t through all stages at once."""
        saved = [self.forward(0, self.feed(t))]
        for k in range(1, self.num_stages):
            saved.append(self.forward(k, saved[-1].output))
        return saved

    def loss(self, saved: Saved) -> Message:
        """Records the loss of a batch that has left the top stage; the gradient of its logits."""
        labels = self.problem.batches[saved.batch][1]
        self.trajectory.losses[saved.batch], gradient = cross_entropy(saved.output.value, labels)
        return Message(saved.batch, gradient)

    def backward(self, k: int, saved: Saved, arriving: Message) -> Message:
        """From the gradient of stage k's output to that of its input; updates on a full group."""
        assert saved.batch == arriving.batch, (k, saved.batch, arriving.batch)
        stage, gradient = self.stages[k], arriving.value
        if k < self.last:
            gradient = self.problem.beta * gradient  # FDG eq. 15; what is sent on stays shrunk
        layers = saved.layers if self.weights == "stash" else stage.layers
        activations = saved.activations
        if self.weights == "replay":
            activations = forward_layers(layers, activations[0], stage.top)
        gradients, gradient = backward_layers(layers, activations, gradient, stage.top)
        t = len(self.trajectory.parameters)
        for n, staleness in stage.accumulate(saved, gradients, t).items():
            self.trajectory.staleness[k, n] = staleness
        self.unfinished -= 1
        return Message(saved.batch, gradient)


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


METHODS: dict[str, Callable[..., Trajectory]] = {
    method.__name__: method for method in (backprop, gpipe, ddg, features_replay, fdg, adl, dsp, pipedream)
}
