"""An outcome is how one run of a sweep went; reports set outcomes side by side."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from experiments import devices
from experiments.report.workdir import Workdir
from experiments.training.config import Config
from experiments.training.progress import EpochRecord


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
      config: of the run.
      records: of the epochs that it finished.
      finite: whether the loss stayed finite.
      seconds: it took, compilation included.
    """

    config: Config
    records: list[EpochRecord]
    finite: bool
    seconds: float

    @property
    def final_loss(self) -> float:
        """The mean training loss of the last epoch, in nats; infinite, if it did not stay finite."""
        return self.records[-1].train_loss if self.finite else math.inf

    @property
    def test_error(self) -> float:
        """After the last epoch, a fraction."""
        return self.records[-1].test_error if self.finite else math.nan


def announce(output: Workdir, method: str, what: str, outcome: Outcome) -> None:
    """Prints how a run went, on one line, and adds it to metrics.jsonl."""
    output.append("metrics.jsonl", {"method": method, **as_json(outcome)})
    if outcome.finite:
        result = f"training loss {outcome.final_loss:.4g}, test error {100 * outcome.test_error:.2f} %"
    else:
        result = f"diverged after {len(outcome.records)} epochs"
    tqdm.write(f"{f'{method}, {what}':42s} {result}, {outcome.seconds:.0f} s", file=sys.stdout)
    sys.stdout.flush()  # a sweep takes long, and its output may go into a file


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What a report keeps of a run."""
    config = outcome.config
    return {
        "optimizer": config.optimizer,
        "eta": config.eta,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size * config.accumulate,
        "warmup_epochs": config.warmup_epochs,
        "finite": outcome.finite,
        "train_loss": [float(f"{record.train_loss:.5g}") for record in outcome.records],
        "test_error": [round(record.test_error, 5) for record in outcome.records],
        "seconds": round(outcome.seconds, 1),
    }


def write(output: Workdir, setting: dict[str, Any], outcomes: Mapping[tuple[str, Any], Outcome], table: str) -> None:
    """Writes results.json and table.md; the first part of a run's key is its method."""
    runs = [{"method": key[0], **as_json(outcome)} for key, outcome in outcomes.items()]
    output.write_json("results.json", {"machine": devices.describe(), "setting": setting, "runs": runs})
    (output.path / "table.md").write_text(table + "\n")


def cell(outcome: Outcome) -> str:
    """Training loss of the last epoch and test error after it, for a table."""
    if not outcome.finite:
        return f"diverged in epoch {len(outcome.records) + 1}"
    loss = outcome.final_loss
    return f"{loss:.3f}, {100 * outcome.test_error:.1f} %" if loss < 100 else f"{loss:.1e}"
