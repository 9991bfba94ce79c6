"""What diagnostics say of a run is what a naive run's weights say of it."""

import itertools

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord
from tests.oracles import naive
from tests.oracles.pipelines import PRESETS, batch, make
from tests.oracles.problems import pipeline_for, problem, start, weights_of

RATE = 0.3
METHODS = {
    "backprop": (schedules.backprop, {}),
    "ddg": (schedules.ddg, {}),
    "features_replay": (schedules.features_replay, {}),
    "fdg": (schedules.fdg, {}),
    "pipedream": (schedules.pipedream, {}),
}


def watch(pipeline, state, batches, **options):
    """The final state and all records of a run with diagnostics, flush included."""
    diagnostics = jd.Diagnostics(pipeline, **options)
    for given in batches:
        state, _ = diagnostics.step(state, given)
    state = diagnostics.flush(state)
    found = list(diagnostics.records())
    assert not list(diagnostics.records())
    return state, *([r for r in found if isinstance(r, kind)] for kind in (GradientRecord, DirectionRecord))


def true_gradients(layers, batch, boundaries):
    """Back-propagation in NumPy: one flat vector per stage."""
    activations = naive.forward_layers(layers, batch[0], top=True)
    _, gradient = naive.cross_entropy(activations[-1], batch[1])
    gradients, _ = naive.backward_layers(layers, activations, gradient, top=True)
    return by_stage(gradients, boundaries)


def by_stage(layers, boundaries):
    edges = (0, *boundaries, len(layers))
    return [np.concatenate([a.ravel() for layer in layers[a:b] for a in layer]) for a, b in itertools.pairwise(edges)]


def ticks_of(schedule, kind, k, n):
    return next(t for t, ops in schedule.run(n + 1) if schedules.Op(kind, k, n) in ops)


@pytest.mark.parametrize("name", METHODS)
def test_equals_what_follows_from_a_naive_run(name, x64):
    preset, arguments = METHODS[name]
    task, schedule = problem(3, learning_rate=RATE), preset(3)
    run = naive.METHODS[name](task, **arguments)
    history = [
        by_stage(layers, task.boundaries) for layers in [list(task.layers), *run.parameters]
    ]  # [t]: before tick t
    pipeline = pipeline_for(task, schedule)
    state, gradients, directions = watch(pipeline, start(pipeline, task), task.batches, every=3)
    assert [record.batch for record in gradients] == [0, 3, 6, 9]
    backward_first = getattr(schedule, "order", "") == "backward_first"
    flat = [[w for layer in layers for w in layer] for layers in [list(task.layers), *run.parameters]]
    for record in gradients:
        n, forward_weights = record.batch, []
        for k in range(3):
            forwarded = ticks_of(schedule, schedules.FORWARD, k, n)
            computed = forwarded if k == 2 else ticks_of(schedule, schedules.BACKWARD, k, n)
            assert record.lag[k] == computed - forwarded
            assert record.staleness[k] == run.staleness[k, n]
            version = forwarded + (backward_first and k < 2)  # after the backward of the tick, or before it
            forward_weights.append(version)
            gap = history[computed][k] - history[version][k]
            assert record.weight_gap[k] == pytest.approx(
                np.linalg.norm(gap) / np.linalg.norm(history[version][k]), abs=1e-9
            )
            assert record.distance[k] == pytest.approx(np.linalg.norm(gap), abs=1e-9)
            given = (history[computed][k] - history[computed + 1][k]) / RATE
            assert record.norm[k] == pytest.approx(np.linalg.norm(given), rel=1e-8)
        edges = (0, *task.boundaries, len(task.layers))
        mixed = []
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            arrays = flat[forward_weights[k]][2 * a : 2 * b]
            mixed += list(zip(arrays[::2], arrays[1::2], strict=True))
        for k, true in enumerate(true_gradients(mixed, task.batches[n], task.boundaries)):
            computed = ticks_of(schedule, schedules.FORWARD if k == 2 else schedules.BACKWARD, k, n)
            given = (history[computed][k] - history[computed + 1][k]) / RATE
            size = np.linalg.norm(true)
            assert record.true_norm[k] == pytest.approx(size, rel=1e-8)
            assert record.difference[k] == pytest.approx(np.linalg.norm(given - true) / size, abs=1e-7)
            assert record.mean_absolute[k] == pytest.approx(np.mean(np.abs(given - true)), abs=1e-9)
            assert record.cosine[k] == pytest.approx(given @ true / np.linalg.norm(given) / size, abs=1e-7)
    assert [record.tick for record in directions] == [1, 4, 7, 10]
    for record in directions:
        t = record.tick
        layers = list(task.layers) if t == 0 else run.parameters[t - 1]
        true = true_gradients(layers, task.batches[t], task.boundaries)
        given = [(before - after) / RATE for before, after in zip(history[t], history[t + 1], strict=True)]
        consumed = {op.stage for op in schedule.ops(t) if schedule.learns_in_forward(op.stage) or op.kind.value == "B"}
        for k in range(3):
            expected = pytest.approx(given[k] @ true[k] / (true[k] @ true[k]), rel=1e-7)
            assert record.sigma[k] == (expected if k in consumed else None)
        if len(consumed) == 3:
            whole = sum(g @ h for g, h in zip(given, true, strict=True)) / sum(h @ h for h in true)
            assert record.sigma_all == pytest.approx(whole, rel=1e-7)
        else:
            assert record.sigma_all is None
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), weights_of(state), run.parameters[-1]
    )


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_staleness_is_counted_through_accumulation(order, accumulate, x64):
    task = problem(3, learning_rate=RATE, accumulate=accumulate)
    run = naive.adl(task, order=order)
    pipeline = pipeline_for(task, schedules.adl(3, order=f"{order}_first"))
    _, gradients, _ = watch(pipeline, start(pipeline, task), task.batches, every=1)
    found = {(k, r.batch): level for r in gradients for k, level in enumerate(r.staleness)}
    assert {key: level for key, level in found.items() if level is not None} == run.staleness
    assert len(found) == 3 * len(task.batches)  # of the last group there is no update, but there are gradients


def test_back_propagation_has_the_true_gradient_everywhere(x64):
    task = problem(3, learning_rate=RATE)
    pipeline = pipeline_for(task, schedules.backprop(3))
    _, gradients, directions = watch(pipeline, start(pipeline, task), task.batches, every=2)
    for record in gradients:
        assert max(record.difference) < 1e-12 and min(record.cosine) > 1 - 1e-12 and not any(record.weight_gap)
    for record in directions:
        assert record.sigma_all == pytest.approx(1) and record.bytes_in_flight == [0, 0, 0]


@pytest.mark.parametrize("count", [4, 23])  # fewer and more batches than groups
def test_the_direction_is_that_of_the_gradient_over_the_reference(count, x64):
    """Thesis, eq. 6.10, at every stage; the standard error by a jackknife written anew, group by group."""
    task = problem(3, learning_rate=RATE)
    run = naive.METHODS["ddg"](task)
    history = [list(task.layers), *run.parameters]
    rng = np.random.default_rng(1)
    reference = [(rng.normal(size=(7, 6)), rng.integers(0, 3, size=7)) for _ in range(count)]
    pipeline = pipeline_for(task, schedules.ddg(3))
    _, _, directions = watch(pipeline, start(pipeline, task), task.batches, every=4, reference=lambda: iter(reference))
    record = directions[-1]
    t = record.tick
    before, after = (by_stage(history[tick], task.boundaries) for tick in (t, t + 1))
    given = [(a - b) / RATE for a, b in zip(before, after, strict=True)]
    single = [true_gradients(history[t], batch, task.boundaries) for batch in reference]  # [batch][stage]

    def ratio(kept, stages):
        true = np.concatenate([np.mean([single[n][k] for n in kept], axis=0) for k in stages])
        return np.concatenate([given[k] for k in stages]) @ true / (true @ true)

    def error(stages):
        groups = min(count, 10)
        left_out = [ratio([n for n in range(count) if n % groups != j], stages) for j in range(groups)]
        return np.sqrt((groups - 1) * np.var(left_out))

    for k in range(3):
        assert record.sigma[k] == pytest.approx(ratio(range(count), [k]), rel=1e-6)
        assert record.sigma_error[k] == pytest.approx(error([k]), rel=1e-5)
    assert record.sigma[2] != pytest.approx(1)  # the last stage is not measured by the batch that it learns from
    assert record.sigma_all == pytest.approx(ratio(range(count), range(3)), rel=1e-6)
    assert record.sigma_all_error == pytest.approx(error(range(3)), rel=1e-5)


def test_a_reference_without_batches_is_refused():
    pipeline = jd.Pipeline([nn.Dense(3)], schedules.backprop(1), optimizer=optax.sgd(0.1))
    given = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
    diagnostics = jd.Diagnostics(pipeline, every=1, reference=lambda: [])
    with pytest.raises(ValueError, match="the reference has no batches; write a function that gives"):
        diagnostics.step(pipeline.init(jax.random.key(0), given[0]), given)


@pytest.mark.parametrize("name", ["fdg", "features_replay", "dgl", "dni", "gpipe"])
def test_a_run_is_the_same_with_and_without(name):
    batches, finals = [batch(n) for n in range(12)], []
    for watched in (False, True):
        pipeline = make(PRESETS[name](3), accumulate=2)
        state = pipeline.init(jax.random.key(0), batches[0][0])
        if watched:
            state, gradients, directions = watch(pipeline, state, batches, every=3)
            assert len(gradients) == len(directions) == 4
            assert directions[-1].bytes_in_flight[1] > 0 or name == "gpipe"
        else:
            for given in batches:
                state, _ = pipeline.step(state, given)
            state = pipeline.flush(state)
        finals.append([(stage.params, stage.model_state) for stage in state.stages])
    chex.assert_trees_all_close(*finals, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [0, 2.5])
def test_numbers_below_one_are_refused(every):
    pipeline = jd.Pipeline([nn.Dense(3)], schedules.backprop(1), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="write an integer of at least 1"):
        jd.Diagnostics(pipeline, every=every)
