"""Synchronous rounds train as GPipe's do: as plain training with the mean gradient of a round."""

import jax
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles import naive
from tests.oracles.problems import pipeline_for, problem, run

FULL = {"learning_rate": lambda s: 0.2 / (1 + 0.1 * s), "momentum": 0.9, "weight_decay": 0.05}


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        (schedules.one_forward_one_backward(3, 4), "latest"),
        (schedules.interleaved(2, 4, loops=2), "latest"),
        (schedules.zero_bubble(3, 4), "latest"),
        (schedules.zero_bubble(3, 2), "replay"),
        (schedules.zero_bubble(1, 4), "latest"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_rounds_are_plain_training(schedule, weights, x64):
    task = problem(schedule.num_stages, accumulate=schedule.chunks, **FULL)
    expected = naive.gpipe(task, chunks=schedule.chunks)
    parameters, losses = run(pipeline_for(task, schedule, weights=weights), task)
    jax.tree.map(lambda a, b: abs(a - b).max() < 1e-10 or pytest.fail(), parameters[-1], expected.parameters[-1])
    assert losses == pytest.approx(expected.losses, abs=1e-10)


def test_the_stages_of_a_device(x64):
    task, schedule = problem(4, accumulate=4, **FULL), schedules.interleaved(2, 4, loops=2)
    devices = [jax.devices()[d] for d in schedule.devices]
    stages = jd.partition(jd.models.mlp(3, hidden=(5, 4, 5, 4)), boundaries=task.boundaries)
    pipeline = jd.Pipeline(stages, schedule, optimizer=jd.stagewise(optax.sgd(0.1), accumulate=4), devices=devices)
    state = pipeline.init(jax.random.key(0), task.batches[0][0])
    for batch in task.batches[:8]:
        state, _ = pipeline.step(state, batch)
    state = pipeline.flush(state)
    assert [stage.packed_params.arrays[0].devices() for stage in state.stages] == [{d} for d in devices]
