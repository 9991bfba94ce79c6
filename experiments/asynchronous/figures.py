"""A figure of the thesis is a program: its fields are flags, and it measures, says and draws what the thesis showed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from absl import flags

from experiments import cli as command_line
from experiments import devices
from experiments.asynchronous.curves import Curve, described, rounded
from experiments.report.tables import markdown
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, read

if TYPE_CHECKING:
    import matplotlib.figure

Columns = Mapping[str, Callable[[Curve], str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure(Settings):
    """What all figures have; each field of a figure is a flag.

    Attributes:
      name: of the picture, and of the directory below runs/.
      claim: what the thesis says.
      interrupted: what to say of the results after Ctrl-C.
    """

    name: ClassVar[str]
    claim: ClassVar[str]
    interrupted: ClassVar[str] = "nothing but config.json was written"

    def measure(self, output: Workdir) -> tuple[list[Curve], dict[str, Any]]:
        """All curves, and what else belongs in results.json."""
        raise NotImplementedError

    def found(self, curves: Sequence[Curve]) -> str:
        """What the numbers say about the claim."""
        raise NotImplementedError

    def columns(self, curves: Sequence[Curve]) -> Columns:
        """The table's columns; it has a row for each curve."""
        raise NotImplementedError

    def draw(self, curves: Sequence[Curve], picture: matplotlib.figure.Figure) -> None:
        """Draws them."""
        raise NotImplementedError

    def run(self, workdir: pathlib.Path, *, overwrite: bool = False) -> str:
        """Measures, writes results.json, table.md and a picture, and returns table.md.

        Raises:
          ValueError: data or workdir cannot be used.
        """
        settings = described(self)
        output = Workdir(workdir, settings, overwrite=overwrite)
        with devices.precision(getattr(self, "dtype", "float32")):
            curves, more = self.measure(output)
        columns = self.columns(curves)
        table = markdown([[*columns], *([cell(curve) for cell in columns.values()] for curve in curves)])
        text = f"**The thesis:** {self.claim}\n\n**Found:** {self.found(curves)}\n\n{table}"
        result = {"setting": settings, "machine": devices.describe(), **more}
        result["curves"] = [{"about": rounded(dict(curve.about)), "rows": list(curve.rows)} for curve in curves]
        output.write_json("results.json", result, depth=4)
        output.write("table.md", text + "\n")
        from matplotlib.figure import Figure as Picture  # --help need not wait for it

        picture = Picture(layout="constrained")
        self.draw(curves, picture)
        picture.savefig(output.file(f"{self.name}.png"), dpi=110)
        return text

    @classmethod
    def start(cls) -> None:
        """Runs the figure with the flags of the command line."""
        define(cls, scaled=True)
        command_line.define_workdir()
        command_line.start(cls._main)

    @classmethod
    def _main(cls, argv: list[str]) -> None:
        with command_line.frame(argv, interrupted=cls.interrupted):
            figure, workdir = read(cls, scaled=True), command_line.workdir(cls.name)
            text = figure.run(workdir, overwrite=flags.FLAGS.overwrite)
        print(f"\n{text}\n\nnumbers and picture are in {workdir}")
