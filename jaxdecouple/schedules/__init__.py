"""Schedules: which operation of which batch runs on which stage, tick by tick. Pure Python, without JAX."""

from jaxdecouple.schedules.joining import join
from jaxdecouple.schedules.presets import adl, backprop, ddg, delays, dsp, fdg, features_replay, gpipe, pipedream
from jaxdecouple.schedules.schedule import (
    BACKWARD,
    FORWARD,
    DelaySchedule,
    FlushSchedule,
    Kind,
    Op,
    Order,
    Schedule,
    ScheduleError,
    TableSchedule,
    Weights,
    draw,
    keeps_versions,
    redoes_forward,
)
from jaxdecouple.schedules.staleness import GradientAge, ends_group, gradient_ages, staleness
from jaxdecouple.schedules.validation import validate

__all__ = [
    "BACKWARD",
    "FORWARD",
    "DelaySchedule",
    "FlushSchedule",
    "GradientAge",
    "Kind",
    "Op",
    "Order",
    "Schedule",
    "ScheduleError",
    "TableSchedule",
    "Weights",
    "adl",
    "backprop",
    "ddg",
    "delays",
    "draw",
    "dsp",
    "ends_group",
    "fdg",
    "features_replay",
    "gpipe",
    "gradient_ages",
    "join",
    "keeps_versions",
    "pipedream",
    "redoes_forward",
    "staleness",
    "validate",
]
