"""Gradient norms of single examples are those of each example's own gradient, in bounded memory."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple.transforms import gradient_norms


class Network(nn.Module):
    """Convolutions with stride, groups and dilation, normalisation, a shortcut, a tensor used twice, dense layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = x + nn.Conv(4, (3, 3), feature_group_count=2, kernel_dilation=2, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        twice = nn.Dense(4)
        return nn.Dense(3)(nn.tanh(twice(twice(x))).mean((1, 2)))


MODULE = Network()


def loss(params, batch, statistics):
    logits = MODULE.apply({"params": params, "batch_stats": statistics}, batch[0])
    return jd.softmax_cross_entropy(logits, batch[1])


def network(dtype=np.float64, examples=11):
    """The loss, parameters, a batch and running averages."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 8, 8, 3)).astype(dtype)
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.2, 1, v.shape) - 0.5 * (v.ndim > 1), dtype), shapes)
    return loss, variables["params"], (x, rng.integers(0, 3, examples)), variables["batch_stats"]


def one_by_one(loss, params, batch, *rest):
    """[examples] per tensor, an example at a time."""
    gradient_of, norms = jax.jit(jax.grad(loss)), []
    for i in range(len(batch[1])):
        gradient = gradient_of(params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch), *rest)
        norms.append(jax.tree.map(lambda g: np.linalg.norm(np.ravel(g)), gradient))
    return jax.tree.map(lambda *values: np.array(values), *norms)


@functools.cache
def expected():
    """Of the network in double precision."""
    return one_by_one(*network())


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_each_is_the_norm_of_the_examples_own_gradient(chunk_size, x64):
    loss, params, batch, statistics = network()
    got = jd.per_example_gradient_norms(loss, params, batch, statistics, sample_size=None, chunk_size=chunk_size)
    chex.assert_trees_all_close(got, expected(), rtol=1e-12, atol=1e-14)
    assert min(norm.std() for norm in jax.tree.leaves(got)) > 1e-3  # the examples differ


def test_the_sample_is_the_first_examples(x64):
    loss, params, batch, statistics = network()
    got = jd.per_example_gradient_norms(loss, params, batch, statistics, sample_size=5)
    chex.assert_trees_all_close(got, jax.tree.map(lambda n: n[:5], expected()), rtol=1e-12, atol=1e-14)


def test_in_bfloat16_norms_are_in_single():
    loss, params, batch, statistics = network(jnp.bfloat16)
    got = jd.per_example_gradient_norms(loss, params, batch, statistics, sample_size=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    want = one_by_one(loss, params, batch, statistics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1), got, want)


def test_stacked_layers_have_norms_of_their_own(x64):
    rng = np.random.default_rng(0)
    params = {"004-006_Block": {"w": rng.normal(size=(3, 5, 5)) / 2}, "007_Head": {"w": rng.normal(size=(5, 2))}}
    batch = rng.normal(size=(7, 5)), rng.integers(0, 2, 7)

    def loss(params, batch):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch[0], params["004-006_Block"]["w"])
        return jd.softmax_cross_entropy(x @ params["007_Head"]["w"], batch[1])

    def apart(layers, batch):
        return loss({"004-006_Block": {"w": jnp.stack(layers[:-1])}, "007_Head": {"w": layers[-1]}}, batch)

    got = jd.per_example_gradient_norms(loss, params, batch, sample_size=None, chunk_size=2)
    layers = [*params["004-006_Block"]["w"], params["007_Head"]["w"]]
    want = one_by_one(apart, layers, batch)
    np.testing.assert_allclose(got["004-006_Block"]["w"], np.stack(want[:-1], axis=1), rtol=1e-12)
    np.testing.assert_allclose(got["007_Head"]["w"], want[-1], rtol=1e-12)
    whole = jd.per_example_gradient_norms(loss, params, batch, sample_size=None, stacked=False)
    np.testing.assert_allclose(whole["004-006_Block"]["w"] ** 2, sum(w**2 for w in want[:-1]), rtol=1e-12)


@pytest.mark.core
def test_is_compiled_once_and_also_within_a_compiled_function():
    loss, params, batch, statistics = network(np.float32)
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(loss, n=2)  # once for the shape of what it returns
    for step in range(4):
        moved = jax.tree.map(lambda p, s=step: p + s, params)
        jd.per_example_gradient_norms(counted, moved, batch, statistics, sample_size=8)

    @jax.jit
    def closing_over(params, statistics):
        return jd.per_example_gradient_norms(lambda p, b: loss(p, b, statistics), params, batch, sample_size=8)

    want = jd.per_example_gradient_norms(counted, params, batch, statistics, sample_size=8)
    chex.assert_trees_all_close(closing_over(params, statistics), want, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("check_vma", [True, False])
def test_of_a_batch_split_over_devices(check_vma):
    """Where parameters are the same on all devices, a derivative would sum over the devices' examples."""
    loss, params, batch, statistics = network(np.float32, examples=8)
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("data",), axis_types=axis_types)

    def norms(params, batch, statistics):
        return jd.per_example_gradient_norms(loss, params, batch, statistics, sample_size=None, chunk_size=2)

    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    together = jax.shard_map(norms, mesh=mesh, in_specs=(whole, split, whole), out_specs=split, check_vma=check_vma)
    got, want = jax.jit(together)(params, batch, statistics), jax.jit(norms)(params, batch, statistics)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_loss_split_over_devices():
    """A convolution within a shard_map, with a sum over its devices, within the loop over chunks."""
    mesh = jax.make_mesh((2,), ("channels",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec(None, None, None, "channels"), jax.sharding.PartitionSpec()
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)}
    batch = rng.normal(size=(6, 5, 5, 2)).astype(np.float32)

    def convolve(x, w):
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.psum((y**2).sum(-1), "channels")

    def loss(params, x, split_over_devices):
        if split_over_devices:
            y = jax.shard_map(convolve, mesh=mesh, in_specs=(whole, split), out_specs=whole)(x, params["w"])
        else:
            kernel = params["w"]
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            y = (y**2).sum(-1)
        return jnp.mean(y)

    got, want = (
        jd.per_example_gradient_norms(lambda p, x, s=s: loss(p, x, s), params, batch, sample_size=None, chunk_size=3)
        for s in (True, False)
    )
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-4)


def test_memory_is_bounded_by_the_chunk():
    """Gradients of 256 x 256: an example's takes 256 kB, those of the whole sample 64 MB."""
    params, batch = {"w": jnp.ones((256, 256))}, (jnp.ones((256, 4, 256)), jnp.ones((256, 256)))

    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["w"]).sum(1) - batch[1]) ** 2)

    def bytes_with(chunk_size):
        lowered = gradient_norms._norms.lower(loss, (None,), ((),), chunk_size, params, batch, ())
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert bytes_with(8) < 4e6 < 30e6 < bytes_with(256)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"sample_size": 12},
            "sample_size is 12, but the batch has 11 examples; write sample_size=11 or less, or None",
        ),
        ({}, "sample_size is 512, but the batch has 11 examples"),
        ({"sample_size": 0}, "sample_size is 0; write an integer of at least 1"),
        ({"sample_size": 4.5}, "sample_size is 4.5; write an integer of at least 1"),
        ({"sample_size": 4, "chunk_size": 0}, "chunk_size is 0; write an integer of at least 1"),
    ],
)
def test_sizes_out_of_range(change, says):
    loss, params, batch, statistics = network(np.float32)
    with pytest.raises(ValueError, match=says):
        jd.per_example_gradient_norms(loss, params, batch, statistics, **change)


def test_what_is_no_mean_loss_or_no_batch():
    _, params, (x, y), _ = network(np.float32)
    with pytest.raises(ValueError, match=r"the loss of one example is float32\[1\]; write a loss_fn that returns a sc"):
        jd.per_example_gradient_norms(lambda p, b: jnp.ones(len(b[1])), params, (x, y), sample_size=None)
    with pytest.raises(ValueError, match="the loss of one example is .*, .*; write a loss_fn that returns a scalar"):
        jd.per_example_gradient_norms(lambda p, b: (jnp.ones(()), {}, b[0]), params, (x, y), sample_size=None)
    with pytest.raises(ValueError, match=r"the batch is .*; write arrays \[examples, ...\] of one length"):
        jd.per_example_gradient_norms(lambda p, b: jnp.ones(()), params, (x, y[:5]), sample_size=None)
    with pytest.raises(ValueError, match=r"the batch is .*; write arrays \[examples, ...\] of one length, at least 1"):
        jd.per_example_gradient_norms(lambda p, b: jnp.ones(()), params, (x[:0], y[:0]), sample_size=None)
    with pytest.raises(ValueError, match=r"stacked is true at \['a'\], a scalar; write false"):
        jd.per_example_gradient_norms(lambda p, b: p["a"], {"a": 1.0}, (x, y), sample_size=None, stacked=True)
    with pytest.raises(
        ValueError, match="stacked has no entry for the parameter at .*; write a tree like the parameters, a prefix"
    ):
        jd.per_example_gradient_norms(
            lambda p, b: jnp.ones(()), params, (x, y), sample_size=None, stacked={"elsewhere": True}
        )
