"""Measures how fast each method trains, against the whole network on one worker, and what that should follow from.

    python -m experiments.benchmark --model=resnet20 --batch_size=128

The one worker is the training step that one would write without this library: the whole network in one compiled
function, on one device; where devices are the cores of this machine, the whole process is confined to one core for it.
"one jit, all cores" is the same step unconfined, and "one stage" this library's pipeline with K = 1. Images are random
and on their device beforehand: no input pipeline is measured. GPipe and ADL split the batch of the others into 4
micro-batches, so that every update uses as many images; images per second count images.

Rates are measured in turn, in every repeat once, without compilation and with the pipeline filled. In every repeat the
operations of each pipeline are also timed alone, and the timeline of its schedule with these times is the predicted
rate. Ratios are medians of the ratios within a repeat.

Host times are those of `Pipeline.step` while all devices are idle. On CPU devices the computation that it starts runs
on the same cores and may take them from it, so that they are an upper bound there. Compilation is what the row's own
functions needed until the pipeline was filled; it is honest only without a persistent compilation cache, which is
therefore not used unless JAX_COMPILATION_CACHE_DIR asks for it. Peak memory is counted
(see experiments/measure/memory.py).

The directory gets results.json, table.md, benchmark.png, and for each pipeline gantt-*.png, its predicted timeline.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from absl import flags

from experiments import cli as command_line
from experiments import settings
from experiments.measure.workload import Workload
from experiments.report.workdir import Workdir

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    settings.define(Workload)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    start = time.perf_counter()
    with command_line.frame(argv, interrupted="no results were written"):
        from experiments import devices  # not before: --help need not wait for JAX
        from experiments.measure.benchmark import benchmark
        from experiments.measure.entrants import ONE_JIT
        from experiments.report import tables

        devices.request(1 if FLAGS.one_device else FLAGS.num_stages)
        workload = settings.read(Workload)
        output = Workdir(
            command_line.workdir("benchmark", profile=workload.profile),
            dataclasses.asdict(workload),
            overwrite=FLAGS.overwrite,
        )
        places = devices.of_stages(workload.num_stages, share=True)
        places = places[:1] * workload.num_stages if workload.one_device else places
        print(
            f"{workload.model}, batches of {workload.batch_size}, K = {workload.num_stages} stages on "
            f"{', '.join(map(str, places))}; {workload.repeats} repeats"
        )
        command = " ".join(["python -m experiments.benchmark", *sys.argv[1:]])
        results = benchmark(workload, output, places, command=command)
        print(f"\n{tables.text(tables.as_table(results))}\n")
        if any(result.label == ONE_JIT for result in results):
            print(f"{tables.against(results, ONE_JIT)}\n")
        print(f"{time.perf_counter() - start:.0f} s; pictures, table and numbers are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
