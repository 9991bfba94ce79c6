"""Speed-ups: by how much sooner a target is reached with more workers (eqs. 2.52 and 3.39)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes

from experiments.asynchronous.curves import Curve, colour, shown


def check_serial(workers: Sequence[int]) -> None:
    """Refuses numbers of workers that speed-ups cannot be told of.

    Raises:
      ValueError: 1 is not among them.
    """
    if 1 not in workers:
        raise ValueError(f"workers is {','.join(map(str, workers))}; write 1 too, which speed-ups compare with")


def common_target(curves: Sequence[Curve], of: str) -> float:
    """A value of the column that all the curves reach: the largest of their smallest."""
    return float(max(curve.column(of).min() for curve in curves)) * (1 + 1e-6)


def speedups(curves: Sequence[Curve], target: float, of: str) -> dict[int, float]:
    """For each number of workers the time of one worker by its time; NaN where one of them does not get there."""
    times = {curve.about["workers"]: curve.reaches(target, of, "seconds") for curve in curves}
    serial = times.get(1, math.inf)
    return {
        workers: serial / time if math.isfinite(serial) and 0 < time < math.inf else math.nan
        for workers, time in sorted(times.items())
    }


def described(factors: Mapping[int, float]) -> str:
    """Speed-ups for a sentence."""
    return ", ".join(f"{shown(factor)} with {workers}" for workers, factor in factors.items() if workers > 1)


def columns(factors: Callable[[Curve], float]) -> dict[str, Callable[[Curve], str]]:
    """Columns of a table: the speed-up of a curve, and its share of the ideal one."""

    def share(curve: Curve) -> str:
        ideal = factors(curve) / curve.about["workers"]
        return f"{100 * ideal:.0f} %" if math.isfinite(ideal) else "-"

    return {"speed-up": lambda curve: shown(factors(curve)), "of ideal": share}


def draw_speedups(axes: Axes, named: Mapping[str, Mapping[int, float]]) -> None:
    """Speed-ups against workers, and the ideal line."""
    all_workers = sorted({workers for factors in named.values() for workers in factors})
    axes.plot(all_workers, all_workers, color="grey", linestyle=":", label="ideal")
    for index, (label, factors) in enumerate(named.items()):
        marker = "os^D"[index % 4]
        axes.plot(list(factors), list(factors.values()), marker=marker, color=colour(index), label=label)
    axes.set(xlabel="workers", ylabel="time speed-up")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(all_workers, [str(workers) for workers in all_workers])
    axes.set_yticks(all_workers, [str(workers) for workers in all_workers])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
