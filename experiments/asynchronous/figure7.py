"""Speed-up of Dis-dfSDCA and of CoCoA+ with more workers, one of which is sometimes late (thesis, Figure 7).

    python -m experiments.asynchronous.figure7
    python -m experiments.asynchronous.figure7 --data=libsvm:a9a --local_steps=100

Speed-up is the time of one worker to a duality gap by that of K; one worker alone is never late, unless --serial_late.
The problem and the data are those of figure6.

The directory gets results.json, table.md and figure7.png.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

from matplotlib.figure import Figure

from experiments.asynchronous import figures, races, scales
from experiments.asynchronous.curves import Curve, colour, draw, report, shown, write
from experiments.asynchronous.scales import option
from experiments.asynchronous.speedups import described, draw_speedups, speedups
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir

CLAIM = (
    "With the same number of workers Dis-dfSDCA always converges faster than CoCoA+, and its speed-up is better, when "
    "there is a straggler (section 3.5.1.2)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(races.Costs, races.Shape):
    """What is compared; each field is a flag."""

    data: tuple[str, ...] = option(
        ("made:10000x22:0.41", "made:20000x54:0.22"),
        "data sets: libsvm:PATH, digits, npz:PATH, made:NxD:DENSITY",
        thesis=("made:49990x22:0.41", "made:581012x54:0.22", "made:677399x47236:0.0016"),
    )
    workers: tuple[int, ...] = option((1, 2, 4, 8, 16), "numbers of workers, 1 among them", least=1)
    local_steps: int = option(20, "H, examples of a message", thesis=100, least=1)
    step_sizes: tuple[float, ...] = option(
        (0.0,),
        "eta to try, for each number of workers; 0: the solver's own",
        thesis=(0.0, 1.0, 0.1, 1e-3, 1e-4),
        least=0,
    )
    outer_steps: int = option(20, "S, outer iterations of an epoch each", thesis=50, least=1)
    target: float = option(1e-4, "the duality gap whose time is taken")
    serial_late: bool = option(False, "let one worker alone be late too")

    def check(self) -> None:
        super().check()
        if 1 not in self.workers:
            raise ValueError(
                f"workers is {','.join(map(str, self.workers))}; write 1 too, which speed-ups compare with"
            )
        if not self.target > 0:
            raise ValueError(f"target is {self.target}; write a duality gap above 0, such as 1e-4")


def measure(setting: Setting) -> list[Curve]:
    """All runs: of each method, data set and number of workers the step size that is first at the target."""
    curves = []
    for name in setting.data:
        problem = setting.quadratic(name, dtype=setting.dtype, seed=setting.seed)
        for method in races.NAMES:
            for workers in setting.workers:
                about = {
                    "data": scales.named(name),
                    "n": problem.n,
                    "d": problem.d,
                    "method": method,
                    "workers": workers,
                }
                options = setting.options()
                if workers == 1 and not setting.serial_late:
                    options["stragglers"] = setting.late(0.0)
                curve = races.tuned(
                    problem,
                    method,
                    setting.step_sizes,
                    lambda curve: (curve.reaches(setting.target, "gap", "seconds"), curve.last("gap")),
                    about,
                    workers=workers,
                    local_steps=setting.local_steps,
                    outer_steps=setting.outer_steps,
                    **options,
                )
                if curve is None:
                    raise ValueError(f"all step sizes diverge on {name}, {workers} workers; write smaller --step_sizes")
                curves.append(curve)
                seconds = shown(curve.reaches(setting.target, "gap", "seconds"))
                who = f"{about['data']}, {races.NAMES[method]}, {workers} workers"
                print(f"{who}: gap {setting.target:g} after {seconds} s", flush=True)
    return curves


def of(curves: list[Curve], data: str, method: str) -> list[Curve]:
    """The curves of a method on a data set."""
    return [curve for curve in curves if (curve.about["data"], curve.about["method"]) == (data, method)]


def data_sets(curves: list[Curve]) -> list[str]:
    """The data sets there are curves of."""
    return list(dict.fromkeys(curve.about["data"] for curve in curves))


def found(curves: list[Curve], target: float) -> str:
    """What the numbers say about the claim."""
    parts, wins, pairs = [], 0, 0
    for data in data_sets(curves):
        times = []
        for method, name in races.NAMES.items():
            chosen = of(curves, data, method)
            parts.append(f"{name} on {data}: {described(speedups(chosen, target, 'gap'))}")
            times.append({curve.about["workers"]: curve.reaches(target, "gap", "seconds") for curve in chosen})
        several = [workers for workers in times[0] if workers > 1]
        wins += sum(times[0][workers] < times[1][workers] for workers in several)
        pairs += len(several)
    return (
        f"with the same number of workers, more than one, Dis-dfSDCA is first at a gap of {target:g} in {wins} of "
        f"{pairs} cases. Speed-ups: {'; '.join(parts)}."
    )


def as_markdown(curves: list[Curve], target: float) -> str:
    """A row for each run."""
    rows = [["data", "method", "workers", "eta", f"time to gap {target:g} (s)", "epochs to it", "speed-up", "of ideal"]]
    for data in data_sets(curves):
        for method, name in races.NAMES.items():
            chosen = of(curves, data, method)
            factors = speedups(chosen, target, "gap")
            for curve in chosen:
                workers = curve.about["workers"]
                ideal = factors[workers] / workers
                rows.append(
                    [
                        data,
                        name,
                        str(workers),
                        shown(curve.about.get("step_size", math.nan)),
                        shown(curve.reaches(target, "gap", "seconds")),
                        shown(curve.reaches(target, "gap", "epochs")),
                        shown(factors[workers]),
                        f"{100 * ideal:.0f} %" if math.isfinite(ideal) else "-",
                    ]
                )
    return markdown(rows)


def plot(curves: list[Curve], target: float, path: pathlib.Path, title: str) -> None:
    """For each data set a panel of speed-ups, and one of gaps against time."""
    names = data_sets(curves)
    figure = Figure(figsize=(11.5, 4 * len(names) + 0.5), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for (left, right), data in zip(panels, names, strict=True):
        draw_speedups(left, {name: speedups(of(curves, data, key), target, "gap") for key, name in races.NAMES.items()})
        left.set_title(data, fontsize=10)
        right.set(xlabel="time (s)", ylabel="duality gap", yscale="log", xscale="log")
        for method, dashes in zip(races.NAMES, ("-", "--"), strict=True):
            for index, curve in enumerate(of(curves, data, method)):
                label = f"{races.NAMES[method]}, {curve.about['workers']}"
                draw(right, curve, "seconds", "gap", label, linestyle=dashes, color=colour(index))
        right.axhline(target, color="grey", linestyle=":", linewidth=1)
        right.grid(alpha=0.3, which="both")
        right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="method, workers", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def run(setting: Setting, workdir: pathlib.Path, *, overwrite: bool = False) -> str:
    """Measures, writes everything, and returns table.md.

    Raises:
      ValueError: settings that cannot be used.
    """
    setting.check()
    output = Workdir(workdir, scales.described(setting), overwrite=overwrite)
    with scales.precision(setting.dtype):
        curves = measure(setting)
    text = report(CLAIM, found(curves, setting.target), as_markdown(curves, setting.target))
    write(output, scales.described(setting), curves, text)
    low, high = setting.straggler_slowdown
    late = f"worker 0 late with p = {setting.straggler_probability:g} by {low:g} to {high:g} computing times"
    title = f"quadratic loss, l2 = {setting.l2:g}, H = {setting.local_steps}, {setting.engine}; {late}"
    plot(curves, setting.target, output.file("figure7.png"), f"{title}\ndotted: ideal, and the gap whose time is taken")
    return text


if __name__ == "__main__":
    figures.start("figure7", Setting, run)
