"""Plans a pipeline for as many devices of this kind as asked for, without having them.

    python -m experiments.plan --model=resnet101 --image_size=224 --batch_size=8 --num_stages=4,8

Measures the layers of a network on the first device, cuts it for each number of stages, measures the stages there, one
after the other, and predicts from these times how K devices of their own would work through it, with which delays. The
directory gets profile.json (give it to --profile to measure only once), plan.json with all times, and for each K the
timeline as a picture and as a trace for chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

import jaxdecouple as jd
from experiments import cli as command_line
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read

FLAGS = flags.FLAGS
VOCABULARY = 50257  # GPT-2's
POLICIES = ("stash", "remat", "replay", "latest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning(Settings):
    """What is planned."""

    model: str = option("resnet101", "as for experiments.train")
    num_stages: tuple[int, ...] = option((4, 8), "K, one or several", least=1, example="4,8")
    batch_size: int = option(8, "images or sequences of a batch", least=1)
    image_size: int = option(224, "height and width in pixels; below 64, stems for small images are taken", least=1)
    num_classes: int = option(1000, "outputs; of a language model, 50257 tokens whatever this is", least=1)
    context: int = option(1024, "language models: tokens of a sequence", least=1)
    bandwidth: float = option(0.0, "GB/s between neighbouring devices, each way; 0: transfers are free", least=0)
    jitter: float = option(0.0, "how late activations and gradients may come, in the time of a batch", least=0)
    weights: str = option("stash", f"weights of a backward pass: {', '.join(POLICIES)}", choices=POLICIES)
    profile: str = option("", "a profile.json measured before; empty: measure")

    def check(self) -> None:
        """Refuses what cannot be planned, and settings without effect; ranges have been checked."""
        if len(set(self.num_stages)) < len(self.num_stages):
            raise ValueError(f"num_stages is {','.join(map(str, self.num_stages))!r}; write each once")
        layers = self.layers()
        if max(self.num_stages) > len(layers):
            raise ValueError(
                f"num_stages is {max(self.num_stages)}, but {self.model} can be cut into {len(layers)} stages at most"
            )

        for name, has in (("context", self.is_language), ("image_size", not self.is_language)):
            if not has and getattr(self, name) != getattr(Planning, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but {self.model} is a model of "
                    f"{'texts' if self.is_language else 'images'}, and has no such setting; leave it out"
                )

    @property
    def is_language(self) -> bool:
        """Whether the model is of texts."""
        return self.model in jd.models.GPT_SIZES

    def layers(self) -> list[Any]:
        """The model, cuttable inside its blocks."""
        if self.is_language:
            return jd.models.by_name(self.model, VOCABULARY, split_blocks=True, context=self.context)
        small = self.image_size < 64
        return jd.models.by_name(self.model, self.num_classes, small_images=small, split_blocks=True)


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Planning)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was planned"):
        settings = read(Planning)
        workdir = command_line.workdir(f"plan-{settings.model}", profile=settings.profile)
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.training import planning

        devices.compile_once()
        planning.plan(settings, Workdir(workdir, dataclasses.asdict(settings), overwrite=FLAGS.overwrite))
        print(f"profile, times, plans and timelines are in {workdir}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
