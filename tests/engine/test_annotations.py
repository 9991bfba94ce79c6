"""Groups that split parameters as Flax modules are annotated, and groups whose devices see their own statistics."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.engine import packing, placement
from jaxdecouple.network.annotations import annotations_of
from jaxdecouple.network.stack import stack_layers

WIDE, CLASSES = 8, 3
DOUBLE = {"param_dtype": jnp.float64}
RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(8, 4)), RNG.integers(0, CLASSES, 8)) for _ in range(4)]


def linen(*names):
    """A dense layer whose kernel is annotated with these names."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), names)
    return nn.Sequential([nn.Dense(WIDE, kernel_init=init, **DOUBLE), nn.tanh])


def with_nnx(*names):
    """The same of nnx."""
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), sharding=names)
    return jd.from_nnx(lambda rngs: nnx.Linear(4, WIDE, kernel_init=init, rngs=rngs, **DOUBLE))


def pipeline(first, devices, num_stages=2, **arguments):
    stages = jd.partition([first, nn.Dense(CLASSES, **DOUBLE)], num_stages)
    schedule, optimizer = schedules.fdg(num_stages), optax.sgd(0.1, momentum=0.9)
    return jd.Pipeline(stages, schedule, optimizer=optimizer, devices=devices, **arguments)


def mesh(*shape):
    devices = np.array(jax.devices()[: math.prod(shape)])
    return Mesh(devices.reshape(shape), ("stage", "data", "model"))


def trained(pipeline, state=None):
    state = pipeline.init(jax.random.key(0), BATCHES[0][0]) if state is None else state
    for batch in BATCHES:
        state, _ = pipeline.step(state, batch)
    return pipeline.flush(state)


def assert_close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), tree, other)


@pytest.fixture
def nothing_is_small(monkeypatch):
    for module in (packing, placement):
        monkeypatch.setattr(module, "LARGE", 8 * WIDE)


def shares(packed):
    """Of the large arrays, the part that is on one device, along each axis."""
    large = [packed.arrays[place.array] for _, place in packed.named_places() if place.start is None]
    return [np.array(array.addressable_shards[0].data.shape) / array.shape for array in large]


@pytest.mark.parametrize(
    ("layer", "names", "devices", "share"),
    [
        (linen, (None, "model"), lambda: mesh(2, 1, 2), [1, 0.5]),
        (linen, ("model", None), lambda: mesh(1, 2, 2), [0.5, 1]),
        (linen, (None, "data"), lambda: [jax.devices()[:2], jax.devices()[2:4]], [1, 0.5]),
        (linen, (None, ("data", "model")), lambda: mesh(1, 2, 2), [1, 0.25]),
        (with_nnx, (None, "model"), lambda: mesh(2, 1, 2), [1, 0.5]),
    ],
)
def test_annotated_parameters_are_split_and_train_alike(layer, names, devices, share, x64, nothing_is_small, tmp_path):
    first, places = layer(*names), devices()
    num_stages = len(places) if isinstance(places, list) else places.shape["stage"]
    single = trained(pipeline(first, jax.devices()[:num_stages], num_stages))
    split = pipeline(first, places, num_stages, params="annotated")
    state = trained(split)
    for a, b in zip(state.stages, single.stages, strict=True):
        assert_close((a.params, a.opt_state), (b.params, b.opt_state))
    for owned in (split.init(jax.random.key(0), BATCHES[0][0]), state):
        stage = owned.stages[0]
        for packed in (stage.packed_params, stage.packed_opt_state):  # momentum is split as what it is of
            assert list(share) in [list(each) for each in shares(packed)]
    jd.save(tmp_path / "it", state)
    restored = jd.restore(tmp_path / "it", split, BATCHES[0][0])
    assert list(share) in [list(each) for each in shares(restored.stages[0].packed_params)]


def test_annotations_have_the_paths_of_parameters():
    init = nn.with_partitioning(nn.initializers.ones, ("a", None))
    layers = [jd.as_layer(nn.Dense(4, kernel_init=init)) for _ in range(3)]
    stage = jd.Stage(stack_layers(layers, jnp.ones((2, 4)), shortest=2)[0])
    params, _ = jax.eval_shape(lambda key: stage.init(key, jnp.ones((2, 4))), jax.random.key(0))
    with nnx.use_eager_sharding(False):
        built = jd.as_layer(
            nnx.Linear(4, 4, kernel_init=nnx.with_partitioning(nnx.initializers.ones, ("a", None)), rngs=nnx.Rngs(0))
        )
    assert built.annotations[1:] == (("['kernel']", PartitionSpec("a", None)),)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    ((path, spec),) = annotations_of(stage, params).items()
    assert path in paths and spec == PartitionSpec(None, "a", None)  # [layers, ...]
    logical = nn.Dense(4, kernel_init=nn.with_logical_partitioning(nn.initializers.ones, ("in", "out")))
    stage = jd.Stage((jd.as_layer(logical),))
    with nn.logical_axis_rules([("out", "model")]):
        params, _ = jax.eval_shape(lambda key: stage.init(key, jnp.ones((2, 4))), jax.random.key(0))
        assert list(annotations_of(stage, params).values()) == [PartitionSpec(None, "model")]


@pytest.mark.parametrize(
    ("names", "devices", "params", "says"),
    [
        (("model", None), "groups", "annotated", r"kernel.* of stage 0 is annotated with the axis 'model', but groups"),
        (("model", None), "odd", "annotated", "has an axis of 4, annotated with 'model', of which groups have 3"),
        ((None, None), "mesh", "annotated", "params is 'annotated', but no array of 0 KiB or more is annotated"),
        ((None, None), "groups", "split", "params is 'split'; write one of replicated, sharded, annotated"),
    ],
)
def test_rules_that_do_not_fit_are_refused(names, devices, params, says, x64, nothing_is_small):
    found = jax.devices()
    places, count = {
        "groups": ([found[:2], found[2:4]], 2),
        "mesh": (mesh(2, 1, 2), 2),
        "odd": (mesh(1, 1, 3), 1),
    }[devices]
    with pytest.raises(ValueError, match=says):
        pipeline(linen(*names), places, count, params=params).init(jax.random.key(0), BATCHES[0][0])


def test_a_rule_by_which_nothing_is_split_is_refused(x64):
    made = pipeline(linen(None, None), [jax.devices()[:2], jax.devices()[2:4]], params="sharded")
    with pytest.raises(ValueError, match="'sharded', but no array of 256 KiB or more is such that the group divides"):
        made.init(jax.random.key(0), BATCHES[0][0])


class Normalised(nn.Module):
    """A dense layer with batch statistics."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(WIDE, **DOUBLE)(x)
        return nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9, **DOUBLE)(x))


@functools.cache
def normalised():
    return jd.partition([Normalised(), Normalised(), nn.Dense(CLASSES, **DOUBLE)], boundaries=(1,))


def test_each_device_has_its_own_statistics(x64):
    """As if the loss were the mean of the losses of two halves, each normalised by itself."""
    devices = [jax.devices()[:2], jax.devices()[2:4]]
    made = jd.Pipeline(
        normalised(), schedules.backprop(2), optimizer=optax.sgd(0.1), devices=devices, statistics="device"
    )
    state = made.init(jax.random.key(0), BATCHES[0][0])
    params, statistics = (
        jax.device_get([getattr(s, name) for s in state.stages]) for name in ("params", "model_state")
    )

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def grad_of(params, statistics, x, y):
        found = []
        for k, stage in enumerate(normalised()):
            x, own = stage.apply(params[k], statistics[k], x, key=jax.random.key(0), batch=0, train=True)
            found.append(own)
        return jd.softmax_cross_entropy(x, y), found

    for x, y in BATCHES:
        halves = [grad_of(params, statistics, x[half], y[half]) for half in (slice(4), slice(4, 8))]
        grads, statistics = jax.tree.map(lambda *each: sum(each) / 2, *halves)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
        state, _ = made.step(state, (x, y))
        for k, stage in enumerate(state.stages):
            assert_close((stage.params, stage.model_state), (params[k], statistics[k]))
    small, _ = made.step(state, (BATCHES[0][0][:5], BATCHES[0][1][:5]))  # on every device whole
    assert small.tick == len(BATCHES) + 1


def test_each_device_draws_masks_of_its_own():
    devices, images = [jax.devices()[:2]], np.ones((8, 100), np.float32)
    layers = [jd.from_linen(nn.Dropout(0.5, deterministic=None)), nn.Dense(CLASSES)]
    made = jd.Pipeline(
        jd.partition(layers, 1), schedules.backprop(1), optimizer=optax.sgd(0.1), devices=devices, statistics="device"
    )
    state = made.init(jax.random.key(0), images)
    masks, _ = made.programs[0].stage.layers[0].apply({}, {}, images, key=jax.random.key(1), train=True)
    assert (masks == 0).any()
    apply = made.programs[0]._apply
    kernel = {"001_Dense": {"kernel": jnp.eye(100, CLASSES), "bias": jnp.zeros(CLASSES)}}
    y, _ = apply(kernel, images, state.stages[0].model_state, state.stages[0].key, 0)
    assert not np.array_equal(y[:4], y[4:])


def test_statistics_of_something_else_are_refused():
    with pytest.raises(ValueError, match="statistics is 'batch'; write one of group, device"):
        pipeline(linen(None, None), None, statistics="batch")
