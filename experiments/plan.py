"""Plans a pipeline for as many devices of this kind as asked for, without having them.

    python -m experiments.plan --model=resnet101 --image_size=224 --batch_size=8 --num_stages=4,8

Measures the layers of a network on the first device, cuts it for each number of stages, measures the stages there, one
after the other, and predicts from these times how K devices of their own would work through it, with which delays. The
directory gets profile.json (give it to --profile to measure only once), plan.json with all times, and for each K the
timeline as a picture and as a trace for chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments import devices
from experiments.report.workdir import Workdir
from experiments.training import auto
from experiments.training.auto import Choice

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is planned; the flags explain the fields."""

    model: str
    num_stages: tuple[int, ...]
    batch_size: int
    image_size: int
    num_classes: int
    bandwidth: float
    jitter: float
    weights: str
    profile: str

    def check(self) -> None:
        """Refuses what cannot be planned.

        Raises:
          ValueError: says what was given, what was expected, and what to write.
        """
        for name in ("batch_size", "image_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; write at least 1")
        if not self.num_stages or min(self.num_stages) < 1:
            raise ValueError(f"num_stages is {self.num_stages}; write one or several numbers of at least 1, as 4,8")
        if not self.bandwidth >= 0:
            raise ValueError(f"bandwidth is {self.bandwidth}; write GB/s between devices, or 0 for free transfers")
        self.layers()

    def layers(self) -> list[Any]:
        """The model, cuttable inside its blocks."""
        small = self.image_size < 64
        return jd.models.by_name(self.model, self.num_classes, small_images=small, split_blocks=True)


def plan(settings: Settings, output: Workdir) -> dict[int, Choice]:
    """The choice for each K, written into the workdir and said on screen.

    Raises:
      ValueError: more stages than layers, or a profile of something else.
    """
    layers, size = settings.layers(), settings.image_size
    sample = jax.ShapeDtypeStruct((settings.batch_size, size, size, 3), np.dtype("float32"))
    device = jax.devices()[0]
    if settings.profile:
        profile = jd.Profile.load(settings.profile)
        profile.check(layers, sample, device)
    else:
        print(f"measuring the {len(layers)} layers of {settings.model} on {device}")
        profile = jd.profile(layers, sample, device=device)
    profile.save(output.path / "profile.json")
    choices = {}
    for num_stages in settings.num_stages:
        choice = _choose(settings, profile, sample, num_stages)
        print(f"K = {num_stages}\n{choice.explain()}")
        choice.save_timeline(output.path, f"-K{num_stages}")
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


def _choose(settings: Settings, profile: jd.Profile, sample: jax.ShapeDtypeStruct, num_stages: int) -> Choice:
    choice = auto.choose(
        settings.layers(),
        num_stages,
        sample,
        np.zeros(settings.batch_size, np.int32),
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


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    flags.DEFINE_string("model", "resnet101", "as for experiments.train")
    flags.DEFINE_list("num_stages", ["4", "8"], "K, one or several")
    flags.DEFINE_integer("batch_size", 8, "images of a batch")
    flags.DEFINE_integer("image_size", 224, "height and width in pixels; below 64, stems for small images are taken")
    flags.DEFINE_integer("num_classes", 1000, "outputs")
    flags.DEFINE_float("bandwidth", 0.0, "GB/s between neighbouring devices, each way; 0: transfers are free")
    flags.DEFINE_float("jitter", 0.0, "how late activations and gradients may come, in the time of a batch")
    flags.DEFINE_enum("weights", "stash", ["stash", "remat", "replay", "latest"], "weights of a backward pass")
    flags.DEFINE_string("profile", "", "a profile.json measured before; empty: measure")
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was planned"):
        names = [field.name for field in dataclasses.fields(Settings) if field.name != "num_stages"]
        try:
            num_stages = tuple(map(int, FLAGS.num_stages))
        except ValueError:
            raise ValueError(f"num_stages is {','.join(FLAGS.num_stages)!r}; write integers, such as 4,8") from None
        settings = Settings(num_stages=num_stages, **{name: FLAGS[name].value for name in names})
        settings.check()
        workdir = pathlib.Path(FLAGS.workdir or Workdir.unused(f"runs/plan-{settings.model}"))
        Workdir.check(workdir, overwrite=FLAGS.overwrite)
        devices.compile_once()
        output = Workdir(workdir, dataclasses.asdict(settings), overwrite=FLAGS.overwrite)
        plan(settings, output)
    print(f"profile, times, plans and timelines are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
