"""A process of `process_speed`: it trains one stage, or all, on cores of its own, whenever it is told to."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

import jaxdecouple as jd
from experiments.measure import entrants
from experiments.measure.operation_times import OperationMeter, as_times, joined_stages
from experiments.measure.workload import Workload
from experiments.settings import revived
from experiments.training.methods import METHODS


class Loop:
    """A trainer in its steady state."""

    def __init__(self, place: dict[str, Any], workload: Workload):
        self._workload, self._accumulate, self._batch_size = workload, 1, workload.batch_size
        role = place["role"]
        if role == "plain":
            self._step, self._state = entrants.training_step(
                workload.layers(), entrants.optimizer(), workload.sample(), jax.devices()[0]
            )
            batches, fill = workload.distinct(self._batch_size), 3
        else:
            name, pipeline = self._pipeline(role, workload)
            self._accumulate = METHODS[name].accumulate
            self._batch_size //= self._accumulate
            self._step, self._state = pipeline.step, pipeline.init(jax.random.key(0), workload.sample(self._batch_size))
            owns = pipeline.placement.owns
            batches = [(x if owns(0) else None, y) for x, y in workload.distinct(self._batch_size)]
            fill = 2 * pipeline.schedule.drain + 2 * self._accumulate + 2
        self._batches = itertools.cycle(batches)
        self.seconds(fill)

    def _pipeline(self, role: str, workload: Workload) -> tuple[str, jd.Pipeline]:
        if role != "data":
            return role, entrants.pipeline_of(role, workload, None)
        stages = jd.partition(workload.layers(), 1, sample=workload.sample())
        schedule = jd.schedules.backprop(1)
        return "backprop", jd.Pipeline(stages, schedule, optimizer=entrants.optimizer(), devices=[jax.devices()])

    def seconds(self, ticks: int) -> float:
        """That ``ticks`` take; nothing is under way before or after."""
        begun = time.perf_counter()
        for batch in itertools.islice(self._batches, ticks):
            self._state, _ = self._step(self._state, batch)
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(self._state) if isinstance(leaf, jax.Array)])
        return time.perf_counter() - begun

    def rate(self, updates: int) -> float:
        """Images per second, while so many updates are made."""
        ticks = updates * self._accumulate
        return ticks * self._batch_size / self.seconds(ticks)


def predictor(name: str, workload: Workload) -> Callable[[], float]:
    """Images per second of a method, from the operations of its stages, each alone on this process's cores."""
    device, accumulate = jax.devices()[0], METHODS[name].accumulate
    pipeline = entrants.pipeline_of(name, workload, [device] * workload.num_stages)
    size = workload.batch_size // accumulate
    batch = workload.distinct(size)[0]
    state = pipeline.init(jax.random.key(0), workload.sample(size))
    for _ in range(2 * pipeline.schedule.drain + 2 * accumulate + 2):
        state, _ = pipeline.step(state, batch)
    jax.block_until_ready(state)
    meter = OperationMeter(pipeline, jax.random.key(0), batch, group=accumulate)

    def rate() -> float:
        times = as_times(
            [meter.round(1.0)], pipeline.weights, joined_stages(pipeline.schedule), 0.0, pipeline.schedule.learning
        )
        return size / jd.timeline(pipeline.schedule, times, run_ahead=pipeline.run_ahead).seconds_per_batch

    return rate


def main() -> None:
    place = json.loads(sys.argv[1])
    os.sched_setaffinity(0, place["cores"])
    index, processes, port = place["index"], place["processes"], place["port"]
    jax.config.update("jax_num_cpu_devices", len(place["cores"]) if place["role"] == "data" else 1)
    if processes > 1:
        jax.config.update("jax_cross_host_transfer_socket_address", f"127.0.0.1:{port + 1 + index}")
        jax.config.update("jax_cross_host_transport_addresses", "127.0.0.1:0")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
    workload = revived(Workload, place["workload"], "the workload")
    loop, predictors = Loop(place, workload), {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        what, argument = line.split()
        if what == "run":
            found = loop.rate(int(argument))
        else:
            if argument not in predictors:
                predictors[argument] = predictor(argument, workload)
            found = predictors[argument]()
        print(json.dumps({"rate": found}), flush=True)
    if processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
