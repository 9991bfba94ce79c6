"""A summary shows, in a notebook, where the layers of a network are, and what is dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jaxdecouple.charts import table
from jaxdecouple.engine.processes import Groups
from jaxdecouple.network.stage import Stage
from jaxdecouple.schedules import Schedule, staleness


def summary(stages: Sequence[Stage], groups: Groups, schedule: Schedule) -> str:
    """A table of the stages, and the chart of the schedule.

    Args:
      stages: of the network.
      groups: the devices of each stage.
      schedule: of the pipeline.
    """
    together = getattr(schedule, "chunks", 1)  # batches to an update, as far as the schedule says
    levels = [max(level) for level in staleness(schedule, together)]
    rows = [["stage", "layers", "devices", "staleness"]]
    for k, (stage, devices) in enumerate(zip(stages, groups, strict=True)):
        rows.append([str(k), ", ".join(stage.keys), ", ".join(map(str, devices)), str(levels[k])])
    updates = f"an update for every {together} batches" if together > 1 else "an update for every batch"
    head = f"{schedule.name}, K = {schedule.num_stages}, weights: {schedule.weights}; staleness with {updates}"
    return f"<p>{escape(head)}.</p>{table(rows)}{schedule._repr_html_()}"
