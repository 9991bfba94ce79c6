"""Pipelines of one network that differ in their schedule share what is compiled, which is most of a test's time."""

import functools
from collections.abc import Callable

import jax

import jaxdecouple as jd


def sharing(make: Callable[..., jd.Pipeline]) -> Callable[..., jd.Pipeline]:
    """``make``, a function of a schedule and of what can be hashed, such that its pipelines share programs."""
    made = {}

    @functools.wraps(make)
    def shared(schedule: jd.schedules.Schedule, *args, **keywords) -> jd.Pipeline:
        settings = schedule.num_stages, schedule.learning, jax.config.jax_enable_x64, args, tuple(keywords.items())
        if settings not in made:
            made[settings] = make(schedule, *args, **keywords)
        return made[settings].with_schedule(schedule)

    return shared
