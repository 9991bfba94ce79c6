"""`Pipeline.shapes` tells the structure, shapes and dtypes of the state that a run really has by then."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.network.trees import describe, shape_of
from tests.oracles.pipelines import KINDS, PRESETS, batch, make

POLICIES = ("stash", "remat", "replay", "latest")


def assert_foretold(pipeline, state, x, targets=None, fed=None):
    """By another pipeline as well as by the one that trained: one that has traced nothing yet."""
    told = pipeline.shapes(x, targets, tick=state.tick, first=state.first, fed=fed)
    assert (told.tick, told.first) == (state.tick, state.first)
    assert jax.tree.structure(told) == jax.tree.structure(state)
    named = jax.tree_util.tree_leaves_with_path((told.stages, told.in_flight))
    reached = jax.tree.leaves(shape_of((state.stages, state.in_flight)))
    for (path, leaf), wanted in zip(named, reached, strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct), jax.tree_util.keystr(path)
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype), jax.tree_util.keystr(path)


def run(pipeline, batches, ticks, *, targets=None, fed=None, state=None):
    """Trains, and holds the state against what is foretold after each of ``ticks`` batches."""
    x = batches[0][0]
    state = pipeline.init(jax.random.key(0), x, targets) if state is None else state
    first = state.tick
    for n, given in enumerate(batches):
        if n in ticks:
            assert_foretold(pipeline, state, x, targets, fed)
        state, _ = pipeline.step(state, given)
    assert state.tick - first == len(batches)
    assert_foretold(pipeline, state, x, targets, fed)
    return state


@pytest.mark.parametrize("num_stages", [2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_every_tick_of_every_schedule(name, num_stages):
    pipeline = make(PRESETS[name](num_stages))
    batches = [batch(n) for n in range(7)]
    state = run(pipeline, batches, (0, 1, 2, 5))  # nothing, filling, and full
    state = pipeline.flush(state)
    assert state.first == 7 and not jax.tree.leaves(state.in_flight)
    assert_foretold(pipeline, state, batches[0][0])
    run(pipeline, batches[:4], (1, 2), state=state)  # filling again, from the seventh batch on


@pytest.mark.parametrize("weights", POLICIES)
@pytest.mark.parametrize("name", ["gpipe", "fdg", "dsp", "dni"])
def test_every_policy(name, weights):
    schedule = PRESETS[name](3)
    try:
        pipeline = make(schedule.with_weights(weights))
        run(pipeline, [batch(n) for n in range(6)], (2, 4))
    except schedules.ScheduleError:
        assert name in ("gpipe", "dni") and weights == "latest"


@pytest.mark.parametrize("name", ["gpipe", "fdg", "dsp", "dgl", "dni"])
def test_a_pipeline_that_has_traced_nothing_foretells_the_same(name):
    state = run(make(PRESETS[name](3)), [batch(n) for n in range(6)], ())
    assert_foretold(make(PRESETS[name](3)), state, batch()[0])


@pytest.mark.parametrize("name", ["ddg", "fdg", "dsp", "gpipe", "dgl", "dni"])
def test_smaller_batches_in_flight(name):
    pipeline = make(PRESETS[name](3))
    batches = [batch(n, size=3 if n in (2, 5) else 4) for n in range(6)]
    fed = {n: batches[n] for n in (2, 5)}
    state = run(pipeline, batches, (3, 4, 5), fed=fed)
    in_flight = {leaf.shape[0] for flight in state.in_flight for leaf in jax.tree.leaves(flight.activations)}
    in_flight |= {leaf.shape[0] for flight in state.in_flight for leaf in jax.tree.leaves(flight.targets)}
    assert name in ("ddg", "gpipe") or 3 in in_flight


def test_within_a_round_and_after_it():
    pipeline = make(schedules.gpipe(3, 4), accumulate=4)
    run(pipeline, [batch(n) for n in range(9)], range(9))


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_layers(kind):
    run(make(schedules.adl(2), KINDS[kind]()), [batch(n) for n in range(4)], ())


def mix(x):
    return x["features"] * (x["tokens"] > 0)[:, None], x["tokens"]


class Embed(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return {"features": nn.Embed(7, 4)(tokens), "tokens": tokens}


class Join(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        features, tokens = inputs
        return nn.Dense(3)(features) + nn.Embed(7, 3)(tokens)


@pytest.mark.parametrize("weights", POLICIES)
@pytest.mark.parametrize("name", ["ddg", "fdg", "pipedream"])
def test_trees_with_integers_between_stages(name, weights):
    pipeline = make(PRESETS[name](3).with_weights(weights), [Embed(), mix, Join()])
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 7, 4).astype(np.int32), batch(n)[1]) for n in range(6)]
    state = run(pipeline, batches, range(7))
    sent = [flight.gradients for flight in state.in_flight if flight.gradients]
    assert all("int" not in describe(gradients) for gradients in sent)
    assert name == "pipedream" or sent


@pytest.mark.parametrize("name", ["gpipe", "fdg", "features_replay", "dgl", "dni"])
def test_half_precision(name):
    pipeline = make(PRESETS[name](3), dtype=jnp.bfloat16)
    state = run(pipeline, [batch(n, dtype=jnp.bfloat16) for n in range(6)], (1, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.stages[0].params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["gpipe", "fdg", "dsp", "dgl", "dni"])
def test_double_precision(name, x64):
    pipeline = make(PRESETS[name](3), dtype=jnp.float64)
    batches = [batch(n, dtype=np.float64, labels=np.int64) for n in range(6)]
    state = run(pipeline, batches, (1, 3), targets=batches[0][1])
    assert jax.tree.leaves(state.stages[0].params)[0].dtype == jnp.float64


def test_targets_that_are_no_labels():
    schedule = schedules.dgl(3)
    pipeline = jd.Pipeline(
        jd.partition([nn.Dense(4), nn.Dense(4), nn.Dense(2)], 3),
        schedule,
        optimizer=optax.adam(0.1),
        auxiliary=nn.Dense(2),
        loss=lambda outputs, targets: jnp.mean((outputs - targets) ** 2),
    )
    batches = [(batch(n)[0], np.ones((4, 2), np.float32)) for n in range(5)]
    run(pipeline, batches, range(6), targets=batches[0][1])


def test_computes_nothing_and_leaves_the_run_alone():
    pipeline, other = make(schedules.fdg(3)), make(schedules.fdg(3))
    batches = [batch(n) for n in range(6)]
    states = []
    for trained, ask in ((pipeline, True), (other, False)):
        state = trained.init(jax.random.key(0), batches[0][0])
        for given in batches:
            if ask:
                trained.shapes(jax.ShapeDtypeStruct((9, 4), jnp.float32), tick=4)
            state, _ = trained.step(state, given)
        states.append(trained.flush(state))
    jax.tree.map(np.testing.assert_array_equal, *([stage.params for stage in state.stages] for state in states))


def test_says_which_layer_cannot_take_the_input():
    with pytest.raises(ValueError, match=r"layer 1 \(Dense\) cannot take|layer 1 \(wrong\) cannot take"):
        make(schedules.fdg(2), [nn.Dense(4), jd.Layer(lambda key, x: 1 / 0, None, "wrong")]).shapes(batch()[0], tick=3)
