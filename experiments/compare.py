"""Compares all methods on real images: test error over three seeds, speed, and what each does when.

    python -m experiments.compare

By default: the 1797 handwritten digits that come with scikit-learn (1437 to train on, 360 to test), ResNet-8, K = 2
stages, 3 epochs of 22 updates. GPipe and ADL split the batch of the others into M = 4 micro-batches, as in ADL's
experiments (section 6), so that every update uses as many images. Each test error is printed as soon as it is known.
Speeds are measured after training, in turn.

Where the devices are a CPU's cores, every stage has a process and a core of its own: two CPU devices of one process
share its cores, which hides what decoupling gives. On accelerators, with fewer cores than stages, or with JAX below
0.12, one process trains all. For scale the whole network is also timed on a single core.

The directory gets results.json, table.md, curves.png and schedules.png.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import flags

from experiments import cli as command_line
from experiments.report.workdir import Workdir
from experiments.settings import Settings, define, option, read
from experiments.training import launching
from experiments.training.config import Config

FLAGS = flags.FLAGS
MICRO_BATCHES = 4
METHODS: dict[str, dict] = {
    "backprop": {"method": "backprop"},
    "gpipe M=4": {"method": "gpipe", "accumulate": MICRO_BATCHES},
    "ddg": {"method": "ddg"},
    "features_replay": {"method": "features_replay"},
    "fdg beta=1": {"method": "fdg"},
    "fdg beta=0.5": {"method": "fdg", "beta": 0.5},
    "adl M=4": {"method": "adl", "accumulate": MICRO_BATCHES},
    "dsp": {"method": "dsp"},
    "pipedream": {"method": "pipedream"},
    "dgl": {"method": "dgl"},
    "dni": {"method": "dni"},
}
# Where ResNet-8 is cut on the digits, by times that `jd.profile` measured on a CPU: the last block's convolutions, of
# 2 x 2 pixels, take longer than their operations say. DNI's predictor is part of the lower stage, and grows with its
# channels.
CUT, CUTS = (3,), {"dni": (2,)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """What is compared, and how often."""

    model: str = option("resnet8", "as for experiments.train")
    dataset: str = option("digits", "as for experiments.train")
    data_dir: str = option("", "as for experiments.train")
    num_stages: int = option(2, "K, stages, one device each", least=1)
    epochs: int = option(3, "passes over the training set", least=1)
    batch_size: int = option(64, "examples of an update; a multiple of 4", least=1)
    learning_rate: float = option(0.1, "peak learning rate of SGD with momentum 0.9, the same for all", above=0)
    decay: str = option("cosine", "as for experiments.train")
    augment: bool = option(False, "random crops and flips; few epochs do better without")
    seeds: int = option(3, "runs per method, seeds 0, 1, ...", least=1)
    repeats: int = option(3, "how often each method's speed is measured, in turn", least=1)
    processes: int = option(0, "over how many processes the stages are spread; 0: as said above", least=0)
    methods: tuple[str, ...] = option((), "labels of the rows to run, such as 'fdg beta=0.5'; empty: all")

    def config(self) -> Config:
        """What all runs have in common."""
        common = {name: value for name, value in dataclasses.asdict(self).items() if name in _COMMON}
        return Config(**common, drop_last=True)  # the last, smaller batch would be a second compilation of each method

    def check(self) -> None:
        """Refuses an unknown row, and a batch that cannot be split."""
        configs(self.config(), self.methods)


_COMMON = {field.name for field in dataclasses.fields(Config)}


def configs(base: Config, labels: Sequence[str] = ()) -> dict[str, Config]:
    """The config of each row; back-propagation, which speeds are compared with, is always among them.

    Raises:
      ValueError: an unknown label, or a batch that cannot be split.
    """
    for label in labels:
        if label not in METHODS:
            raise ValueError(f"methods names {label!r}; write some of: {', '.join(METHODS)}")
    if base.batch_size % MICRO_BATCHES:
        raise ValueError(f"batch_size is {base.batch_size}; write a multiple of {MICRO_BATCHES}, the micro-batches")
    usual = (base.model, base.dataset, base.num_stages) == ("resnet8", "digits", 2)
    chosen = {label: settings for label, settings in METHODS.items() if not labels or label in {"backprop", *labels}}
    return {
        label: dataclasses.replace(
            base,
            **settings,
            batch_size=base.batch_size // settings.get("accumulate", 1),
            boundaries=CUTS.get(settings["method"], CUT) if usual else (),
        )
        for label, settings in chosen.items()
    }


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    define(Asked)
    command_line.define_workdir()


def _watch(count: int, num_stages: int, workdir: pathlib.Path) -> int:
    """Runs this program as several processes, which find what they compiled in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jaxdecouple-") as cache:
        launching.share_compiled(cache)
        asked = launching.Processes(processes=count)
        return launching.watch(asked, num_stages, workdir, interrupted="nothing was measured")


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="nothing was measured"):
        asked = read(Asked)
        base, workdir = asked.config(), command_line.workdir("compare")
        count = asked.processes or launching.with_cores_of_their_own(base.num_stages)
        if count > 1 and not launching.is_one_of_several():
            sys.exit(_watch(count, base.num_stages, workdir))
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.measure.comparison import compare
        from experiments.report import tables
        from experiments.training import processes
        from experiments.training.trainer import Trainer

        devices.request(base.num_stages)
        devices.compile_once()
        with processes.joined(dataclasses.asdict(asked)):
            dataset = base.load_data()
            places = devices.of_stages(base.num_stages, share=True)
            chosen = configs(base, asked.methods)
            trainers = {label: Trainer(config, dataset, places) for label, config in chosen.items()}
            several = processes.count()
            where = f"{several} processes with cores of their own" if several > 1 else ", ".join(map(str, places))
            print(
                f"{base.model} on {dataset.name}: {dataset.num_train} training and {dataset.num_test} test images, "
                f"K = {base.num_stages} stages on {where}, {base.epochs} epochs, {asked.seeds} seeds"
            )
            output = Workdir(workdir, dataclasses.asdict(base), overwrite=FLAGS.overwrite)
            rows = compare(base, output, trainers, seeds=asked.seeds, repeats=asked.repeats)
        if not rows:  # another process speaks for all
            return
        print(f"\n{tables.text(tables.as_table(rows))}\n")
        print(f"{time.perf_counter() - start:.0f} s; pictures, table and numbers are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
