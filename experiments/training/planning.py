"""Planning for devices that need not be there: layers and stages are measured on one, one after the other."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import jaxdecouple as jd
from experiments import devices
from experiments.report.workdir import Workdir
from experiments.training import auto
from experiments.training.auto import Choice

if TYPE_CHECKING:
    from experiments.plan import Planning


def plan(settings: Planning, output: Workdir) -> dict[int, Choice]:
    """The choice for each K, written into the workdir and said on screen.

    Raises:
      ValueError: more stages than layers, or a profile of something else.
    """
    layers, sample = settings.layers(), _sample(settings)
    device = jax.devices()[0]
    if settings.profile:
        profile = jd.Profile.load(settings.profile)
        profile.check(layers, sample, device)
    else:
        print(f"measuring the {len(layers)} layers of {settings.model} on {device}")
        profile = jd.profile(layers, sample, device=device)
    profile.save(output.file("profile.json"))
    choices = {}
    for num_stages in settings.num_stages:
        choice = _choose(settings, profile, sample, num_stages)
        print(f"K = {num_stages}\n{choice.explain()}")
        choice.save_timeline(output, f"-K{num_stages}")
        choices[num_stages] = choice
    output.write_json(
        "plan.json",
        {
            "settings": dataclasses.asdict(settings),
            "machine": devices.describe(),
            "plans": {num_stages: _describe(choice) for num_stages, choice in choices.items()},
        },
    )
    return choices


def _sample(settings: Planning) -> jax.ShapeDtypeStruct:
    """An input of the network: images, or tokens."""
    size = settings.image_size
    if settings.is_language:
        return jax.ShapeDtypeStruct((settings.batch_size, settings.context), np.dtype("int32"))
    return jax.ShapeDtypeStruct((settings.batch_size, size, size, 3), np.dtype("float32"))


def _choose(settings: Planning, profile: jd.Profile, sample: jax.ShapeDtypeStruct, num_stages: int) -> Choice:
    choice = auto.choose(
        settings.layers(),
        num_stages,
        sample,
        np.zeros(sample.shape if settings.is_language else settings.batch_size, np.int32),
        [jax.devices()[0]] * num_stages,  # one after the other: each alone
        weights=settings.weights,
        profile=profile,
        optimizer=optax.sgd(0.1, momentum=0.9),
    )
    sent = [profile.sent[stage.first] for stage in choice.stages[1:]]
    seconds = [size / (1e9 * settings.bandwidth) if settings.bandwidth else 0.0 for size in sent]
    times = dataclasses.replace(choice.times, up=tuple(seconds), down=tuple(seconds))
    return dataclasses.replace(
        choice, times=times, plan=jd.plan(times, jitter=settings.jitter, weights=settings.weights)
    )


def _describe(choice: Choice) -> dict[str, Any]:
    return {
        "explanation": choice.explain().splitlines(),
        "layers_per_stage": [stage.num_layers for stage in choice.stages],
        "times": dataclasses.asdict(choice.times),
        "schedule": dataclasses.asdict(choice.schedule),
        "staleness": choice.plan.staleness,
        "seconds_per_batch": choice.plan.seconds_per_batch,
        "speedup": choice.plan.speedup,
    }
