"""What the naive loops have in common: layers, weights and the optimizer in float64 NumPy, and nothing of time.

The network is an MLP: h_l = tanh(h_{l-1} W_l + b_l), the last layer linear, mean softmax cross entropy, cut into stages
k = 0..K-1 (the papers' modules 1..K).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
