"""Weights that are predicted or corrected, in the loops of `naive`: SpecTrain and PipeMare; and PipeDream-2BW."""

import numpy as np

from tests.oracles import naive


class ViewedStage(naive.Stage):
    """Remembers the last update, and a moving average of all: delta = gamma delta + (1 - gamma) (w_{t+1} - w_t)."""

    def begin(self, gamma):
        self.gamma = gamma
        self.last = self.delta = [(np.zeros_like(w), np.zeros_like(b)) for w, b in self.layers]

    def accumulate(self, saved, gradients, t=0):
        before, updates = list(self.layers), self.updates
        staleness = super().accumulate(saved, gradients, t)
        if self.updates > updates:
            self.last = moved(self.layers, -1, before)
            scaled = [(self.gamma * w, self.gamma * b) for w, b in self.delta]
            self.delta = moved(scaled, 1 - self.gamma, self.last)
        return staleness


def moved(layers, distance, direction):
    """Layers and a multiple of others, added."""
    pairs = zip(layers, direction, strict=True)
    return [(w + distance * dw, b + distance * db) for (w, b), (dw, db) in pairs]


class ViewedRun(naive.Run):
    """A forward of stage k with w + ahead[k] (w - w_before), a backward with w + back[k] of that, or w - tau[k] delta.

    Where there is neither ``back`` nor ``tau``, the backward is that of `naive`.
    """

    def __init__(self, problem, weights, *, ahead=None, back=None, tau=None, decay=0.135):
        super().__init__(problem, weights)
        self.ahead, self.back, self.tau = ahead, back, tau
        for k, stage in enumerate(self.stages):
            stage.__class__ = ViewedStage
            stage.begin(decay ** (1 / tau[k]) if tau and tau[k] else 0.0)

    def forward(self, k, entering):
        stage = self.stages[k]
        real = stage.layers
        if self.ahead:
            stage.layers = moved(real, self.ahead[k], stage.last)
        saved = super().forward(k, entering)
        stage.layers = real
        return saved

    def backward(self, k, saved, arriving):
        stage, policy = self.stages[k], self.weights
        if self.back or self.tau:
            chosen = moved(stage.layers, self.back[k], stage.last) if self.back else stage.layers
            chosen = moved(chosen, -self.tau[k], stage.delta) if self.tau else chosen
            saved, self.weights = saved._replace(layers=chosen), "stash"
        sent = super().backward(k, saved, arriving)
        self.weights = policy
        return sent


def two_versions(problem):
    """PipeDream-2BW: w_{t+1} = w_t - lr g(w_{t-1}), g the mean gradient of a group; the weights after every update."""
    layers, buffers = [(w.copy(), b.copy()) for w, b in problem.layers], None
    previous, found = layers, []
    for first in range(0, len(problem.batches) - problem.accumulate + 1, problem.accumulate):
        group = [gradients(previous, *batch) for batch in problem.batches[first : first + problem.accumulate]]
        mean = [
            tuple(sum(parts) / len(group) for parts in zip(*layer, strict=True)) for layer in zip(*group, strict=True)
        ]
        buffers = mean if buffers is None else moved(mean, problem.momentum, buffers)
        previous, layers = layers, moved(layers, -problem.learning_rate, buffers)
        found.append(layers)
    return found


def gradients(layers, x, y):
    """Of the whole network."""
    activations = naive.forward_layers(layers, x, top=True)
    return naive.backward_layers(layers, activations, naive.cross_entropy(activations[-1], y)[1], top=True)[0]
