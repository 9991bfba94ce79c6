"""A row's config: that of `experiments.train`, with what the papers' schedules need besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from experiments.training.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowConfig(Config):
    """`Config`, and two things that its flags do not say.

    Attributes:
      decay_epochs: may be fractions of an epoch: a short run drops the rate at the same parts of it as the long one.
      warmup_rate: the rate during the whole warm-up (FDG, section V-A: 0.01 for 3 epochs); 0: a linear rise.
    """

    decay_epochs: tuple[float, ...] = ()
    warmup_rate: float = 0.0

    def check(self) -> None:
        """As of `Config`.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        super().check()
        if not 0 <= self.warmup_rate < float("inf"):
            raise ValueError(f"warmup_rate is {self.warmup_rate}; write a number of at least 0; 0: a linear rise")
        if self.warmup_rate and not self.warmup_epochs:
            raise ValueError(f"warmup_rate is {self.warmup_rate}, but warmup_epochs is 0; write both, or neither")

    def learning_rates(self, batches_per_epoch: float) -> optax.Schedule:
        """As of `Config`; during a warm-up with a rate of its own, that rate."""
        rates = super().learning_rates(batches_per_epoch)
        warmup = round(self.warmup_epochs * batches_per_epoch / self.steps_per_update)
        if not self.warmup_rate or not warmup:
            return rates
        return optax.join_schedules([optax.constant_schedule(self.warmup_rate), lambda n: rates(n + warmup)], [warmup])


def row_config(settings: Mapping[str, Any]) -> RowConfig:
    """The config with these settings.

    Raises:
      ValueError: one of them is no setting.
    """
    known = {field.name for field in dataclasses.fields(RowConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"config has no setting {', '.join(unknown)}; write some of: {', '.join(sorted(known))}")
    return RowConfig(**settings)
