"""One run of one method on one problem: the settings, the problem they make, and the call of the solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.settings import Settings, option
from experiments.training.stopping import NonFiniteLoss
from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Clock, Problem, Record, Result, Stragglers
from jaxdecouple.asynchronous.sources import Source, classes, load, signs

PROBLEMS = ("ridge", "quadratic", "logistic", "smoothed_hinge", "pca", "network")
ENGINES = ("simulated", "local", "ray")
DTYPES = ("float64", "float32")

# What each method takes besides what all of them do.
METHODS: dict[str, tuple[str, ...]] = {
    "sgd": ("step_size", "decay", "batch_size", "coordinates"),
    "svrg": ("step_size", "batch_size"),
    "sgd_svrg": ("step_size", "batch_size", "sgd_epochs", "sgd_step_size", "sgd_decay"),
    "shared_asysvrg": ("step_size", "batch_size", "coordinates"),
    "distributed_asysvrg": ("step_size", "batch_size"),
    "distributed_svrg": ("step_size", "batch_size"),
    "sdca": (),
    "dfsdca": ("step_size", "sampling"),
    "dis_dfsdca": ("local_steps", "step_size", "sampling"),
    "cocoa_plus": ("local_steps",),
}
OF_METHODS = {name for names in METHODS.values() for name in names}
# Other settings that have an effect with some values of another alone.
ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "mu": ("problem", ("pca",)),
    "gamma": ("problem", ("smoothed_hinge",)),
    "hidden": ("problem", ("network",)),
    "labels": ("problem", ("ridge", "quadratic", "logistic", "smoothed_hinge")),
    "example_seconds": ("engine", ("simulated",)),
    "message_seconds": ("engine", ("simulated",)),
    "update_seconds": ("engine", ("simulated",)),
}
ALONE = ("svrg", "sdca", "dfsdca")  # methods of one worker
NEEDS_STEP = ("sgd", "shared_asysvrg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solving(Settings):
    """What is solved, and how; each field is a command-line flag."""

    method: str = option("dis_dfsdca", f"one of {', '.join(METHODS)}", choices=tuple(METHODS))
    problem: str = option("ridge", f"one of {', '.join(PROBLEMS)}", choices=PROBLEMS)
    data: str = option("digits", "digits, libsvm:PATH, npz:PATH, made:NxD or made:NxD:DENSITY")
    test_data: str = option("", "libsvm:PATH of the test part of libsvm:PATH")
    num_examples: int = option(0, "the first so many examples; 0: all", least=0)
    labels: str = option(
        "auto",
        "auto: as they are for ridge and quadratic, classes for network, signs for others; signs: two labels become "
        "-1 and 1, of more the odd ones 1; a number: that class is 1, the rest -1",
    )
    l2: float = option(0.1, "weight of the regularisation, lambda", least=0)
    mu: float = option(100.0, "pca: mu of eq. 3.40")
    gamma: float = option(1.0, "smoothed_hinge: over how much the hinge is rounded")
    hidden: int = option(32, "network: units of the hidden layer", least=1)
    workers: int = option(4, "K; methods of one worker take 1, whatever is said here", least=1)
    engine: str = option("simulated", f"one of {', '.join(ENGINES)}", choices=ENGINES)
    delays: str = option(
        "", "simulated: empty: a virtual clock's; a number for all messages; drawn:N: drawn from 0 to N"
    )
    local_steps: int = option(
        0, "H, examples of a message of the dual methods; 0: 100, or as many as there are", least=0
    )
    batch_size: int = option(0, "examples of a message of the primal methods; 0: 10, or as many as there are", least=0)
    coordinates: int = option(0, "sgd, shared_asysvrg: coordinates an update changes; 0: all of them", least=0)
    outer_steps: int = option(30, "S, outer iterations", least=1)
    inner_steps: int = option(0, "T or m, messages of an outer iteration; 0: as many as read n examples", least=0)
    step_size: float = option(0.0, "eta; 0: the solver's own, larger while the objective falls", least=0)
    tol: float = option(
        0.0, "ends a run at this duality gap by the objective, or gradient by its first; 0: never", least=0
    )
    decay: float = option(0.0, "sgd: eta goes down with the power of this of the epoch")
    sgd_epochs: int = option(10, "sgd_svrg: outer iterations of SGD, taken from outer_steps", least=1)
    sgd_step_size: float = option(0.05, "sgd_svrg: step size of SGD")
    sgd_decay: float = option(0.0, "sgd_svrg: decay of SGD")
    sampling: str = option("uniform", "dfsdca, dis_dfsdca: uniform, importance or adaptive")
    straggler_probability: float = option(0.0, "p: how often a message of a straggler is late (thesis: 0.2)")
    straggler_slowdown: tuple[float, ...] = option((0.0, 10.0), "it is late by m computing times, m between these")
    straggler_workers: tuple[int, ...] = option((0,), "the workers that are sometimes late", least=0)
    example_seconds: float = option(1e-6, "virtual clock: a gradient of one example", least=0)
    message_seconds: float = option(1e-4, "virtual clock: the way to the server and back", least=0)
    update_seconds: float = option(1e-5, "virtual clock: an update by the server", least=0)
    checkpoint: str = option("", "a file to write at the end of each outer iteration")
    resume: str = option("", "such a file, to go on from")
    dtype: str = option("float64", "float64 or float32", choices=DTYPES)
    seed: int = option(0, "of the examples that are chosen, of a network, and of made data", least=0)

    def check(self) -> None:
        """Refuses what cannot be run, as far as it can be told without the data; ranges have been checked."""
        if self.method in NEEDS_STEP and not self.step_size:
            raise ValueError(f"step_size is 0, and {self.method} has no step size of its own; write --step_size=0.01")
        self.stragglers()
        self.parsed_delays()
        self.positive()
        self._check_effects()

    def _check_effects(self) -> None:
        """Refuses settings without effect."""
        named = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        given = {name: value for name, (value, default) in named.items() if value != default}
        for name, value in given.items():
            setting, values = ONLY_WITH.get(name, ("method", METHODS))
            if name in OF_METHODS:
                values = tuple(method for method, takes in METHODS.items() if name in takes)
            if getattr(self, setting) not in values:
                raise ValueError(
                    f"{name} is {value}, but {setting} {getattr(self, setting)} has no such setting; write --{setting}="
                    f"{' or '.join(values)}, or leave it out"
                )
        if not self.straggler_probability and {"straggler_slowdown", "straggler_workers"} & {*given}:
            raise ValueError("stragglers are given, but straggler_probability is 0; write --straggler_probability=0.2")

    def clock(self) -> Clock:
        """The virtual clock."""
        return Clock(self.example_seconds, self.message_seconds, self.update_seconds)

    def stragglers(self) -> Stragglers:
        """The workers that are sometimes late."""
        return stragglers(self.straggler_probability, self.straggler_slowdown, self.straggler_workers, self.seed)

    def parsed_delays(self) -> Any:
        """What the solver takes as delays."""
        kind, _, number = self.delays.rpartition(":")
        if not self.delays:
            return None
        if kind not in ("", "drawn") or not number.isdigit():
            raise ValueError(f"delays is {self.delays!r}; write a number such as 3, drawn:3, or nothing for a clock's")
        return asynchronous.DrawnDelays(int(number), self.seed) if kind else int(number)

    def positive(self) -> float | None:
        """The label that becomes 1, or None."""
        if self.labels in ("auto", "signs"):
            return None
        try:
            return float(self.labels)
        except ValueError:
            raise ValueError(f"labels is {self.labels!r}; write auto, signs, or a class, such as 3") from None

    def load(self) -> Source:
        """The data."""
        return load(self.data, test=self.test_data, dtype=np.dtype(self.dtype), seed=self.seed).first(self.num_examples)

    def make(self, source: Source) -> Problem:
        """The problem.

        Raises:
          ValueError: the data do not suit it.
        """
        if self.problem in ("pca", "network") and source.is_sparse:
            raise ValueError(
                f"{source.name} is sparse, and {self.problem} needs dense data; write digits, npz:PATH or made:NxD"
            )
        if self.problem == "pca":
            return asynchronous.pca(source.x, mu=self.mu, l2=self.l2)
        if self.problem == "network":
            return asynchronous.network(source.x, classes(source.y), hidden=self.hidden, l2=self.l2, seed=self.seed)
        as_they_are = self.labels == "auto" and self.problem in ("ridge", "quadratic")
        y = source.y if as_they_are else signs(source.y, self.positive())
        more = {"gamma": self.gamma} if self.problem == "smoothed_hinge" else {}
        return getattr(asynchronous, self.problem)(source.x, y, l2=self.l2, **more)

    def solve(self, problem: Problem, on_record: Callable[[Record], None]) -> Result:
        """Runs the method; ``on_record`` gets one record after another.

        Raises:
          ValueError: settings that cannot be used.
          NonFiniteLoss: the run diverged.
        """

        def noted(record: Record, _: Any) -> None:
            guard(record)
            on_record(record)

        arguments = {name: getattr(self, name) for name in METHODS[self.method]}
        for name in ("step_size", "local_steps", "batch_size"):  # 0: the solver's own
            if not arguments.get(name, 1):
                del arguments[name]
        if "coordinates" in arguments:
            arguments["coordinates"] = self.coordinates or problem.d
        return getattr(asynchronous, self.method)(
            problem,
            **arguments,
            workers=1 if self.method in ALONE else self.workers,
            engine=self.engine,
            delays=self.parsed_delays(),
            outer_steps=self.outer_steps,
            inner_steps=self.inner_steps or None,
            tol=self.tol or None,
            seed=self.seed,
            clock=self.clock(),
            stragglers=self.stragglers(),
            checkpoint=self.checkpoint or None,
            resume=self.resume or None,
            on_record=noted,
        )


def stragglers(
    probability: float, slowdown: tuple[float, ...], workers: tuple[int, ...] = (0,), seed: int = 0
) -> Stragglers:
    """Workers that are late.

    Raises:
      ValueError: ``slowdown`` is not two numbers, or `Stragglers` refuses them.
    """
    if len(slowdown) != 2:
        given = ",".join(f"{number:g}" for number in slowdown)
        raise ValueError(f"straggler_slowdown is {given!r}; write two numbers, such as 0,10")
    return Stragglers(probability, (slowdown[0], slowdown[1]), workers, seed)


def guard(record: Record) -> None:
    """Ends a run that diverged.

    Raises:
      NonFiniteLoss: it did.
    """
    if not math.isfinite(record.objective):
        raise NonFiniteLoss(
            f"the objective is {record.objective} in outer iteration {record.outer}; write a smaller --step_size"
        )
