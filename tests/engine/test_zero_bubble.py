"""A split backward computes what a backward in one piece computes, each thing once, whatever else is asked of a stage.

That training under `zero_bubble` is plain training, `test_rounds` shows; with tied parameters, `test_ties`; over
processes, `test_processes`; with layers that report, `test_forward_once`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.diagnostics import GradientRecord
from jaxdecouple.engine.split_program import split
from jaxdecouple.schedules import Kind, Op
from tests.oracles import naive
from tests.oracles.grouped import batches, pipeline, trained
from tests.oracles.problems import assert_same, pipeline_for, problem, run, start, weights_of

PLAIN, SPLIT = schedules.one_forward_one_backward(2, 2), schedules.zero_bubble(2, 2)


def numbers(state):
    return [(stage.params, stage.model_state, stage.opt_state) for stage in state.stages]


def assert_close(tree, other, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), tree, other)


def test_dropout_and_batch_statistics_on_groups_of_devices(x64):
    plain, split = pipeline(PLAIN, jax.devices()[:2]), pipeline(SPLIT, [jax.devices()[:2], jax.devices()[2:4]])
    assert_close(numbers(trained(split, batches(5))), numbers(trained(plain, batches(5))))
    lower, upper = (next(iter(program._splits.values())) for program in split.programs)
    # One dense layer below, which sends nothing down: its backward is the second part. Two above: their forwards and
    # the gradients of their inputs; then those of their weights.
    parts = lower.first, lower.second, upper.first, upper.second
    assert list(map(products, parts)) == [0, 1, 4, 2]


def products(equations):
    return sum(equation.primitive.name == "dot_general" for equation in equations)


def test_a_schedule_of_ones_own(x64):
    """Rounds of two. A backward is not joined with the forward that follows it: it does not update."""
    text = "F00 F01 | B00 F10 W00 F11 B10 W10 W01 W11"  # kind, batch, stage
    ticks = [[Op(Kind(op[0]), int(op[2]), int(op[1])) for op in tick.split()] for tick in text.split("|")]
    schedule = schedules.TableSchedule(name="mine", num_stages=2, table=tuple(map(tuple, ticks)), period=2)
    task = problem(2, learning_rate=0.2, accumulate=2)
    assert_same(run(pipeline_for(task, schedule), task), naive.gpipe(task, chunks=2))
    alone = jd.timeline(schedule, jd.Times(forward=[1, 1], backward=[2, 2], joined=[9]), num_batches=2)
    assert len(set(alone.dispatch)) == 10 and alone.makespan < 12


def mlp(params, x):
    for w, b in params:
        x = jax.jit(lambda x, w, b: jnp.tanh(x @ w + b))(x, w, b)  # compiled by itself, and divided all the same
    return x


def test_each_product_is_computed_once_and_in_its_part():
    """Of a chain of three layers: two products with weights, but for the first layer's, three with activations."""

    def both(params, key, batch, x, gradient):
        _, pull = jax.vjp(mlp, params, x)
        grads, sent = pull(gradient)
        return sent, grads

    rng = np.random.default_rng(0)
    params = [(rng.normal(size=(4, 4)), rng.normal(size=4)) for _ in range(3)]
    x, gradient = rng.normal(size=(2, 5, 4))
    halves = split(both, params, jax.random.key(0), 0, x, gradient)

    # The forward's three, three for the gradient of the input; then three for those of the weights.
    assert (products(halves.first), products(halves.second)) == (6, 3)
    assert not set(map(id, halves.first)) & set(map(id, halves.second))
    assert halves.inputs == (0,)  # the first layer's activations are the input
    early, computed = halves.early(params, jax.random.key(0), 0, x, gradient)
    late = halves.late(computed, halves.inputs_of(x, gradient), params, jax.random.key(0), 0)
    assert_close((early, late), both(params, None, 0, x, gradient), atol=1e-6)
    # What is kept: the activations of two layers, and three gradients; no weights.
    assert sorted(value.shape for value in computed) == [(5, 4)] * 5


def test_what_follows_from_weights_alone_is_not_kept():
    def both(weights, key, batch, x):
        cast = weights.astype(jnp.bfloat16)
        return x @ cast, cast * x.sum()

    halves = split(both, jnp.ones((4, 4)), jax.random.key(0), 0, jnp.ones((5, 4), jnp.bfloat16))
    assert halves.computed == () and halves.inputs == (0,)
    assert [equation.primitive.name for equation in halves.second][0] == "convert_element_type"


def test_a_state_in_mid_flight_is_saved_and_gone_on_with(x64, tmp_path):
    task, schedule = problem(2, learning_rate=0.2, momentum=0.9, accumulate=4), schedules.zero_bubble(2, 4)
    made = pipeline_for(task, schedule)
    state = start(made, task)
    for batch in task.batches[:7]:
        state, _ = made.step(state, batch)
    waiting = [sorted(flight.residuals) for flight in state.in_flight]
    assert waiting == [[5, 6], [5, 6]]  # for B or W; the W of batch 4 is done
    jd.save(tmp_path / "state", state)
    restored = jd.restore(tmp_path / "state", made, *task.batches[0])
    layers = jd.models.mlp(3, hidden=(5, 4, 5, 4), activation=nn.tanh, param_dtype=np.float64)
    optimizer = optax.chain(optax.add_decayed_weights(0.0), optax.sgd(0.2, momentum=0.9))
    other = jd.Pipeline(
        jd.partition(layers, boundaries=task.boundaries), schedule, optimizer=jd.stagewise(optimizer, accumulate=4)
    )
    ends = []
    for each, run_by in ((state.copy(), made), (restored, made), (state, other)):  # which has split no backward yet
        for batch in task.batches[7:]:
            each, _ = run_by.step(each, batch)
        ends.append(weights_of(run_by.flush(each)))
    assert_close(ends[1], ends[0], atol=0)
    assert_close(ends[2], ends[0], atol=0)


def test_a_norm_over_all_stages(x64):
    """The updates wait for one another, each with the gradient of the last W."""
    ends = []
    for schedule in (PLAIN, SPLIT):
        layers = jd.models.mlp(3, hidden=(4,), param_dtype=np.float64)
        optimizer = jd.stagewise(optax.chain(jd.clip_by_global_norm(1e-3), optax.sgd(1.0)), accumulate=2)
        ends.append(trained(jd.Pipeline(jd.partition(layers, 2), schedule, optimizer=optimizer), batches(4)))
    assert_close(*map(numbers, ends))
    assert_close(ends[0].stages[0].share, ends[1].stages[0].share)


def test_diagnostics_find_the_true_gradient(x64):
    task = problem(2, learning_rate=0.2, accumulate=2)
    made = pipeline_for(task, SPLIT)
    probes, state = jd.Diagnostics(made, every=2), start(made, task)
    for batch in task.batches:
        state, _ = probes.step(state, batch)
    probes.flush(state)
    found = [record for record in probes.records() if isinstance(record, GradientRecord)]
    assert [record.batch for record in found] == [0, 2, 4, 6, 8, 10]
    for record in found[:-1]:
        assert record.lag == [1, 1]  # to the end of the round
        assert record.staleness == [0, 0] and record.weight_gap == [0, 0]
        assert max(record.difference) < 1e-12 and min(record.norm) > 0


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (
            optax.sgd(0.1),
            r"stage 0 would .* 'zero_bubble' write jd.stagewise\(..., accumulate=4\): each step feeds",
        ),
        (jd.stagewise(optax.sgd(0.1), accumulate=3), r"with accumulate=3, stage 0 would update while batches wait"),
        (
            jd.stagewise(jd.predict_weights(optax.sgd(0.1, momentum=0.9), 1), accumulate=4),
            "stage 0 has a weight view, against delays that 'zero_bubble' does not have; leave the view out",
        ),
    ],
)
def test_refused_before_training(optimizer, says):
    stages = jd.partition(jd.models.mlp(3, hidden=(4,)), 2)
    with pytest.raises(ValueError, match=says):
        jd.Pipeline(stages, schedules.zero_bubble(2, 4), optimizer=optimizer)


def test_a_group_may_be_several_rounds(x64):
    task = problem(2, learning_rate=0.2, accumulate=4)
    parameters, _ = run(pipeline_for(task, SPLIT), task)
    assert_close(parameters[-1], naive.gpipe(task, chunks=4).parameters[-1], atol=1e-10)
