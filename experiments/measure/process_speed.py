"""Measures methods where every stage has a process and a core of its own, against one worker on one core.

    python -m experiments.measure.process_speed --model=resnet20 --batch_size=64 --methods=backprop,fdg,ddg,pipedream

CPU devices of one process share its cores, which hides what decoupling gives. Here no stage can take another's core.
Each trainer is a set of processes that stay: they compile, fill, and then run in turn, all once in every round.
The prediction is the timeline's, from the stages' operations timed in the one worker's process, and transfers as free.

Where PyTorch is installed, `torch.distributed.pipelining` trains the same network, if it is a ResNet of depth 6n + 2,
cut alike, by GPipe and 1F1B with 8 micro-batches; and one worker of PyTorch does, for scale.

The workdir gets results.json and table.md.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import cli as command_line
from experiments import settings
from experiments.measure.workload import Workload
from experiments.report.workdir import Workdir
from experiments.training.launching import begin, free_port
from jaxdecouple import schedules

FLAGS = flags.FLAGS
MICRO_BATCHES = 8  # of PyTorch's pipelines
ONE_WORKER, DATA_PARALLEL = "one worker, one core", "data-parallel, a device per core"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What trains.

    Attributes:
      role: as its program knows it.
      cores: of each process.
      program: the module that each process runs.
      others: further settings for the program.
    """

    role: str
    cores: list[list[int]]
    program: str = "experiments.measure.process_worker"
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Trainer:
    """The processes that train one way, which do nothing until they are told.

    Attributes:
      label: of its row.
    """

    def __init__(self, label: str, kind: Kind, workload: Workload):
        self.label = label
        processes, cores = len(kind.cores), kind.cores
        place = {"role": kind.role, "processes": processes, "port": free_port(), **kind.others}
        place["workload"] = dataclasses.asdict(workload)
        self._children = [
            begin(
                kind.program,
                json.dumps({**place, "index": index, "cores": cores[index]}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]
        self._answers()  # when all has been compiled
        trial = min(answer["rate"] for answer in self._asked("run 4"))
        self._updates = max(8, round(workload.seconds * trial / workload.batch_size))

    def images_per_second(self) -> float:
        """Of one more measurement; its processes take as long as one another."""
        return min(answer["rate"] for answer in self._asked(f"run {self._updates}"))

    def predict(self, method: str) -> float:
        """Images per second of a method, by its timeline."""
        return self._asked(f"predict {method}")[0]["rate"]

    def close(self) -> None:
        """Ends the processes."""
        for child in self._children:
            child.stdin.close()
        for child in self._children:
            child.wait(60)

    def _asked(self, what: str) -> list[dict[str, Any]]:
        for child in self._children:
            child.stdin.write(f"{what}\n")
            child.stdin.flush()
        return self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        found = []
        for child in self._children:
            line = child.stdout.readline()
            while line and not line.startswith("{"):  # Gloo, for one, prints there too
                line = child.stdout.readline()
            if not line:
                raise ValueError(f"a process of {self.label!r} ended with status {child.wait()}; see above")
            found.append(json.loads(line))
        return found


def measure(workload: Workload) -> dict[str, Any]:
    """The rates of all trainers in every round, and what timelines say."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workload.num_stages:
        raise ValueError(
            f"num_stages is {workload.num_stages}, but this process may use {len(cores)} cores; write --num_stages="
            f"{len(cores)} or less, so that each has one"
        )
    share = len(cores) // workload.num_stages
    apart = [cores[k * share : (k + 1) * share] for k in range(workload.num_stages)]
    kinds = {ONE_WORKER: Kind("plain", apart[:1]), DATA_PARALLEL: Kind("data", [cores])}
    kinds |= {name: Kind(name, apart) for name in workload.chosen} | _peers(workload, apart)
    trainers: list[Trainer] = []
    try:
        for label, kind in kinds.items():
            trainers.append(Trainer(label, kind, workload))
            print(f"{label:34s} ready")
        rates: dict[str, list[float]] = {trainer.label: [] for trainer in trainers}
        predicted: dict[str, list[float]] = {name: [] for name in workload.chosen}
        for _ in range(workload.repeats):
            for trainer in trainers:
                rates[trainer.label].append(trainer.images_per_second())
            for name, found in predicted.items():
                found.append(trainers[0].predict(name))
    finally:
        for trainer in trainers:
            trainer.close()
    return {"images_per_second": rates, "predicted": predicted, "cores": [*map(len, apart)]}


def _peers(workload: Workload, cores: list[list[int]]) -> dict[str, Kind]:
    """PyTorch's trainers, where it is installed and knows the network."""
    depth = re.fullmatch(r"resnet(\d+)", workload.model)
    known = depth is not None and (int(depth[1]) - 2) % 6 == 0 and workload.image_size < 64
    known = known and workload.dtype == "float32"
    if not known or importlib.util.find_spec("torch") is None or workload.batch_size % MICRO_BATCHES:
        return {}
    stages = workload.cut(schedules.one_forward_one_backward(workload.num_stages, MICRO_BATCHES))
    others = {
        "depth": int(depth[1]),
        "boundaries": [stage.first for stage in stages[1:]],
        "micro_batches": MICRO_BATCHES,
    }
    program = "experiments.measure.torch_worker"
    one = {"PyTorch, one worker, one core": Kind("plain", cores[:1], program, others)}
    piped = {f"PyTorch, {role}, M={MICRO_BATCHES}": Kind(role, cores, program, others) for role in ("GPipe", "1F1B")}
    return one if workload.num_stages == 1 else one | piped


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A table: medians, and ratios within a round."""
    rates, predicted = found["images_per_second"], found["predicted"]
    head = ["", "images/s", "of one worker", "of back-propagation", "predicted images/s", "measured of predicted"]
    table = [head]
    for label, own in rates.items():
        row = [label, f"{statistics.median(own):.1f} ({min(own):.1f}..{max(own):.1f})"]
        for base in (ONE_WORKER, "backprop"):
            row.append(_ratio(own, rates[base]) if base in rates else "")
        if label in predicted:
            row += [f"{statistics.median(predicted[label]):.1f}", _ratio(own, predicted[label])]
        table.append([*row, *[""] * (len(head) - len(row))])
    return table


def _ratio(own: list[float], base: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(own, base, strict=True)):.2f}"


def define_flags() -> None:
    """The flags of this program. Not at import: its functions serve other programs too."""
    settings.define(Workload, methods=("backprop", "fdg", "ddg", "pipedream", "adl"), repeats=3, batch_size=64)
    command_line.define_workdir()


def main(argv: list[str]) -> None:
    with command_line.frame(argv, interrupted="nothing was written"):
        from experiments import devices
        from experiments.report import tables

        workload = settings.read(Workload)
        output = Workdir(command_line.workdir("process-speed"), dataclasses.asdict(workload), overwrite=FLAGS.overwrite)
        found = measure(workload)
        command = " ".join(["python -m experiments.measure.process_speed", *sys.argv[1:]])
        output.write_json("results.json", {"command": command, "machine": devices.describe(), **found})
        table = tables.markdown(rows(found))
        output.write("table.md", f"{table}\n")
        print(f"\n{tables.text(rows(found))}\n\nnumbers and table are in {output.path}")


if __name__ == "__main__":
    define_flags()
    command_line.start(main)
