"""Pipelines of every schedule over small layers of every kind, and what to feed them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxdecouple as jd
from jaxdecouple import schedules
from tests.oracles.sharing import sharing

PRESETS = {
    "backprop": schedules.backprop,
    "gpipe": lambda K: schedules.gpipe(K, 3),
    "ddg": schedules.ddg,
    "features_replay": schedules.features_replay,
    "fdg": schedules.fdg,
    "fdg forward first": lambda K: schedules.fdg(K, order="forward_first"),
    "adl": schedules.adl,
    "dsp": lambda K: schedules.dsp([1] * (K - 1) + [0], [3 * (K - 1 - k) for k in range(K)]),
    "pipedream": schedules.pipedream,
    "dgl": schedules.dgl,
    "dni": schedules.dni,
}


def layer(width=4, dtype=jnp.float32):
    """Parameters, model state and a nonlinearity, and little to compile."""

    def apply(params, model_state, x, *, key, train):
        return jnp.tanh(x @ params["w"]), {"seen": {"count": model_state["seen"]["count"] + train}}

    def init(key, x):
        return {"w": jnp.ones((x.shape[-1], width), dtype)}, {"seen": {"count": jnp.zeros((), jnp.int32)}}

    return jd.Layer(init, apply, "layer", ("layer", width, dtype))


def network(dtype=jnp.float32):
    return [layer(dtype=dtype), layer(dtype=dtype), layer(dtype=dtype), layer(3, dtype)]


def predict(dtype):
    """The gradient of an activation, from it and the labels."""

    def apply(params, model_state, given, *, key, train):
        x, labels = given
        return params * x + labels[:, None].astype(dtype), model_state

    return jd.Layer(lambda key, x: (jnp.ones((), dtype), {}), apply, "predictor")


def batch(n=0, size=4, dtype=np.float32, labels=np.int32):
    rng = np.random.default_rng(n)
    return rng.normal(size=(size, 4)).astype(dtype), rng.integers(0, 3, size).astype(labels)


def make(schedule, layers=None, accumulate=1, dtype=jnp.float32):
    """A pipeline; of the usual network, one that shares what is compiled."""
    return _usual(schedule, accumulate, dtype) if layers is None else fresh(schedule, layers, accumulate, dtype)


@sharing
def _usual(schedule, accumulate, dtype):
    return fresh(schedule, network(dtype), accumulate, dtype)


def fresh(schedule, layers, accumulate=1, dtype=jnp.float32):
    """A pipeline with programs of its own."""
    auxiliary = {"greedy": layer(3, dtype), "synthetic": predict(dtype)}.get(schedule.learning)
    optimizer = jd.stagewise(optax.sgd(0.1, momentum=0.9), accumulate=accumulate)
    stages = jd.partition(layers, schedule.num_stages)
    devices = jax.devices()[:1] * schedule.num_stages  # what is alike is compiled once
    return jd.Pipeline(stages, schedule, optimizer=optimizer, auxiliary=auxiliary, devices=devices)


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(*(np.asarray(numbers(leaf)) for leaf in (a, b)))


def numbers(leaf):
    """An array, or what is in an array of random keys."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


class Block(nn.Module):
    """Parameters, batch statistics and randomness."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dropout(0.3, deterministic=not train)(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


class WithScalar(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4)(x)
        return {"a penalty": jnp.mean(y**2), "y": y}


class OfScalar(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs["y"]) * (1 + inputs["a penalty"])


class OfSigns(nn.Module):
    @nn.compact
    def __call__(self, signs):
        return nn.Dense(3)(nn.Embed(2, 4)(signs["sign"]).mean(1))


def empty():
    """A layer with parameters of no elements."""

    def apply(params, model_state, x, *, key, train):
        return x * params["w"] + params["a"].sum() + params["b"].sum(), model_state

    def init(key, x):
        return {"a": jnp.zeros(0), "b": jnp.zeros(0), "w": jnp.ones(())}, {}

    return jd.Layer(init, apply, "empty")


KINDS = {
    "dropout and batch statistics": lambda: [Block(), nn.Dense(3)],
    "nnx": lambda: [jd.from_nnx(NnxBlock), nn.Dense(3)],
    "a stage without parameters": lambda: [nn.relu, nn.Dense(3)],
    "a scalar beside the activations": lambda: [WithScalar(), OfScalar()],
    "integers alone between stages": lambda: [lambda x: {"sign": (x > 0).astype(jnp.int32)}, OfSigns()],
    "another first axis between stages": lambda: [lambda x: jnp.vstack([x, x]), lambda x: x[: len(x) // 2] * 2],
    "parameters of no elements": lambda: [empty(), nn.Dense(3)],
}
