"""Weights as one plain tree of Flax variables: out of any pipeline over the layers, and into any other."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.checkpoints import CheckpointError
from jaxdecouple.network.stack import LayerStack, stack_layers

X = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0], np.int32)


class Block(nn.Module):
    """Keeps its input's shape; has parameters and batch statistics."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, param_dtype=self.dtype, kernel_init=nn.initializers.uniform(1.0))(x)
        return nn.BatchNorm(use_running_average=not train)(x)


def network(dtype=jnp.float32):
    return [Block(dtype), Block(dtype), nn.relu, Block(dtype), nn.Dense(3, param_dtype=dtype)]


def make(layers, schedule, optimizer=None, stacked=False, **options):
    stages = jd.partition(layers, schedule.num_stages)
    if stacked:
        stacks = [stack_layers(stage.layers, X, first=stage.first, shortest=2)[0] for stage in stages]
        stages = [jd.Stage(layers, stage.first) for layers, stage in zip(stacks, stages, strict=True)]
        assert any(isinstance(layer, LayerStack) for stage in stages for layer in stage.layers)
    devices = jax.devices()[:1] * schedule.num_stages
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    return jd.Pipeline(stages, schedule, optimizer=optimizer, devices=devices, **options)


@pytest.fixture(scope="module")
def source():
    """A pipeline that keeps old states usable, and one of its states."""
    pipeline = make(network(), schedules.fdg(2), donate=False)
    return pipeline, trained(pipeline)


def trained(pipeline, ticks=4, key=0):
    state = pipeline.init(jax.random.key(key), X)
    for n in range(ticks):
        state, _ = pipeline.step(state, (X + n, Y))
    return pipeline.flush(state)


def assert_equal(tree, other):
    chex.assert_trees_all_equal_dtypes(tree, other)
    chex.assert_trees_all_equal(tree, other)


def moved(source, state, target, key=1):
    variables = jd.export_variables(source, state)
    new = jd.import_variables(target, target.init(jax.random.key(key), X), variables)
    assert_equal(variables, jd.export_variables(target, new))
    np.testing.assert_allclose(source.predict(state, X), target.predict(new, X), rtol=1e-5, atol=1e-6)
    for k, device in enumerate(target.placement.devices):
        assert all(leaf.devices() == {device} and leaf.committed for leaf in jax.tree.leaves(new.stages[k]))
    target.flush(target.step(new, (X, Y))[0])
    return variables


@pytest.mark.parametrize("schedule", [schedules.gpipe(4, 2), schedules.backprop(1)])
def test_from_one_cut_and_method_to_another(schedule, source):
    target = make(network(), schedule)
    variables = moved(*source, target)
    assert sorted(variables) == ["batch_stats", "params"]
    assert sorted(variables["params"]) == ["layers_0", "layers_1", "layers_3", "layers_4"]
    assert sorted(variables["batch_stats"]) == ["layers_0", "layers_1", "layers_3"]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    moved(target, trained(target), source[0])


def test_stacks_of_identical_layers_on_one_side():
    layers = [Block(), Block(), Block(), nn.Dense(3)]
    plain, stacked = make(layers, schedules.fdg(2)), make(layers, schedules.fdg(1), stacked=True)
    moved(plain, trained(plain), stacked)
    moved(stacked, trained(stacked), plain)


def test_the_tree_is_that_of_flax_sequential():
    layers = [nn.Dense(4), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(3)]
    pipeline = make(layers, schedules.adl(2))
    state = trained(pipeline)
    variables = jd.export_variables(pipeline, state)
    expected = nn.Sequential(layers).init(jax.random.key(0), X)
    assert jax.tree.structure(expected) == jax.tree.structure(variables)
    np.testing.assert_allclose(nn.Sequential(layers).apply(variables, X), pipeline.predict(state, X), rtol=1e-6)


def test_models_of_the_library_are_sequential_too():
    layers = jd.models.mlp(3, hidden=(4, 4))
    pipeline = make(layers, schedules.ddg(2))
    state = trained(pipeline)
    found = nn.Sequential(layers).apply(jd.export_variables(pipeline, state), X)
    np.testing.assert_allclose(found, pipeline.predict(state, X), rtol=1e-6)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.both = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])

    def __call__(self, x):
        return self.both[1](self.both[0](self.norm(self.dense(x))))


class Holder(nnx.Module):
    """Names what is no parameter as the collection of parameters is named."""

    def __init__(self, rngs):
        self.dense, self.params = nnx.Linear(4, 4, rngs=rngs), nnx.BatchStat(jnp.full(4, 2.0))

    def __call__(self, x):
        return self.dense(x) * self.params[...]


@pytest.mark.parametrize("block", [NnxBlock, Holder])
def test_nnx_layers(block):
    layers = [jd.from_nnx(block), jd.from_nnx(block), nn.Dense(3)]
    source, target = make(layers, schedules.fdg(3)), make(layers, schedules.ddg(2))
    moved(source, trained(source), target)


def custom(params, model_state):
    """A layer with parameters and model state of any structure, which multiplies by all of their elements."""

    def apply(params, model_state, x, *, key, train):
        return x * sum(leaf.sum() for leaf in jax.tree.leaves((params, model_state))), model_state

    return jd.Layer(lambda key, x: (params(), model_state()), apply, "own_layer")


STATES = {
    "nothing": dict,
    "a collection": lambda: {"seen": {"a": jnp.ones(2), "b": [jnp.ones(()), (jnp.ones(1),)]}},
    "a tuple": lambda: (jnp.ones(2), jnp.ones(())),
    "an array": lambda: jnp.ones(2),
}


@pytest.mark.parametrize("kind", STATES)
def test_layers_of_any_structure(kind):
    def params():
        return {"pair": (jnp.ones(2), [jnp.ones(()), {"deep": jnp.zeros((2, 1))}])}

    layers = [custom(params, STATES[kind]), custom(lambda: jnp.ones(2), dict), custom(lambda: [jnp.ones(1)], dict)]
    layers = [*layers, nn.Dense(3)]
    source, target = make(layers, schedules.fdg(2)), make(layers, schedules.adl(4))
    moved(source, trained(source), target)


def test_a_parameter_that_is_none():
    layers = [custom(lambda: {"w": jnp.ones(2), "none": None}, dict), nn.Dense(3)]
    source = make(layers, schedules.fdg(2))
    moved(source, trained(source), make(layers, schedules.backprop(1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_through_a_file(dtype, tmp_path):
    pipeline = make(network(dtype), schedules.fdg(2))
    variables = jd.export_variables(pipeline, trained(pipeline, ticks=0))
    path = tmp_path / "new" / "weights.msgpack"
    jd.write_variables(path, variables)
    assert_equal(variables, jd.read_variables(path))
    assert_equal(variables, serialization.msgpack_restore(path.read_bytes()))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"]["layers_4"])} == {jnp.dtype(dtype)}
    jd.write_variables(path, variables)  # again, over what is there
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.msgpack"]


def test_training_on_does_not_change_what_was_exported():
    pipeline = make([nn.Dense(4), nn.Dense(3)], schedules.fdg(2))
    state = trained(pipeline)
    variables = jd.export_variables(pipeline, state)
    copied = jax.tree.map(np.copy, variables)
    for _ in range(4):
        state, _ = pipeline.step(state, (X, Y))
    jax.block_until_ready(state)
    assert_equal(copied, variables)


def test_optimizers_begin_anew_from_the_weights(source):
    """Lookahead keeps the weights it began with in its state; these must be the imported ones."""
    remembers = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.copy, params), lambda updates, state, params=None: (updates, state)
    )
    target = make(network(), schedules.ddg(3), optimizer=remembers)
    new = jd.import_variables(target, target.init(jax.random.key(5), X), jd.export_variables(*source))
    for stage in new.stages:
        assert_equal(stage.params, stage.opt_state)
    target.flush(target.step(new, (X, Y))[0])  # each has memory of its own, to be donated


def test_states_that_are_refused(source):
    pipeline, state = source
    variables = jd.export_variables(pipeline, state)
    state, _ = pipeline.step(state, (X, Y))
    with pytest.raises(ValueError, match=r"batches 4 to 4 are in flight.*state = pipeline.flush\(state\)"):
        jd.export_variables(pipeline, state)
    with pytest.raises(ValueError, match="in flight"):
        jd.import_variables(pipeline, state, variables)
    with pytest.raises(ValueError, match="init"):  # accumulation would begin within a group
        jd.import_variables(pipeline, pipeline.flush(state), variables)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([*network(), nn.Dense(3)], r"no params/layers_5/(bias|kernel); build the model"),
        (network()[:4], r"have params/layers_4/(bias|kernel), which no layer here takes"),
        ([*network()[:4], nn.Dense(5)], r"layers_4/bias as float32\[3\], but here it is float32\[5\]"),
        (network(jnp.bfloat16), r"layers_0/Dense_0/bias as float32\[4\], but here it is bfloat16\[4\]"),
        ([nn.relu, *network()], "layers_"),
    ],
    ids=["missing", "extra", "width", "dtype", "shifted"],
)
def test_variables_of_another_model_are_refused(layers, match, source):
    variables, target = jd.export_variables(*source), make(layers, schedules.fdg(2))
    with pytest.raises(ValueError, match=match):
        jd.import_variables(target, target.init(jax.random.key(0), X), variables)


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "weights"
    variables = {"params": {"layers_0": {"kernel": np.ones((20, 20), np.float32)}}}
    with pytest.raises(CheckpointError, match="cannot be read"):
        jd.read_variables(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        jd.read_variables(tmp_path)
    jd.write_variables(path, variables)
    whole = path.read_bytes()
    contents = [whole[: len(whole) // 2], whole[:-1], b"", b"{}", b"\x80", np.random.default_rng(0).bytes(300)]
    for content in [*contents, serialization.msgpack_serialize({"batch_stats": {}}), b"\x05"]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="no file of exported variables, or damaged"):
            jd.read_variables(path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    variables = {"params": {"layers_0": {"kernel": np.ones(2)}}}
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "weights", tmp_path / "directory"):
        with pytest.raises(CheckpointError, match="cannot be written.*write another file"):
            jd.write_variables(path, variables)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]


def test_a_file_that_holds_a_word_is_refused(tmp_path):
    (tmp_path / "word").write_bytes(serialization.msgpack_serialize("params"))
    with pytest.raises(CheckpointError, match="no file of exported variables"):
        jd.read_variables(tmp_path / "word")
