"""Dis-dfSDCA against CoCoA+: duality gap against time and epochs, where a worker is sometimes late (thesis, Figure 6).

    python -m experiments.asynchronous.figure6
    python -m experiments.asynchronous.figure6 --data=libsvm:a9a --workers=4

The quadratic loss of eq. 3.38 with l2 = 0.1; the thesis has IJCNN1 on 4 workers, COVTYPE on 8, RCV1 on 16, with H =
100 and 1000. Without those files, --scale=thesis makes data of their sizes. At the small scale there are few examples,
and H and what messages cost are a tenth. Of the step sizes of Dis-dfSDCA the best is shown.

The directory gets results.json, table.md and figure6.png.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.asynchronous import races
from experiments.asynchronous.curves import Curve, by, colour, draw
from experiments.report.workdir import Workdir
from experiments.settings import option

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure6(races.Race):
    """What is compared; each field is a flag."""

    data: tuple[str, ...] = option(
        ("made:10000x22:0.41", "made:20000x54:0.22", "made:20000x2000:0.01"),
        "data sets: libsvm:PATH, digits, npz:PATH, made:NxD:DENSITY",
        thesis=("made:49990x22:0.41", "made:581012x54:0.22", "made:677399x47236:0.0016"),
    )
    workers: tuple[int, ...] = option((4, 8, 16), "K for each data set, or one for all", least=1)
    local_steps: tuple[int, ...] = option((10, 100), "H, examples of a message", thesis=(100, 1000), least=1)
    step_sizes: tuple[float, ...] = option(
        (0.0, 1e-3, 1e-4), "eta to try; 0: the solver's own", thesis=(0.0, 1.0, 0.1, 1e-3, 1e-4), least=0
    )
    outer_steps: int = option(30, "S, outer iterations of an epoch each", thesis=100, least=1)

    name = "figure6"
    claim = (
        "Dis-dfSDCA and CoCoA+ need about as many epochs, both converging linearly, and Dis-dfSDCA needs less time, "
        "with H = 100 and with H = 1000, since CoCoA+ waits for the straggler (section 3.5.1.1)."
    )

    def check(self) -> None:
        super().check()
        if len(self.workers) not in (1, len(self.data)):
            raise ValueError(
                f"workers has {len(self.workers)} numbers, and there are {len(self.data)} data sets; write one for "
                "each, or one for all"
            )

    def pairs(self) -> list[tuple[str, int]]:
        """Data sets and their numbers of workers."""
        workers = self.workers * len(self.data) if len(self.workers) == 1 else self.workers
        return list(zip(self.data, workers, strict=True))

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        curves = []
        for name, workers in self.pairs():
            problem = self.problem(name)
            for method in races.NAMES:
                curves += [self.race(name, problem, method, workers, h) for h in self.local_steps]
        return curves, {}

    def found(self, curves: Sequence[Curve]) -> str:
        pairs = by(curves, "data", "workers", "h").values()  # of Dis-dfSDCA and CoCoA+
        faster = sum(self.seconds(ours) < self.seconds(other) for ours, other in pairs)
        epochs = [[curve.reaches(self.target, "gap", "epochs") for curve in pair] for pair in pairs]
        ratios = [ours / other for ours, other in epochs if math.isfinite(ours) and math.isfinite(other)]
        cases = f"{faster} of {len(pairs)} cases"
        text = f"Dis-dfSDCA reaches a gap of {self.target:g} before CoCoA+ with the same H in {cases}"
        if ratios:
            span = " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (min(ratios), max(ratios))))
            text += f"; it takes {span} times as many epochs, where both get there"
        return text + "."

    def draw(self, curves: Sequence[Curve], picture: Figure) -> None:
        """A row of two panels for each data set: the gap against time, and against epochs."""
        of_data = by(curves, "data", "workers")
        picture.set_size_inches(10, 3.3 * len(of_data) + 0.8)
        panels = picture.subplots(len(of_data), 2, squeeze=False)
        sizes = sorted({curve.about["h"] for curve in curves})
        for row, ((name, workers), chosen) in zip(panels, of_data.items(), strict=True):
            for panel, (x, below) in zip(row, (("seconds", "time (s)"), ("epochs", "epochs")), strict=True):
                panel.set(xlabel=below, ylabel="duality gap", yscale="log")
                for curve in chosen:
                    label = f"{races.NAMES[curve.about['method']]}, H = {curve.about['h']}"
                    dashes = "--" if curve.about["method"] == "cocoa_plus" else "-"
                    draw(panel, curve, x, "gap", label, linestyle=dashes, color=colour(sizes.index(curve.about["h"])))
                panel.grid(alpha=0.3, which="both")
                panel.set_title(f"{name}, {workers} workers", fontsize=10)
        picture.suptitle(f"quadratic loss, l2 = {self.l2:g}, {self.engine}; {self.described_straggler()}")
        picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


if __name__ == "__main__":
    Figure6.start()
