"""Runs of the engines that are really asynchronous: what their workers are given, and what is made of the results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, Server
from jaxdecouple.asynchronous.algorithms.sampling import rows_of
from jaxdecouple.asynchronous.engines import saving
from jaxdecouple.asynchronous.engines.options import Settings
from jaxdecouple.asynchronous.engines.serving import Job, Outer
from jaxdecouple.asynchronous.engines.worker import Task
from jaxdecouple.asynchronous.problems.problem import Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import Meter, Trace

ONE_CORE = {"JAX_PLATFORMS": "cpu", "NPROC": "1"}  # environment of a process that computes with one core
RESTARTS = 20  # of one worker, after which a run is given up


class ServerLost(RuntimeError):
    """The server of a run ended before its time; the message says how to go on."""


class WorkersLost(RuntimeError):
    """A worker of a run cannot be kept alive; the message says why."""


def how_to_go_on(job: Job, end: str, last: int | None) -> str:
    """What to say when the server has ended; ``last`` is the last outer iteration that is known to be done."""
    done = "before the first outer iteration was done" if last is None else f"after outer iteration {last}"
    if not job.checkpoint:
        remedy = "nothing was saved; write checkpoint=PATH to have something to go on from"
    elif last is None:
        remedy = f"if {job.checkpoint} is there, resume={job.checkpoint!r} goes on from it"
    else:
        remedy = f"write resume={job.checkpoint!r} to go on from there"
    return f"the server ended {done} ({end}); {remedy}"


def run(
    problem: Problem,
    algorithm: Algorithm,
    settings: Settings,
    server: Server,
    steps: Sequence[float],
    meter: Meter,
    per_outer: float,
) -> Result:
    """Solves a problem with the local or the ray engine.

    What is measured is measured in this process, when the workers are done: it takes nothing of their time. If
    the server is lost, what there is until then is measured, and passed to ``on_record``, before the error is raised.

    Args:
      problem: the whole problem.
      algorithm: what is computed.
      settings: of the run.
      server: at the start.
      steps: the factor of v in each outer iteration.
      meter: makes records.
      per_outer: epochs in an outer iteration.

    Raises:
      ValueError: a checkpoint cannot be used, or the problem cannot be sent to other processes.
      ServerLost: the server ended before its time.
      WorkersLost: a worker could not be kept alive.
    """
    serve = _engine(settings.engine)
    job = _job(problem, algorithm, settings, steps)
    at = Outer(np.asarray(server.w), None if server.alpha is None else np.asarray(server.alpha))
    if settings.resume:
        at = Outer(**saving.load(settings.resume, job.fingerprint))
    if job.checkpoint:
        saving.check_writable(job.checkpoint)
    done = [at]
    try:
        for outer in serve(job, at, _tasks(problem, algorithm, settings)):
            done.append(outer)
            if not _has_measurable_dual(outer):
                done[-2] = dataclasses.replace(done[-2], alpha=None)  # which may be as large as the data
    finally:
        for outer in done:
            _record(meter, outer, settings, per_outer)
    end = done[-1]
    alpha = None if end.alpha is None else jnp.asarray(end.alpha)
    return Result(jnp.asarray(end.w), alpha, Trace(meter.records), steps[0], end.lost)


def _engine(name: str) -> Callable[[Job, Outer, list[Task]], Iterator[Outer]]:
    if name == "ray":
        from jaxdecouple.asynchronous.engines import ray_actors

        return ray_actors.serve
    from jaxdecouple.asynchronous.engines import local

    return local.serve


def _job(problem: Problem, algorithm: Algorithm, settings: Settings, steps: Sequence[float]) -> Job:
    w = hashlib.sha256(np.asarray(problem.gradient(jnp.zeros(problem.d, problem.dtype))).tobytes()).hexdigest()[:12]
    what = f"{algorithm} of {type(problem).__name__} with n={problem.n}, d={problem.d}, l2={problem.l2:g}, data {w}"
    fingerprint = f"{what}, workers={settings.workers}, inner_steps={settings.inner_steps}"
    return Job(
        algorithm=algorithm,
        n=problem.n,
        l2=problem.l2,
        workers=settings.workers,
        inner_steps=settings.inner_steps,
        steps=tuple(steps),
        checkpoint=settings.checkpoint,
        fingerprint=fingerprint,
    )


def _tasks(problem: Problem, algorithm: Algorithm, settings: Settings) -> list[Task]:
    tasks = []
    for worker in range(settings.workers):
        part = problem.part(rows_of(worker, settings.workers, problem.n))
        part = jax.tree.map(np.asarray, part)
        tasks.append(Task(part, algorithm, worker, settings.seed, settings.stragglers))
    return tasks


def _has_measurable_dual(outer: Outer) -> bool:
    return outer.alpha is not None and outer.alpha.ndim == 1


def _record(meter: Meter, outer: Outer, settings: Settings, per_outer: float) -> None:
    alpha = outer.alpha if _has_measurable_dual(outer) else None
    meter.record(
        outer.w,
        alpha,
        outer=outer.outer,
        messages=outer.outer * settings.inner_steps,
        epochs=outer.outer * per_outer,
        seconds=outer.seconds,
        delays=outer.delays,
    )
