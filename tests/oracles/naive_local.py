"""An oracle: methods by which stages learn locally, as naive float64 NumPy loops.

The network is that of `naive`. The auxiliary network of stage k is one linear layer: (A, c) for a classifier of its
output h, logits = h A + c; or for a predictor of the gradient of h, given h and the one-hot label y: [h y] A + c.
Iteration t: stage k has batch t - k, for an activation takes one iteration to the next stage.
"""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np

from tests.oracles import naive

Array = np.ndarray


@dataclass
class Trajectory(naive.Trajectory):
    """Also the auxiliary networks: ``auxiliary[t][k]`` is (A, c) after tick t; their losses by (stage, batch)."""

    auxiliary: list[list[naive.Layer]] = field(default_factory=list)
    local: dict[tuple[int, int], float] = field(default_factory=dict)


class Run:
    """Stages, their auxiliary networks, and what is under way between them."""

    def __init__(self, problem: naive.Problem, auxiliaries: tuple[naive.Layer, ...], rate: float | None) -> None:
        run = naive.Run(problem, "stash")
        theirs = replace(problem, layers=auxiliaries, learning_rate=rate or problem.learning_rate)
        self.problem, self.stages, self.last = problem, run.stages, run.last
        self.assistants = [naive.Stage(theirs, k, k + 1) for k in range(self.last)]
        self.classes = run.stages[-1].layers[-1][1].size
        self.trajectory = Trajectory()
        self.up: dict[int, naive.Message] = {}

    def forward(self, k: int, entering: naive.Message) -> list[Array]:
        return naive.forward_layers(self.stages[k].layers, entering.value, self.stages[k].top)

    def learn(self, k: int, batch: int, activations: list[Array], gradient: Array) -> Array:
        """Updates stage k with the gradient of its output; that of its input."""
        stage = self.stages[k]
        gradients, gradient = naive.backward_layers(stage.layers, activations, gradient, stage.top)
        stage.accumulate(SimpleNamespace(batch=batch, updates=stage.updates), gradients)
        return gradient

    def top(self, batch: int, activations: list[Array]) -> Array:
        loss, gradient = naive.cross_entropy(activations[-1], self.problem.batches[batch][1])
        self.trajectory.losses[batch] = loss
        return self.learn(self.last, batch, activations, gradient)

    def record(self) -> None:
        layers = [layer for stage in self.stages for layer in stage.layers]
        self.trajectory.parameters.append([(w.copy(), b.copy()) for w, b in layers])
        self.trajectory.auxiliary.append([tuple(a.copy() for a in s.layers[0]) for s in self.assistants])


def dgl(problem: naive.Problem, auxiliaries: tuple, *, rate: float | None = None) -> Trajectory:
    """Decoupled greedy learning, Belilovsky et al. (2020), Algorithm 1, its stages at work on successive batches.

    Stage and classifier take one step on the classifier's loss; on goes the activation from before it.
    """
    run = Run(problem, auxiliaries, rate)
    for t in range(len(problem.batches) + run.last):
        if t < len(problem.batches):
            run.up[0] = naive.Message(t, np.asarray(problem.batches[t][0], np.float64))
        sent = {}
        for k, entering in run.up.items():
            n, activations = entering.batch, run.forward(k, entering)
            if k == run.last:
                run.top(n, activations)
                continue
            sent[k + 1] = naive.Message(n, activations[-1])
            assistant = run.assistants[k]
            (a, c), h = assistant.layers[0], activations[-1]
            run.trajectory.local[k, n], g = naive.cross_entropy(h @ a + c, problem.batches[n][1])
            run.learn(k, n, activations, g @ a.T)
            assistant.accumulate(SimpleNamespace(batch=n, updates=0), [(h.T @ g, g.sum(axis=0))])
        run.up = sent
        run.record()
    return run.trajectory


def dni(
    problem: naive.Problem, auxiliaries: tuple, *, weights: str = "replay", rate: float | None = None
) -> Trajectory:
    """Decoupled neural interfaces, Jaderberg et al. (2017), section 2: each stage updates with a predicted gradient.

    The gradient of its input, which follows from the prediction, reaches the stage below an iteration later. There the
    predictor minimises the squared error, summed over features, mean over examples.
    """
    run = Run(problem, auxiliaries, rate)
    down: dict[int, naive.Message] = {}  # down[k]: for stage k, the gradient of its output
    told: dict[tuple[int, int], tuple] = {}  # what the predictor of stage k was given for batch n, and its weights
    for t in range(len(problem.batches) + run.last + min(run.last, 1)):
        if t < len(problem.batches):
            run.up[0] = naive.Message(t, np.asarray(problem.batches[t][0], np.float64))
        sent_up, sent_down = {}, {}
        for k, entering in run.up.items():
            n, activations = entering.batch, run.forward(k, entering)
            if k == run.last:
                gradient = run.top(n, activations)
            else:
                sent_up[k + 1] = naive.Message(n, activations[-1])
                given = np.hstack([activations[-1], np.eye(run.classes)[problem.batches[n][1]]])
                a, c = run.assistants[k].layers[0]
                told[k, n] = given, (a, c)
                gradient = run.learn(k, n, activations, given @ a + c)
            if k:
                sent_down[k - 1] = naive.Message(n, gradient)
        for k, (n, gradient) in down.items():
            given, (a, c) = told.pop((k, n))
            if weights == "replay":
                a, c = run.assistants[k].layers[0]
            error = given @ a + c - gradient
            run.trajectory.local[k, n] = (error**2).sum() / len(error)
            slope = 2 * error / len(error)
            run.assistants[k].accumulate(SimpleNamespace(batch=n, updates=0), [(given.T @ slope, slope.sum(axis=0))])
        run.up, down = sent_up, sent_down
        run.record()
    return run.trajectory
