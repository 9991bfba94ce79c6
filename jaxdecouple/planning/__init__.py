"""Planning: when operations run, given how long they take, and which delays that calls for. Without JAX."""

from jaxdecouple.planning.planner import Plan, plan
from jaxdecouple.planning.run_ahead import least_run_ahead
from jaxdecouple.planning.simulation import timeline
from jaxdecouple.planning.timelines import Timeline
from jaxdecouple.planning.times import Sizes, Times

__all__ = ["Plan", "Sizes", "Timeline", "Times", "least_run_ahead", "plan", "timeline"]
