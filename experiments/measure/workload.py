"""A workload: the network, the random images and the stages that are trained while something is measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import lazy_loader
import numpy as np

import jaxdecouple as jd
from experiments.settings import Settings, option
from experiments.training.methods import METHODS, WITH_AUTO
from jaxdecouple import schedules
from jaxdecouple.schedules import Schedule

if TYPE_CHECKING:
    import jax

    from jaxdecouple.network.stage import Stage
else:  # when it is needed: --help need not wait for JAX
    jax = lazy_loader.load("jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(Settings):
    """What is trained while something is measured: a network, random images, stages, and for how long."""

    model: str = option("resnet20", "mlp, resnet<6n+2>, or resnet18, 34, 50, 101, 152 (ImageNet form)")
    num_stages: int = option(2, "K, stages; they share devices where there are fewer", least=1)
    batch_size: int = option(128, "images of an update; a multiple of 4 for gpipe and adl", least=1)
    image_size: int = option(32, "pixels along each side; below 64, ResNets get a small stem", least=1)
    num_classes: int = option(10, "outputs", least=1)
    dtype: str = option(
        "float32", "of the computation: float32 or bfloat16; parameters are float32", choices=("float32", "bfloat16")
    )
    methods: tuple[str, ...] = option((), f"methods to measure: {', '.join(WITH_AUTO)}; empty: all", choices=WITH_AUTO)
    boundaries: tuple[int, ...] = option(
        (), "layer indices at which a new stage starts; empty: stages of equal cost", example="3,6"
    )
    one_device: bool = option(False, "put all stages on one device, where decoupling cannot help")
    repeats: int = option(5, "rounds of measurements", least=1)
    seconds: float = option(4.0, "about how long the measurement of one rate takes", above=0)
    memory: bool = option(True, "count peak memory, which compiles everything once more")
    profile: str = option("", "file of measured layers, read if there, else written")

    def check(self) -> None:
        """Refuses what cannot be measured; ranges have been checked."""
        for method in self.chosen:
            parts = METHODS[method].accumulate
            if self.batch_size % parts:
                raise ValueError(
                    f"batch_size is {self.batch_size}, which {method} splits into {parts} micro-batches; write a "
                    f"multiple of {parts}, or --methods without {method}"
                )
        if self.num_stages > (most := len(self.layers())):  # before a schedule of so many is made
            raise ValueError(
                f"num_stages is {self.num_stages}, but {self.model} can be cut into {most} stages at most; write that "
                "many"
            )
        self.cut(schedules.fdg(self.num_stages))  # refuses the model, and a cut that does not fit

    @property
    def chosen(self) -> list[str]:
        """The methods to measure, in the order of the table; ``auto`` is apart."""
        return [name for name in METHODS if not self.methods or name in self.methods]

    def layers(self) -> list[Any]:
        """The model, which can be cut inside its blocks."""
        small, dtype = self.image_size < 64, jax.numpy.dtype(self.dtype)
        return jd.models.by_name(self.model, self.num_classes, small_images=small, split_blocks=True, dtype=dtype)

    def sample(self, batch_size: int | None = None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of inputs, [B, H, W, 3]."""
        return jax.ShapeDtypeStruct(
            (batch_size or self.batch_size, self.image_size, self.image_size, 3), jax.numpy.dtype("float32")
        )

    def distinct(self, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A few batches to feed in turn: random images, [B, H, W, 3] float32, and labels, [B] int32; on the host."""
        random = np.random.default_rng(0)
        shape = self.sample(batch_size).shape
        return [
            (random.standard_normal(shape, np.float32), random.integers(self.num_classes, size=batch_size, dtype="i4"))
            for _ in range(4)
        ]

    def cut(self, schedule: Schedule, profile: jd.Profile | None = None) -> tuple[Stage, ...]:
        """The network's stages for a schedule: the given cut, or else stages of equal cost, as measured if it was.

        Raises:
          ValueError: the network cannot be cut so, or the profile is of another one.
        """
        return jd.partition(
            self.layers(),
            self.num_stages,
            sample=self.sample(),
            boundaries=self.boundaries or None,
            costs=None if self.boundaries else profile,
            weights=schedule.weights,
        )
