"""A step reuses memory that is the run's own, never the user's, and says so where a state was used up."""

import dataclasses
import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules

X, Y = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 3
RATE = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)


def started(optimizer=RATE, schedule=schedules.fdg, ticks=3):
    pipeline = jd.Pipeline([nn.Dense(6), nn.Dense(3)], schedule(2), optimizer=optimizer, devices=jax.devices()[:1] * 2)
    state = pipeline.init(jax.random.key(0), X)
    for _ in range(ticks):
        state, _ = pipeline.step(state, (X, Y))
    return pipeline, state


def params_after(pipeline, state, ticks=3):
    for _ in range(ticks):
        state, _ = pipeline.step(state, (X, Y))
    return jax.tree.leaves(jd.export_variables(pipeline, pipeline.flush(state)))


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def with_rate(state, rate):
    def lowered(stage):
        new = {**stage.opt_state.hyperparams, "learning_rate": rate()}
        return stage.replace(opt_state=stage.opt_state._replace(hyperparams=new))

    return state.replace(stages=tuple(map(lowered, state.stages)))


def test_a_step_whose_result_is_not_taken_is_noticed_also_where_nothing_was_reused():
    pipeline, state = started(ticks=0)
    with pytest.raises(ValueError, match="this run was initialised"):
        pipeline.step(state, (X[:, :2], Y))
    pipeline.step(state, (X, Y))  # what was refused used nothing
    with pytest.raises(ValueError, match="was given to step or flush before"):
        pipeline.step(state, (X, Y))
    pipeline, state = started(schedule=schedules.backprop)
    pipeline.flush(state)  # there is nothing to finish
    pipeline.step(state, (X, Y))
    again = jd.Pipeline([nn.Dense(6), nn.Dense(3)], schedules.fdg(2), optimizer=RATE, donate=False)
    state = again.init(jax.random.key(0), X)
    assert [int(again.step(state, (X, Y))[0].tick) for _ in range(2)] == [1, 1]


def test_one_array_in_two_stages_stays_the_users():

    def make():
        return jnp.asarray(0.01)

    shared = make()
    pipeline, state = started()
    got = params_after(pipeline, with_rate(state, lambda: shared))
    assert float(shared) == np.float32(0.01)
    pipeline, state = started()
    assert_same(got, params_after(pipeline, with_rate(state, make)))


def test_a_large_array_in_two_places_stays_the_users():
    """Large arrays are passed on as they are wherever they can."""
    big = [nn.Dense(300, use_bias=False), nn.Dense(300, use_bias=False), nn.Dense(300, use_bias=False)]
    pipeline = jd.Pipeline(big, schedules.backprop(3), optimizer=optax.sgd(0.1), devices=jax.devices()[:1] * 3)
    x, y = np.ones((2, 300), np.float32), np.zeros(2, np.int32)
    state = pipeline.init(jax.random.key(0), x)
    shared = jnp.eye(300)
    stages = [stage.replace(params={name: {"kernel": shared} for name in stage.params}) for stage in state.stages]
    state, _ = pipeline.step(state.replace(stages=tuple(stages)), (x, y))
    np.testing.assert_array_equal(shared, np.eye(300))
    assert not np.array_equal(state.stages[1].params["001_Dense"]["kernel"], shared)


def test_arrays_that_two_stages_hold_packed_are_not_given_up_twice():
    same = [nn.Dense(6), nn.Dense(6)]
    pipeline = jd.Pipeline(same, schedules.backprop(2), optimizer=optax.adam(0.1), devices=jax.devices()[:1] * 2)
    state = pipeline.init(jax.random.key(0), X)
    first, second = state.stages
    same_arrays = dataclasses.replace(second.packed_params, arrays=first.packed_params.arrays)
    second = dataclasses.replace(second, packed_params=same_arrays)
    state = state.replace(stages=(first, second))
    for _ in range(2):
        state, _ = pipeline.step(state, (X, Y))


@pytest.mark.parametrize(
    ("schedule", "optimizer"), [(schedules.fdg, RATE), (schedules.features_replay, optax.sgd(0.1))]
)
def test_a_state_kept_for_later_says_that_it_is_used_up(schedule, optimizer):
    pipeline, best = started(optimizer, schedule)
    kept = best.copy()
    state, _ = pipeline.step(best, (X, Y))
    state, _ = pipeline.step(state, (X, Y))
    uses = [
        lambda: pipeline.step(best, (X, Y)),
        lambda: pipeline.flush(best),
        lambda: pipeline.predict(best, X),
        lambda: pipeline.evaluate(best, [(X, Y)]),
        lambda: jd.save("never", best),
        lambda: best.stages[1].params if schedule is schedules.features_replay else best.stages[0].opt_state,
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"this state was given to step or flush before.*best = state.copy\(\)"):
            use()
    state, _ = pipeline.step(state, (X, Y))  # the run goes on
    again, other = started(optimizer, schedule)
    assert_same(params_after(pipeline, kept), params_after(again, other))


def test_a_copy_is_as_large_as_the_state():
    """What in-flight batches refer to is not copied once more."""
    _, state = started(optax.sgd(0.1))

    def count(state):
        return len({id(leaf) for leaf in jax.tree.leaves((state.stages, state.in_flight))})

    assert count(state.copy()) == count(state) < len(jax.tree.leaves((state.stages, state.in_flight)))


def test_the_pipeline_keeps_no_state_alive():
    pipeline, state = started()
    gone = weakref.ref(state)
    del state
    gc.collect()
    assert gone() is None


def test_measuring_norms_uses_no_state_up():
    pipeline, state = started(optimizer=jd.clars(0.1), ticks=0)
    first = pipeline.measure_gradient_norms(state, (X, Y), sample_size=4)
    again = pipeline.measure_gradient_norms(state, (X, Y), sample_size=4)
    assert_same(*(jax.tree.leaves([stage.gradient_norms for stage in of.stages]) for of in (first, again)))
    pipeline.step(again, (X, Y))


def test_beginning_again_traces_nothing_anew():
    traced = []

    def apply(params, model_state, x, *, key, train):
        traced.append(x.shape)
        return x @ params["w"], model_state

    layers = [jd.Layer(lambda key, x: ({"w": jax.random.normal(key, (x.shape[1], 3))}, {}), apply) for _ in range(2)]
    pipeline = jd.Pipeline(layers, schedules.fdg(2), optimizer=optax.sgd(0.1), devices=jax.devices()[:1] * 2)
    pipeline.init(jax.random.key(0), X)
    before = len(traced)
    pipeline.init(jax.random.key(1), X)
    assert len(traced) == before > 0
    pipeline.init(jax.random.key(1), X[:4])
    assert len(traced) > before
