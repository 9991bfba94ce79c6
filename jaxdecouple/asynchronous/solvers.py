"""The solvers: one function for each method of the thesis's chapters 2 and 3, run by any of the engines."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, Unpack

import numpy as np
from jax.core import Tracer

from jaxdecouple.asynchronous.algorithms import step_sizes
from jaxdecouple.asynchronous.algorithms.algorithm import Algorithm, DualAscent, DualFree, Sgd, Svrg, SvrgInRounds
from jaxdecouple.asynchronous.algorithms.sampling import SAMPLINGS, Sampling
from jaxdecouple.asynchronous.algorithms.step_sizes import Safeguarded, Steps, check_positive
from jaxdecouple.asynchronous.engines import saving
from jaxdecouple.asynchronous.engines.options import Options, Settings, check_coordinates
from jaxdecouple.asynchronous.engines.run import solve
from jaxdecouple.asynchronous.outer import Outer
from jaxdecouple.asynchronous.problems.problem import Linear, Problem
from jaxdecouple.asynchronous.result import Result
from jaxdecouple.asynchronous.trace import Trace

Step = float | Literal["theorem"] | None
_ROUNDING = {4: 1e-6, 8: 1e-12}  # by bytes of a number


def sgd(
    problem: Problem,
    *,
    step_size: float,
    decay: float = 0.0,
    batch_size: int | None = None,
    coordinates: int | None = None,
    **options: Unpack[Options],
) -> Result:
    """Stochastic gradient descent with the polynomial rate of section 2.5.1; with several workers, AsySGD.

        w <- w - eta_s (1/|I|) sum_{i in I} grad f_i(w_{t - tau})        eta_s = step_size / (1 + s)^decay

    Args:
      problem: any.
      step_size: alpha of section 2.5.1.
      decay: beta of section 2.5.1, from 0 to 1; s counts outer iterations, which are epochs if ``inner_steps`` is not
        given.
      batch_size: |I|; 10, or all of a worker's examples if they are fewer.
      coordinates: how many random coordinates of w an update changes, a thousand in section 2.5.1; all, if not given.
      **options: see `Options`.

    Raises:
      ValueError: settings that cannot be used.
    """
    settings = Settings.of("sgd", options, problem)
    return solve(problem, *_sgd(problem, settings, step_size, decay, batch_size, coordinates))


def _sgd(
    problem: Problem,
    settings: Settings,
    step_size: float,
    decay: float,
    batch_size: int | None,
    coordinates: int | None = None,
    prefix: str = "",
) -> tuple[Algorithm, Settings, Steps]:
    check_positive(f"{prefix}step_size", step_size)
    if not 0 <= decay <= 1:
        raise ValueError(f"{prefix}decay is {decay}; write a number from 0 to 1")
    h = settings.per_message(problem, batch_size, 10, "batch_size")
    chosen = 0 if coordinates is None else check_coordinates(problem, coordinates)
    return Sgd(h, coordinates=chosen), settings, Steps(step_size, decay)


def distributed_asysvrg(
    problem: Problem, *, step_size: Step = None, batch_size: int | None = None, **options: Unpack[Options]
) -> Result:
    """Distributed-AsySVRG, Algorithms 2 and 3; the plain SVRG with one worker (`svrg`).

        v = (1/|I|) sum_{i in I} (grad f_i(w_{t-tau}) - grad f_i(snapshot) + grad f(snapshot))          (eq. 2.33)
        w <- w - eta v                                                                                  (eq. 2.32)

    Args:
      problem: any.
      step_size: eta, constant; None: from a tenth of 1 / (L + l2) on, where L is known, larger while the objective
        falls and smaller where it rises; "theorem": that of theorem 2.4.1.
      batch_size: |I|; 10, or all of a worker's examples if they are fewer.
      **options: see `Options`; ``inner_steps`` is m.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is given and beyond what theorem 2.4.1 allows.
    """
    settings = Settings.of("distributed_asysvrg", options, problem)
    return solve(problem, *_svrg(problem, Svrg, settings, step_size, batch_size))


def svrg(
    problem: Problem, *, step_size: Step = None, batch_size: int | None = None, **options: Unpack[Options]
) -> Result:
    """Stochastic variance reduced gradient: `distributed_asysvrg` with one worker and no delay."""
    return distributed_asysvrg(problem, step_size=step_size, batch_size=batch_size, **_alone("svrg", options, problem))


def distributed_svrg(
    problem: Problem, *, step_size: Step = None, batch_size: int | None = None, **options: Unpack[Options]
) -> Result:
    """Synchronous SVRG: `distributed_asysvrg` in rounds, each a step along the mean of one message of every worker."""
    settings = Settings.of("distributed_svrg", options, problem)
    return solve(problem, *_svrg(problem, SvrgInRounds, settings, step_size, batch_size))


def _svrg(
    problem: Problem, kind: type[Svrg], settings: Settings, step_size: Step, batch_size: int | None
) -> tuple[Algorithm, Settings, Steps]:
    algorithm = kind(settings.per_message(problem, batch_size, 10, "batch_size"))
    settings = settings.for_(problem, algorithm)
    if problem.smoothness is None or isinstance(problem.l2, Tracer):
        return algorithm, settings, _given(problem, step_size, "write step_size=...")
    largest, delay = float(np.max(problem.smoothness)) + problem.l2, settings.expected_delay
    usual = 0.1 / (largest or 1.0)  # of data that are all zeros any will do
    if step_size is None:
        return algorithm, settings, _safeguarded(problem, usual)
    bound = step_sizes.variance_reduced(largest=largest, h=algorithm.h, delay=delay, inner_steps=settings.inner_steps)
    if step_size == "theorem":
        return algorithm, settings, Steps(bound)
    check_positive("step_size", step_size)
    terms = f"L = {largest:.3g}, b = {algorithm.h}, Delta = {delay}, m = {settings.inner_steps}"
    step_sizes.warn_beyond(step_size, max(bound, usual), "theorem 2.4.1", bound, terms)
    return algorithm, settings, Steps(step_size)


def _given(problem: Problem, step_size: Step, remedy: str) -> Steps:
    """A constant step size where none can be derived."""
    if step_size is None or isinstance(step_size, str):
        if isinstance(problem.l2, Tracer):
            raise ValueError("l2 is traced, so no step size follows from it; write step_size=...")
        raise ValueError(f"no Lipschitz constant is known for this problem; {remedy}")
    step_size = float(step_size) if np.ndim(step_size) == 0 else step_size
    check_positive("step_size", step_size)
    return Steps(step_size)


def _safeguarded(problem: Problem, first: float, largest: float = float("inf")) -> Steps:
    return Safeguarded(first, largest=largest, rounding=_ROUNDING[np.dtype(problem.dtype).itemsize])


def sgd_svrg(
    problem: Problem,
    *,
    sgd_epochs: int = 10,
    sgd_step_size: float,
    sgd_decay: float = 0.0,
    step_size: Step = None,
    batch_size: int | None = None,
    **options: Unpack[Options],
) -> Result:
    """SVRG from where some epochs of SGD have led (SGD_SVRG, section 2.5.1); the trace holds both parts.

    Args:
      problem: any.
      sgd_epochs: outer iterations of `sgd`; they are taken from ``outer_steps``.
      sgd_step_size: of `sgd`.
      sgd_decay: of `sgd`.
      step_size: of `distributed_asysvrg`, as are the rest.
      batch_size: |I|; 10, or all of a worker's examples if they are fewer.
      **options: see `Options`.

    Raises:
      ValueError: settings that cannot be used.
    """
    settings = Settings.of("sgd_svrg", options, problem)
    if not isinstance(sgd_epochs, int | np.integer) or not 1 <= sgd_epochs < settings.outer_steps:
        raise ValueError(
            f"sgd_epochs is {sgd_epochs} of {settings.outer_steps} outer_steps; write a number from 1 to "
            f"{settings.outer_steps - 1}"
        )
    shorter = dataclasses.replace(settings, outer_steps=sgd_epochs)
    warm = _sgd(problem, shorter, sgd_step_size, sgd_decay, batch_size, prefix="sgd_")
    rest = _svrg(problem, Svrg, settings, step_size, batch_size)
    about = f"from {warm[2]!r} of {sgd_epochs}"
    if settings.resume and Svrg.__name__ in saving.fingerprint_of(settings.resume):
        return solve(problem, *rest, about=about)
    first = solve(problem, *warm, about="before SVRG", is_end=False, prefix="sgd_")
    last = first.trace[-1]
    if not isinstance(last.objective, Tracer):
        was_stopped = last.outer < sgd_epochs and not first.converged
        if was_stopped or not math.isfinite(last.objective):  # it has diverged
            return first
    counts = {name: getattr(last, name) for name in ("outer", "messages", "epochs", "seconds")}
    at = Outer(first.w, lost=first.lost, **counts)
    algorithm, settings, steps = rest
    second = solve(problem, algorithm, dataclasses.replace(settings, resume=None), steps, at=at, about=about)
    return dataclasses.replace(second, trace=Trace([*first.trace, *second.trace[1:]]))


def dis_dfsdca(
    problem: Problem,
    *,
    local_steps: int | None = None,
    step_size: Step = None,
    sampling: Sampling = "uniform",
    **options: Unpack[Options],
) -> Result:
    """Dis-dfSDCA, Algorithms 6 and 7: dual-free coordinate ascent by workers that nobody waits for.

        kappa = grad phi_i(w_{d(t)}) + alpha_i,  alpha_i <- alpha_i - eta l2 n kappa,  v <- v + kappa   (eqs. 3.6-3.8)
        w <- w - eta v                                                                                  (eq. 3.5)

    Args:
      problem: with l2 above 0; its phi_i may be non-convex, if their sum is convex.
      local_steps: H, examples of a message; 100, or all of a worker's examples if they are fewer.
      step_size: eta, constant; None: from that of `step_sizes.dual_free_default` on, larger while the objective falls
        and smaller where it rises; "theorem": that of eq. 3.18 or 3.30.
      sampling: of examples: "uniform", "importance" or "adaptive" (section 3.3.2).
      **options: see `Options`; ``inner_steps`` is T.

    Raises:
      ValueError: settings that cannot be used.

    Warns:
      StepSizeWarning: ``step_size`` is given and beyond eq. 3.18, or 3.30 for phi_i that are not convex.
    """
    _check_dual(problem, "dis_dfsdca")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; write one of {', '.join(SAMPLINGS)}")
    if sampling in ("importance", "adaptive") and problem.smoothness is None:
        raise ValueError(f"{sampling} sampling needs Lipschitz constants; write sampling='uniform', or give bounds")
    settings = Settings.of("dis_dfsdca", options, problem)
    algorithm = DualFree(settings.per_message(problem, local_steps, 100, "local_steps"), sampling)
    settings = settings.for_(problem, algorithm)
    return solve(problem, algorithm, settings, _dual_steps(problem, algorithm, settings, step_size))


def _dual_steps(problem: Problem, algorithm: DualFree, settings: Settings, step_size: Step) -> Steps:
    if problem.smoothness is None or isinstance(problem.l2, Tracer):
        return _given(problem, step_size, "write step_size=..., or give its bounds")
    h, workers = algorithm.h, settings.workers
    usual = step_sizes.dual_free_default(problem, h=h, workers=workers)
    if step_size is None:
        return _safeguarded(problem, usual, 1 / (problem.l2 * problem.n))
    convex = isinstance(problem, Linear) or getattr(problem, "convex_parts", False)
    bound = step_sizes.dual_free_convex if convex else step_sizes.dual_free_nonconvex
    largest, delay = float(np.max(problem.smoothness)), settings.expected_delay
    limit = bound(largest=largest, l2=problem.l2, n=problem.n, h=h, delay=delay)
    if step_size == "theorem":
        return Steps(limit)
    check_positive("step_size", step_size)
    terms = f"L = {largest:.3g}, H = {h}, tau = {delay}, n = {problem.n}, l2 = {problem.l2:g}"
    step_sizes.warn_beyond(step_size, max(limit, usual), f"eq. {'3.18' if convex else '3.30'}", limit, terms)
    return Steps(step_size)


def dfsdca(
    problem: Problem, *, step_size: Step = None, sampling: Sampling = "uniform", **options: Unpack[Options]
) -> Result:
    """Dual-free SDCA, Algorithm 5: `dis_dfsdca` with one worker and one example in a message."""
    alone = _alone("dfsdca", options, problem)
    return dis_dfsdca(problem, local_steps=1, step_size=step_size, sampling=sampling, **alone)


def cocoa_plus(
    problem: Problem, *, local_steps: int | None = None, sampling: Sampling = "shuffled", **options: Unpack[Options]
) -> Result:
    """CoCoA+ with SDCA as local solver (Ma et al. 2015), the baseline of section 3.5; synchronous, no step size.

    Args:
      problem: a linear one with a known dual.
      local_steps: H, examples of a message; 100, or all of a worker's examples if they are fewer.
      sampling: of examples: "shuffled", all of a worker's in a random order before any comes again; or "uniform".
      **options: see `Options`.

    Raises:
      ValueError: settings that cannot be used, or a problem without a dual.
    """
    settings = Settings.of("cocoa_plus", options, problem)
    return _ascend("cocoa_plus", problem, settings, local_steps, sampling)


def sdca(problem: Problem, *, sampling: Sampling = "shuffled", **options: Unpack[Options]) -> Result:
    """Stochastic dual coordinate ascent, Algorithm 4: `cocoa_plus` with one worker.

    Algorithm 4 draws examples uniformly, as ``sampling="uniform"`` does within each message; the default goes through
    all of them in a random order, again and again, which needs fewer epochs.
    """
    settings = Settings.of("sdca", _alone("sdca", options, problem), problem)
    return _ascend("sdca", problem, settings, None, sampling)


def _ascend(name: str, problem: Problem, settings: Settings, local_steps: int | None, sampling: Sampling) -> Result:
    _check_dual(problem, name)
    if not isinstance(problem, Linear):
        raise ValueError(
            f"{name} needs the conjugates of the phi_i, which {type(problem).__name__} does not have; write "
            f"{'dfsdca' if name == 'sdca' else 'dis_dfsdca'}, which does without"
        )
    if sampling not in ("uniform", "shuffled"):
        raise ValueError(f"sampling is {sampling!r}; write 'shuffled' or 'uniform'")
    h = settings.per_message(problem, local_steps, 100, "local_steps")
    return solve(problem, DualAscent(h, sampling, sigma=float(settings.workers)), settings, Steps(1.0))


def _alone(name: str, options: Options, problem: Problem) -> Any:
    """``options`` of the solver ``name``, which has one worker."""
    Settings.of(name, options, problem)
    if options.get("workers", 1) != 1:
        raise ValueError(f"workers is {options.get('workers')}, and {name} has one; leave it out")
    return {**options, "workers": 1}


def _check_dual(problem: Problem, name: str) -> None:
    if not isinstance(problem.l2, Tracer) and problem.l2 <= 0:
        raise ValueError(
            f"l2 is {problem.l2:g}, and {name} needs it above 0: w is the sum of the dual vectors by l2 n; write a "
            "positive l2"
        )
