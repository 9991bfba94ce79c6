"""Planning: when operations run, given how long they take, and which delays that calls for. Without JAX."""

from jaxdecouple.planning.gantt import save_gantt, save_trace
from jaxdecouple.planning.memory import bytes_over_time, peak_bytes
from jaxdecouple.planning.planner import Plan, plan
from jaxdecouple.planning.simulation import least_run_ahead, timeline
from jaxdecouple.planning.timelines import Timeline
from jaxdecouple.planning.times import Sizes, Times

__all__ = [
    "Plan",
    "Sizes",
    "Timeline",
    "Times",
    "bytes_over_time",
    "least_run_ahead",
    "peak_bytes",
    "plan",
    "save_gantt",
    "save_trace",
    "timeline",
]
