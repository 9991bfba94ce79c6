"""Speed-up of Dis-dfSDCA and of CoCoA+ with more workers, one of which is sometimes late (thesis, Figure 7).

    python -m experiments.asynchronous.figure7
    python -m experiments.asynchronous.figure7 --data=libsvm:a9a --local_steps=100

Speed-up is the time of one worker to a duality gap by that of K; one worker alone is never late, unless --serial_late.
The problem and the data are those of figure6.

The directory gets results.json, table.md and figure7.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.asynchronous import figures, races, speedups
from experiments.asynchronous.curves import Curve, by, colour, draw
from experiments.report.workdir import Workdir
from experiments.settings import option

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure7(races.Race):
    """What is compared; each field is a flag."""

    workers: tuple[int, ...] = option((1, 2, 4, 8, 16), "numbers of workers, 1 among them", least=1)
    local_steps: int = option(20, "H, examples of a message", thesis=100, least=1)
    target: float = option(1e-4, "the duality gap whose time is taken")
    serial_late: bool = option(False, "let one worker alone be late too")

    name = "figure7"
    claim = (
        "With the same number of workers Dis-dfSDCA always converges faster than CoCoA+, and its speed-up is better, "
        "when there is a straggler (section 3.5.1.2)."
    )

    def check(self) -> None:
        super().check()
        speedups.check_serial(self.workers)

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        curves = []
        for name in self.data:
            problem = self.problem(name)
            for method in races.NAMES:
                for workers in self.workers:
                    own = {} if workers > 1 or self.serial_late else {"stragglers": self.late(0.0)}
                    curves.append(self.race(name, problem, method, workers, self.local_steps, **own))
        return curves, {}

    def factors(self, curves: Sequence[Curve]) -> dict[tuple[str, str], dict[int, float]]:
        """Speed-ups by number of workers, of each method on each data set."""
        groups = by(curves, "data", "method").items()
        return {key: speedups.speedups(group, self.target, "gap") for key, group in groups}

    def found(self, curves: Sequence[Curve]) -> str:
        pairs = [pair for (_, workers), pair in by(curves, "data", "workers").items() if workers > 1]
        wins = sum(self.seconds(ours) < self.seconds(other) for ours, other in pairs)
        parts = [
            f"{races.NAMES[method]} on {data}: {speedups.described(factors)}"
            for (data, method), factors in self.factors(curves).items()
        ]
        return (
            f"with the same number of workers, more than one, Dis-dfSDCA is first at a gap of {self.target:g} in "
            f"{wins} of {len(pairs)} cases. Speed-ups: {'; '.join(parts)}."
        )

    def columns(self, curves: Sequence[Curve]) -> figures.Columns:
        factors = self.factors(curves)

        def of(curve: Curve) -> float:
            return factors[curve.about["data"], curve.about["method"]][curve.about["workers"]]

        return {**super().columns(curves), **speedups.columns(of)}

    def draw(self, curves: Sequence[Curve], picture: Figure) -> None:
        """For each data set a panel of speed-ups, and one of gaps against time."""
        of_data, factors = by(curves, "data"), self.factors(curves)
        picture.set_size_inches(11.5, 4 * len(of_data) + 0.5)
        panels = picture.subplots(len(of_data), 2, squeeze=False)
        for (left, right), (data, chosen) in zip(panels, of_data.items(), strict=True):
            speedups.draw_speedups(left, {name: factors[data, key] for key, name in races.NAMES.items()})
            left.set_title(data, fontsize=10)
            right.set(xlabel="time (s)", ylabel="duality gap", yscale="log", xscale="log")
            for (method, group), dashes in zip(by(chosen, "method").items(), ("-", "--"), strict=True):
                for index, curve in enumerate(group):
                    label = f"{races.NAMES[method]}, {curve.about['workers']}"
                    draw(right, curve, "seconds", "gap", label, linestyle=dashes, color=colour(index))
            right.axhline(self.target, color="grey", linestyle=":", linewidth=1)
            right.grid(alpha=0.3, which="both")
            beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "title": "method, workers"}
            right.legend(frameon=False, fontsize=8, **beside)
        what = f"quadratic loss, l2 = {self.l2:g}, H = {self.local_steps}, {self.engine}"
        below = "dotted: ideal, and the gap whose time is taken"
        picture.suptitle(f"{what}; {self.described_straggler()}\n{below}")


if __name__ == "__main__":
    Figure7.start()
