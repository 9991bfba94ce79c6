"""A stack of identical layers computes in one loop what they compute one by one, and stores no more."""

import dataclasses
import functools
import itertools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.engine.inner_program import InnerProgram
from jaxdecouple.engine.stage_program import Outcome
from jaxdecouple.network.jax_internals import depends, fast_in_loops
from jaxdecouple.network.stack import SHORTEST, LayerStack, stack_layers
from jaxdecouple.network.stage import Stage
from jaxdecouple.network.trees import shape_of

KEY = jax.random.key(0)


class Block(nn.Module):
    """What a layer can have: parameters, batch statistics, randomness, a cast of its weights."""

    width: int = 4
    dtype: type | None = None
    param_dtype: type = jnp.float32
    dropout: float = 0.25

    @nn.compact
    def __call__(self, x, train):
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.Dense(self.width, **dtypes)(x)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, **dtypes)(y)
        return x + nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(y))


class TreeBlock(nn.Module):
    """Passes integers and nothing on, beside activations."""

    @nn.compact
    def __call__(self, x, train):
        y = Block(param_dtype=jnp.float64, dropout=0.0)(x["x"], train)
        return {"x": y + x["ids"] % 2, "ids": x["ids"] + 1, "none": None}


def network(kind, count=4):
    """A stem, ``count`` identical layers, a head."""
    x64 = {"param_dtype": jnp.float64}
    if kind == "tree":
        into = jd.from_function(lambda x: {"x": x, "ids": jnp.arange(4), "none": None}, "into")
        return [into, *(TreeBlock() for _ in range(count)), jd.from_function(lambda x: x["x"], "out")]
    if kind == "conv":
        block = functools.partial(jd.models.BasicBlock, 4, **x64)
        return [nn.Conv(4, (3, 3), **x64), *(block() for _ in range(count)), jd.models.Head(3, **x64)]
    dtypes = {"float64": x64, "float32": {"dtype": jnp.float32, **x64}, "bfloat16": {"dtype": jnp.bfloat16}}[kind]
    block = functools.partial(Block, dropout=0.25 if kind == "float64" else 0.0, **dtypes)
    return [nn.Dense(4, **dtypes), *(block() for _ in range(count)), nn.Dense(3, **dtypes)]


def batches(kind, count=6, size=5):
    rng = np.random.default_rng(0)
    shape = (size, 6, 6, 3) if kind == "conv" else (size, 4)
    return [(rng.normal(size=shape), rng.integers(0, 3, size)) for _ in range(count)]


def cut(layers, boundaries, x, shortest=2):
    """Stages, with stacks of at least ``shortest`` layers, or without stacks if it is ``None``."""
    stages = jd.partition(layers, boundaries=boundaries)
    if shortest is None:
        return stages
    stacked, x = [], shape_of(x)
    for stage in stages:
        layers, x = stack_layers(stage.layers, x, first=stage.first, shortest=shortest)
        stacked.append(Stage(layers, stage.first))
    return tuple(stacked)


def by_layer(pipeline, state, part):
    """Parameters or model state of the whole network, layer by layer."""
    trees = [s.by_layer(getattr(own, part)) for s, own in zip(pipeline.stages, state.stages, strict=True)]
    return jax.device_get({name: tree for stage in trees for name, tree in stage.items()})


def trained(kind, weights, shortest, count=2, accumulate=1):
    """Parameters, model state and losses after 6 batches and a flush, the cut being above the second block."""
    data = batches(kind)
    stages = cut(network(kind, count), (3,), data[0][0], shortest)
    schedule = schedules.fdg(len(stages), weights=weights)
    optimizer = jd.stagewise(optax.sgd(0.3, momentum=0.9), accumulate=accumulate)
    pipeline = jd.Pipeline(stages, schedule, optimizer=optimizer)
    state, losses = pipeline.init(KEY, data[0][0]), []
    for batch in data:
        state, metrics = pipeline.step(state, batch)
        losses.append(metrics.loss)
    state = pipeline.flush(state)
    losses = [float(loss) for loss in losses if loss is not None]
    return by_layer(pipeline, state, "params"), by_layer(pipeline, state, "model_state"), losses


def assert_close(got, want, tolerance=1e-12):
    chex.assert_trees_all_close(got, want, rtol=0, atol=tolerance)


def farthest(got, want):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), got, want)))


@pytest.mark.parametrize(
    ("kind", "weights", "accumulate"), [("float64", "replay", 1), ("tree", "stash", 2), ("conv", "latest", 1)]
)
def test_training_is_that_of_single_layers(kind, weights, accumulate, x64):
    count = 4 if kind == "float64" else 2  # in both stages, or in the first alone
    got, want = (trained(kind, weights, shortest, count, accumulate) for shortest in (2, None))
    assert_close(got, want, 1e-12 if kind == "float64" else 1e-11)


def test_weights_that_are_cast_are_those_that_the_policy_chooses(x64):
    # A cast of the weights comes from the weights alone, also in a loop.
    latest, stash = (trained("float32", weights, 2) for weights in ("latest", "stash"))
    assert_close(latest, trained("float32", "latest", None), 2e-4)
    assert farthest(latest, stash) > 1e-2


@pytest.mark.core
def test_the_cut_and_the_loop_change_neither_parameters_nor_masks(x64):
    x, results = batches("float64")[0][0], []
    for boundaries, shortest in (((), None), ((), 2), ((1, 5), 2), ((3,), 2), ((2,), 3)):
        params, state, y, evaluated = {}, {}, x, x
        for stage in cut(network("float64"), boundaries, x, shortest):
            own = stage.init(KEY, y)
            y, new_state = stage.apply(*own, y, key=KEY, batch=3, train=True)
            params |= stage.by_layer(own[0])
            state |= stage.by_layer(new_state)
            evaluated = stage.apply(own[0], new_state, evaluated, key=KEY, batch=0, train=False)[0]
        results.append((params, state, (y, evaluated)))
    for params, state, y in results[1:]:
        chex.assert_trees_all_equal(params, results[0][0])
        assert_close((state, y), results[0][1:])


def residual_of(layers, x, shortest):
    stage = Stage(stack_layers(layers, x, shortest=shortest)[0])
    program = InnerProgram(stage, optax.sgd(0.1))
    return program.forward(program.init(KEY, x), jnp.ones_like(x), 0, "latest").residual


@pytest.mark.core
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "conv"])
def test_residuals_are_as_large_as_those_of_single_layers(kind):
    if kind == "conv":
        layer, x = jd.models.BasicBlock(4, dtype=jnp.bfloat16), jnp.ones((3, 5, 5, 4), jnp.bfloat16)
    else:
        layer, x = Block(5, dtype=jnp.dtype(kind), param_dtype=jnp.float32), jnp.ones((3, 5), kind)
    layers = [jd.as_layer(layer)] * 6
    scanned, single = (residual_of(layers, x, shortest) for shortest in (2, 7))
    # The stage's input, in the loop one of the values, is else stored by reference.
    stored = [sum(v.nbytes for v in (*r.values.tree, *r.inputs) if v.shape) for r in (scanned, single)]
    assert stored[0] <= stored[1]
    kernels = [(6, 3, 3, 4, 4), (6, 5, 5)]
    assert not [v.shape for v in scanned.values.tree if v.shape in kernels]


@pytest.mark.core
def test_each_function_compiles_once_and_the_state_is_stacked():
    data = [(x.astype(np.float32), y) for x, y in batches("bfloat16", 12)]
    stages = cut(network("bfloat16", 6), (4,), data[0][0])
    pipeline = jd.Pipeline(stages, schedules.fdg(2), optimizer=optax.sgd(0.1))
    state = pipeline.init(KEY, data[0][0])
    assert stages[0].keys == ("000_Dense", "001-003_Block")
    assert stages[1].keys == ("004-006_Block", "007_Dense")
    assert [stage.num_layers for stage in stages] == [4, 4]
    assert state.stages[0].params["001-003_Block"]["Dense_0"]["kernel"].shape == (3, 4, 4)
    assert state.stages[1].model_state["004-006_Block"]["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, 4)
    for _ in range(2):
        for batch in data:
            state, _ = pipeline.step(state, batch)
        state = pipeline.flush(state)
    assert all(f._cache_size() == 1 for program in pipeline.programs for f in program.functions.values())
    for k, device in enumerate(pipeline.placement.devices):
        assert {d for leaf in jax.tree.leaves(state.stages[k]) for d in leaf.devices()} == {device}


class Scale(nn.Module):
    by: float = 2.0

    @nn.compact
    def __call__(self, x):
        return x * self.by * self.param("scale", nn.initializers.ones, (x.shape[-1],))


def lengths(layers, x, shortest=2):
    """How many layers each part stands for."""
    apart = [layer.clone() if isinstance(layer, nn.Module) else layer for layer in layers]  # each a module of its own
    return [part.count for part in stack_layers(list(map(jd.as_layer, apart)), x, shortest=shortest)[0]]


@pytest.mark.core
def test_only_identical_layers_whose_output_looks_like_their_input_are_merged():
    x = np.ones((2, 4), np.float32)
    assert lengths([Scale()] * 2 + [Scale(3.0)] * 3 + [Scale(), Scale(3.0)], x) == [2, 3, 1, 1]
    assert lengths([nn.Dense(5)] * 3 + [nn.Dense(6)] * 4 + [nn.Dense(5)] * 2, x) == [1, 2, 1, 3, 1, 1]
    assert lengths([nn.Dense(4), nn.Dense(4, param_dtype=jnp.bfloat16), nn.Dense(4)], x) == [1, 1, 1]
    assert lengths([nn.Dense(4, dtype=jnp.bfloat16)] * 4, x) == [1, 3]
    assert lengths([lambda x: x[:, ::2]] * 3, np.ones((2, 8), np.float32)) == [1, 1, 1]
    assert lengths([nn.Dense(4, name=name) for name in "abc"], x) == [3]
    assert lengths([jnp.tanh] * 3 + [jnp.sin] * 2, x) == [3, 2]
    assert lengths([lambda x: x + 1, lambda x: x + 2], x) == [1, 1]
    assert lengths([nn.Sequential([nn.Dense(4)])] * 2, x) == [1, 1]  # holds a list: cannot be compared
    assert lengths([nnx.Linear(4, 4, rngs=nnx.Rngs(0))] * 2, x) == [1, 1]
    unknown = jd.Layer(lambda key, x: ({}, {}), lambda params, state, x, key, train: (x, state))
    assert lengths([unknown] * 2, x) == [1, 1]
    assert lengths([dataclasses.replace(unknown, identity="mine")] * 2, x) == [2]


def test_the_shortest_stack_has_as_many_layers_as_asked():
    x, layers = np.ones((2, 4), np.float32), [Scale()] * 3 + [Scale(3.0)] * 4
    assert [lengths(layers, x, shortest) for shortest in (3, 4, 5)] == [[3, 4], [1, 1, 1, 4], [1] * 7]
    assert lengths([Scale()] * SHORTEST, x, SHORTEST) == [SHORTEST]
    layers, x = stack_layers([jd.as_layer(Scale()) for _ in range(SHORTEST)], x)
    assert isinstance(layers[0], LayerStack) and x.shape == (2, 4)
    with pytest.raises(ValueError, match="shortest is 1; write"):
        stack_layers([jd.as_layer(Scale())], x, shortest=1)


def test_a_layer_that_does_not_fit_is_named():
    layers = [jd.as_layer(Scale()), jd.from_function(lambda x: x.reshape(7, 7), "wrong")]
    with pytest.raises(ValueError, match=r"layer 6 \(wrong\) cannot take float32\[2, 4\]"):
        stack_layers(layers, np.ones((2, 4), np.float32), first=5)


def test_a_thousand_layers_are_looked_at_once_per_kind():
    calls = []

    def counting(key, x):
        calls.append(x.shape)
        return {}, {}

    layer = jd.Layer(counting, lambda params, state, x, key, train: (x, state), "same", identity="same")
    assert lengths([layer] * 1000, np.ones((2, 4))) == [1000]
    assert calls == [(2, 4)]


def test_names_are_kept_layer_by_layer():
    layers = [jd.as_layer(nn.Dense(4, name=name)) for name in "abc"]
    stage = Stage(stack_layers(layers, np.ones((2, 4), np.float32), first=7, shortest=2)[0], first=7)
    params = stage.init(KEY, np.ones((2, 4), np.float32))[0]
    assert stage.keys == tuple(params) == ("007-009_a",)
    assert list(stage.by_layer(params)) == ["007_a", "008_b", "009_c"]


def checkpointed(layer):
    """The same layer, its activations computed again in the backward."""

    def apply(params, state, x, *, key, train):
        return jax.checkpoint(functools.partial(layer.apply, train=train))(params, state, x, key=key)

    return dataclasses.replace(layer, apply=apply)


@pytest.mark.parametrize("wrap", [lambda layer: layer, checkpointed], ids=["plain", "checkpointed"])
def test_a_stack_can_be_differentiated_by_anyone(wrap, x64):
    x = jnp.asarray(batches("float64")[0][0])
    layers = [wrap(jd.as_layer(Block(param_dtype=jnp.float64))) for _ in range(3)]
    plain, stacked = (Stage(stack_layers(layers, x, shortest=shortest)[0]) for shortest in (4, 2))
    params, state = plain.init(KEY, x)

    def together(tree):
        return {"000-002_" + layers[0].name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree.values())}

    def value(stage, x, params, state):
        return jnp.sum(stage.apply(params, state, x, key=KEY, batch=0, train=True)[0] ** 3)

    @jax.jit
    def derivatives(x, params):
        def of_plain(x, params):
            return value(plain, x, params, state)

        def of_stacked(x, params):
            return value(stacked, x, together(params), together(state))

        def second(f):
            return jax.jvp(jax.grad(f, (0, 1)), (x, params), jax.tree.map(jnp.cos, (x, params)))

        return second(of_stacked), second(of_plain)

    assert_close(*derivatives(x, params), 1e-9)


@pytest.mark.parametrize("wrap", [lambda layer: layer, checkpointed], ids=["plain", "checkpointed"])
def test_a_stacks_update_is_that_of_single_layers(wrap, x64):
    x, updated = jnp.asarray(batches("float64")[0][0]), []
    layers = [wrap(jd.as_layer(Block(param_dtype=jnp.float64))) for _ in range(3)]
    for shortest in (2, 4):
        stage = Stage(stack_layers(layers, x, shortest=shortest)[0])
        program = InnerProgram(stage, optax.sgd(0.1), donate=False)
        passed = program.forward(program.init(KEY, x), x, 0, "latest")
        after = program.backward(passed.state, passed.residual, passed.outcome.y, 0, "latest").state
        updated.append(stage.by_layer(after.params))
    assert_close(*updated)


def test_what_depends_on_what_through_loops_and_calls():
    @jax.jit
    def called(w, x):
        return 2 * w, w * x

    def loops(w, x):
        def step(carry, w):
            a, b, c, own = carry
            return (x[0], a, b, own + w), (called(w, x[0])[0], c, own, called(w, x[0])[1])

        (_, _, c, own), stacked = jax.lax.scan(step, (0.0, 0.0, 0.0, 0.0), w)
        return c, own, *stacked

    jaxpr = jax.make_jaxpr(loops)(jnp.ones(4), jnp.ones(2)).jaxpr
    # c is x two turns later; the sum of the weights, and their double, never are.
    assert depends(jaxpr, [False, True]) == [True, False, False, True, False, True]
    assert depends(jaxpr, [False, False]) == [False] * 6
    checkpointed = jax.make_jaxpr(jax.checkpoint(called))(jnp.ones(2), jnp.ones(2)).jaxpr
    assert depends(checkpointed, [False, True]) == [False, True]


CANONICAL = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"


def convolutions(function, *args):
    """The orders of axes of the convolutions in the compiler's input."""
    text = jax.jit(function).lower(*args).as_text()
    return re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)


def test_a_stack_has_its_convolutions_in_the_order_that_the_cpu_is_fast_with():
    x = jnp.ones((2, 5, 5, 4))
    stage = Stage(stack_layers([jd.as_layer(jd.models.BasicBlock(4)) for _ in range(3)], x, shortest=2)[0])
    program, compiled = InnerProgram(stage, optax.sgd(0.1), donate=False), []
    passed = program.forward(program.init(KEY, x), x, 0, "latest")
    # What is compiled for the backward, with the arguments that it is called with.
    program._call = lambda *args, **donated: compiled.append(args) or Outcome()
    program.backward(passed.state, passed.residual, passed.outcome.y, 0, "latest")
    ((run, variant, *arguments),) = compiled
    found = convolutions(functools.partial(run, variant), *arguments)
    assert len(found) >= 4 and set(found) == {CANONICAL}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_convolutions_in_loops_are_the_same_in_any_order_of_axes(wrap, x64):
    rng = np.random.default_rng(0)
    orders = ["".join(order) for order in itertools.permutations("NCHW")][::5]
    for order, kernel_order in zip(orders, ("OIHW", "HWIO", "WOHI", "IOWH", "HOWI"), strict=True):
        sizes = {"N": 2, "C": 3, "H": 4, "W": 5, "O": 3, "I": 3}
        x = rng.normal(size=[sizes[axis] for axis in order])
        kernels = rng.normal(size=[6, *({**sizes, "H": 3, "W": 2}[axis] for axis in kernel_order)])
        numbers = (order, kernel_order, order)

        @wrap
        def convolve(x, kernel, numbers=numbers):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

        def loop(x, kernels, convolve=convolve):
            return jax.lax.scan(lambda x, kernel: (jnp.sin(convolve(x, kernel)), x.sum()), x, kernels)

        fast = functools.partial(fast_in_loops, loop)
        assert_close(fast(x, kernels), loop(x, kernels))
        assert set(convolutions(fast, x, kernels)) == {CANONICAL}
    plain = functools.partial(fast_in_loops, convolve)  # outside of loops, nothing changes
    assert convolutions(plain, x, kernels[0]) == convolutions(convolve, x, kernels[0])
