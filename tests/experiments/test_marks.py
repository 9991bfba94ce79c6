"""Marks tell when operations ran, in order, and change no number of the run."""

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxdecouple as jd
from experiments.measure.marks import Marks


def losses_of(trained, pipeline, x, y, ticks):
    state, losses = pipeline.init(jax.random.key(0), x), []
    for _ in range(ticks):
        state, metrics = trained.step(state, (x, y))
        losses.append(metrics.loss)
    return [float(loss) for loss in losses if loss is not None], trained.flush(state)


def test_a_marked_run_gives_the_same_numbers():
    x, y = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 3
    layers = [nn.Dense(8), nn.tanh, nn.Dense(3)]
    pipeline = jd.Pipeline(jd.partition(layers, 2, sample=x), jd.schedules.fdg(2), optimizer=optax.sgd(0.1))
    found = []
    marks = Marks(pipeline, 3, epoch=100, on_end=found.append)
    plain, state = losses_of(pipeline, pipeline, x, y, marks.stop + 4)
    marked, other = losses_of(marks, pipeline, x, y, marks.stop + 4)
    assert plain == marked
    jax.tree.map(np.testing.assert_array_equal, state.stages[0].params, other.stages[0].params)

    (found,) = found
    assert [(m.operation, m.stage, m.tick) for m in found] == [
        (operation, stage, tick)
        for tick in range(marks.stop - 3, marks.stop)
        for operation, stage in (("backward_forward", 0), ("train", 1))
    ]
    assert min(mark.start for mark in found) == 0 and all(mark.start <= mark.end for mark in found)


def test_parts_of_a_backward_are_operations_of_their_own():
    x, y = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 3
    layers = [nn.Dense(8), nn.tanh, nn.Dense(8), nn.tanh, nn.Dense(3)]
    schedule, optimizer = jd.schedules.zero_bubble(3, 2), jd.stagewise(optax.sgd(0.1), accumulate=2)
    pipeline = jd.Pipeline(jd.partition(layers, 3, sample=x), schedule, optimizer=optimizer)
    found = []
    marks = Marks(pipeline, 4, epoch=100, on_end=found.append)
    losses_of(marks, pipeline, x, y, marks.stop + 1)
    operations = [(m.operation, m.stage) for m in found[0]]
    expected = [("forward", 0), ("weight_gradient", 0)]  # whose first part is empty
    expected += [("forward", 1), ("input_gradient", 1), ("weight_gradient", 1)]
    expected += [("forward_loss", 2), ("weight_gradient", 2)]
    assert sorted(operations) == sorted(4 * expected)
    assert all(mark.start <= mark.end for mark in found[0])


def test_where_they_begin():
    """In one epoch where they fit, after a smaller last batch has gone."""
    pipeline = jd.Pipeline([nn.Dense(2), nn.Dense(2)], jd.schedules.fdg(2), optimizer=optax.sgd(0.1))
    drain = pipeline.schedule.drain
    begins = 2 * drain + 8
    assert Marks(pipeline, 3, 1000, print).first == begins
    assert Marks(pipeline, 3, begins + 4, print).first == begins + 4
