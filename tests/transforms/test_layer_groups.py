"""What a layer is, to a transform that scales by layer: modules, tensors, labels, stacks; and what does not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct, traverse_util
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

import jaxdecouple as jd
from tests.oracles.layerwise import (
    EXAMPLES,
    LAYER,
    PATHS,
    READY,
    SCALE_BY,
    SHAPES,
    assert_close,
    example_norms,
    flat,
    mean,
    random_tree,
    stack,
    start,
)


@pytest.mark.parametrize("rule", SCALE_BY)
def test_stacked_layers_are_scaled_apart(rule, x64):
    L, rng = 3, np.random.default_rng(0)
    w, gradients = [random_tree(rng) for _ in range(L)], [random_tree(rng, EXAMPLES) for _ in range(L)]
    norms = list(map(example_norms, gradients))
    alone, together = (
        SCALE_BY[rule](0.1),
        {"004-006_Block": SCALE_BY[rule](0.1), "scanned": SCALE_BY[rule](0.1, stacked={"scanned": True})},
    )
    for name, tx in together.items():
        g = {name: stack(map(mean, gradients))}
        got, _ = tx.update(g, tx.init(w), {name: stack(w)}, gradient_norms={name: stack(norms, axis=1)})
        for i in range(L):
            want, _ = alone.update(mean(gradients[i]), alone.init(w), w[i], gradient_norms=norms[i])
            assert_close(jax.tree.map(lambda u, i=i: u[i], got[name]), want)


def test_groups_may_be_labelled(x64):
    """One layer of two modules is as one module with the tensors of both."""
    w, gradients = start()
    g, norms = mean(gradients[0]), example_norms(gradients[0])
    tx = jd.scale_by_clars(0.1, groups=lambda params: {"Conv_0": "a", "Norm_0": "a", "one": "b"})
    got, _ = tx.update(g, tx.init(w), w, gradient_norms=norms)

    def merge(tree):
        first, second = ({m + name: v for name, v in tree[m].items()} for m in ("Conv_0", "Norm_0"))
        return {"all": {**first, **second}}

    plain = jd.scale_by_clars(0.1)
    want, _ = plain.update(merge(g), plain.init(w), merge(w), gradient_norms=merge(norms))
    assert_close(merge(got), want)
    one_each = {module: np.sqrt(sum(n**2 for n in norms[module].values())) for module in SHAPES}
    assert_close(tx.update(g, tx.init(w), w, gradient_norms=one_each)[0], got)


@pytest.mark.parametrize("groups", LAYER)
def test_one_norm_for_each_group(groups, x64):
    w, gradients = start()
    g = mean(gradients[0])
    given = {"Conv_0": 2.0, "Norm_0": np.array([1.0, 3.0]), "one": {"w": 4.0}}
    tx = jd.scale_by_clars(0.1, groups=groups)
    updates, _ = tx.update(g, tx.init(w), w, gradient_norms=given)
    for path, value in flat(g).items():
        layer = [p for p in PATHS if LAYER[groups](p) == LAYER[groups](path)]
        weight = np.sqrt(sum((flat(w)[p] ** 2).sum() for p in layer))
        norm = {"Conv_0": 2.0, "Norm_0": 2.0, "one": 4.0}[path[0]]
        np.testing.assert_allclose(flat(updates)[path], 0.1 * weight / norm * value, rtol=0, atol=1e-12)


def boxed(kind):
    """A dense layer of ones."""
    if kind == "nnx":
        layer = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    else:
        init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
        layer = nn.Dense(2, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), layer)


class Attention(struct.PyTreeNode):
    key: jax.Array
    value: jax.Array
    weight: jax.Array


@pytest.mark.core
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_boxes_are_no_modules(kind, x64):
    """nnx's variables and linen's metadata put a box around a tensor, which does not make it a layer."""
    layer = boxed(kind)
    assert jax.tree.leaves(jd.weight_mask(layer)) == [False, True]
    updates, _ = jd.scale_by_lars(1.0).update(layer, optax.EmptyState(), jax.tree.map(lambda leaf: 3 * leaf, layer))
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, 3.0)
    uneven = jax.tree.map(lambda leaf: jnp.full(leaf.shape, float(leaf.ndim)), layer)
    updates, _ = jd.scale_by_lars(1.0).update(layer, optax.EmptyState(), uneven)
    for leaf in jax.tree.leaves(updates):  # one ratio: |w|^2 is 2 * 1 + 6 * 4, |g|^2 is 8
        np.testing.assert_allclose(leaf, np.sqrt(26 / 8))


def test_a_module_may_be_a_record_or_a_bare_array(x64):
    record = {"scale": Attention(key=np.ones(3), value=np.ones(3), weight=np.ones((2, 2)))}
    assert jax.tree.leaves(jd.weight_mask(record)) == [True] * 3  # also what is called `value`
    assert not jd.weight_mask(Attention(key=1.0, value=1.0, weight=np.ones(4))).weight  # of a normalisation
    updates, _ = jd.scale_by_lars(1.0).update(
        record, optax.EmptyState(), {"scale": record["scale"].replace(value=np.zeros(3))}
    )
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, np.sqrt(7 / 10))
    plain = {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}  # a tree that is one module
    updates, _ = jd.scale_by_lars(1.0).update(plain, optax.EmptyState(), {**plain, "bias": np.full(2, np.sqrt(3))})
    np.testing.assert_allclose(updates["kernel"], np.sqrt(2))
    bare, _ = jd.scale_by_lars(1.0).update(np.ones(4), optax.EmptyState(), np.full(4, 2.0))
    np.testing.assert_allclose(bare, 2.0)


W, B = np.full((2, 3), 2.0), np.full(3, 5.0)
LAYERS = {  # a tree, and which of its tensors, in JAX's order, are of one layer
    "flat dict": ({"b1": B, "b2": B, "w1": W, "w2": W}, [0, 1, 2, 3]),
    "flat dict of one layer": ({"bias": B, "kernel": W}, [0, 0]),
    "list": ([W, B, W, B], [0, 1, 2, 3]),
    "list in a module": ({"a": {"ws": [W, W]}, "b": {"bias": B, "ws": [W]}}, [0, 1, 2, 3]),
    "nnx list": (nnx.State({"a": {"ws": {0: W, 1: W}}}), [0, 1]),
    "pairs": ([(W, B), (), (W, B)], [0, 0, 1, 1]),
    "pair": ((W, B), [0, 0]),
    "torch": ({"0.bias": B, "0.weight": W, "1.bias": B, "1.weight": W}, [0, 0, 1, 1]),
    "module of several weights": ({"a": {"key": W, "query": W}, "b": {"w": W}}, [0, 0, 1]),
    "hidden weight": ({"b1": B, "w1": W, "w2": optax.MaskedNode()}, [0, 1]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_one_layer(name, x64):
    tree, layers = LAYERS[name]
    leaves, structure = jax.tree.flatten(tree)
    gradients = [leaf * (i + 1) for i, leaf in enumerate(leaves)]

    def norm(tensors, layer):
        return np.sqrt(sum((x**2).sum() for x, its in zip(tensors, layers, strict=True) if its == layer))

    got, _ = jd.scale_by_lars(0.5).update(jax.tree.unflatten(structure, gradients), optax.EmptyState(), tree)
    want = [0.5 * norm(leaves, i) / norm(gradients, i) * g for i, g in zip(layers, gradients, strict=True)]
    chex.assert_trees_all_close(jax.tree.leaves(got), want, rtol=1e-12)


CONTAINERS = {
    "FrozenDict": FrozenDict,
    "nnx.State": nnx.State,
    "tuples": lambda tree: tuple(tuple(module.values()) for module in tree.values()),
    "flattened": lambda tree: traverse_util.flatten_dict(tree, sep="/"),
    "flattened to tuples": traverse_util.flatten_dict,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("rule", READY)
def test_containers_make_no_difference(rule, container, x64):
    w, gradients = start(steps=2)
    convert = CONTAINERS[container]
    got, want = (of(READY[rule](0.3, 0.1), as_given, w, gradients) for as_given in (convert, dict))
    chex.assert_trees_all_close(got, want, rtol=1e-12)


def of(tx, convert, w, gradients):
    """The leaves after two steps, of parameters in a container."""
    w = convert(w)
    state = tx.init(w)
    for g in gradients:
        norms = convert(example_norms(g))
        updates, state = tx.update(convert(mean(g)), state, w, gradient_norms=norms)
        w = optax.apply_updates(w, updates)
    return jax.tree.leaves(w)


SPECS = {
    "up": {"b": PartitionSpec("model"), "w": PartitionSpec(None, "model")},
    "down": {"b": PartitionSpec(), "w": PartitionSpec(("model",))},
}


def split_network():
    """Parameters and a batch of a network whose hidden units may be split over devices, and its loss."""
    rng = np.random.default_rng(0)
    shapes = {"up": {"b": (4,), "w": (3, 4)}, "down": {"b": (2,), "w": (4, 2)}}
    w = jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda node: isinstance(node, tuple))

    def loss(w, batch, total=lambda x: x):
        x, y = batch
        outputs = total(jnp.tanh(x @ w["up"]["w"] + w["up"]["b"]) @ w["down"]["w"]) + w["down"]["b"]
        return jnp.mean((outputs - y) ** 2)

    return w, (rng.normal(size=(5, 3)), rng.normal(size=(5, 2))), loss


@pytest.mark.parametrize("rule", READY)
def test_norms_are_over_all_shards(rule, x64):
    """Of arrays that lie on two devices, under jit; and within a shard_map, which is told how they are split."""
    w, batch, loss = split_network()
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    def update(w, batch, loss=loss, specs=None):
        norms = jd.per_example_gradient_norms(loss, w, batch, sample_size=None, specs=specs)
        tx = READY[rule](0.3, 0.1, specs=specs)
        return tx.update(jax.grad(loss)(w, batch), tx.init(w), w, gradient_norms=norms)[0]

    def of_shards(w, batch, specs=SPECS):
        return update(w, batch, lambda w, batch: loss(w, batch, lambda x: jax.lax.psum(x, "model")), specs)

    def mapped(function):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(SPECS, PartitionSpec()), out_specs=SPECS))

    want = update(w, batch)
    placed = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), w, SPECS)
    chex.assert_trees_all_close(jax.jit(update)(placed, batch), want, rtol=1e-12)
    chex.assert_trees_all_close(mapped(of_shards)(w, batch), want, rtol=1e-12)
    with pytest.raises(ValueError, match=r"'w'\] differs between devices, over 'model'; write specs, the Partition"):
        mapped(lambda w, batch: of_shards(w, batch, None))(w, batch)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("rule", SCALE_BY)
def test_half_precision_is_summed_in_single(rule, dtype):
    """Adding 10 000 squares of 1 in bfloat16 would stop at 256; 300 squared does not fit float16."""
    w, g = {"w": jnp.ones(10_000, dtype)}, {"w": jnp.full(10_000, 300, dtype)}
    tx = SCALE_BY[rule](1.0)
    updates, _ = tx.update(g, tx.init(w), w, gradient_norms={"w": jnp.asarray(30_000, jnp.float32)})
    assert updates["w"].dtype == dtype
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 1.0, rtol=1e-2)


def test_derivatives_are_finite_at_zero():
    """For those who differentiate through an update."""
    tx = jd.scale_by_lars(0.1)
    g = jax.grad(lambda w: tx.update({"w": jnp.ones(2)}, tx.init(w), {"w": w})[0]["w"].sum())(jnp.zeros(2))
    assert np.isfinite(g).all()


# ---- Bad input.

PARAMS = {"a": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        (None, r"CLARS needs the norms of single examples' gradients; write norms = jaxdecouple.per_example"),
        ({"a": {"kernel": 1.0}}, r"no entry for the parameter at \['a'\]\['bias'\]; write a tree like the parameters"),
        ({"a": 1.0, "b": 2.0}, r"an entry at \['b'\], where there are no parameters"),
        ({"a": {"kernel": 1.0, "bias": 1.0, "x": 1.0}}, r"an entry at \['a'\]\['x'\], where there are no parameters"),
        ({"a": np.ones((0,))}, r"shape \[0\] at \['a'\]; write \[examples\]"),
        ({"a": {"kernel": np.ones((2, 2)), "bias": 1.0}}, r"shape \[2, 2\] at \['a'\]\['kernel'\]; write \[examples\]"),
        ({"a": {"kernel": np.ones(3), "bias": np.ones(4)}}, r"different shapes: \[.\] at .*; write equal ones"),
    ],
)
def test_norms_that_do_not_fit(norms, says):
    tx = jd.clars(0.1)
    with pytest.raises(ValueError, match=says):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS, gradient_norms=norms)


def test_stacked_norms_that_do_not_fit():
    w = {"003-005_Block": {"kernel": np.ones((3, 2))}}
    tx = jd.scale_by_clars()
    for shape in ((), (4,), (5, 4)):
        with pytest.raises(ValueError, match=r"shape \[.*\] at .*; write \[examples, 3\] or, all of them, \[3\]"):
            tx.update(w, tx.init(w), w, gradient_norms=jax.tree.map(lambda _, s=shape: np.ones(s), w))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eta": -0.1}, "eta is -0.1; write a number above 0"),
        ({"eta": np.nan}, "eta is nan"),
        ({"eta": None}, "eta is None; write a number above 0"),
        ({"eps": -1.0}, "eps is -1.0; write a number of at least 0"),
        ({"clip": 0.0}, "clip is 0.0; write a number above 0"),
        ({"groups": "modules"}, "groups is 'modules'; write 'module', 'tensor', or a function"),
    ],
)
def test_settings_out_of_range(settings, says):
    for build in (jd.scale_by_lars, jd.scale_by_clars, lambda **s: jd.lars(0.1, **s), lambda **s: jd.clars(0.1, **s)):
        with pytest.raises(ValueError, match=says):
            build(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; write"),
        ({"momentum": None}, "momentum is None; write a number of at least 0, for none"),
        ({"momentum_of": "rates"}, "'rates'; write 'steps' or 'gradients'"),
    ],
)
def test_momentum_out_of_range(settings, says):
    for build in (jd.lars, jd.clars):
        with pytest.raises(ValueError, match=says):
            build(0.1, **settings)


def test_names_alone_do_not_make_a_stack(x64):
    """Only where the first axis is as long as the name says."""
    g, norm = np.ones((3, 2)), np.sqrt(2 / 6)
    for name, ratio in {"000-002_Block": 1.0, "128-256_dense": norm / norm}.items():
        w = np.diag([1.0, 2.0, 3.0])[:, :2] + 0.0
        (got,) = jax.tree.leaves(jd.scale_by_lars(1.0).update({name: g}, optax.EmptyState(), {name: w})[0])
        rows = np.linalg.norm(w, axis=1) / np.sqrt(2)
        whole = np.linalg.norm(w) / np.sqrt(6)
        want = [ratio * (row or 1.0) for row in rows] if name.startswith("000") else [whole] * 3
        np.testing.assert_allclose(got[:, 0], want)


def test_five_examples_are_not_taken_for_five_layers():
    w = {"s": {"w": np.ones((4, 2))}, "h": {"w": np.ones(2)}}
    tx = jd.scale_by_clars(stacked={"s": True, "h": False})
    with pytest.raises(ValueError, match=r"shape \[4\] at \['s'\]\['w'\]; write \[examples, 4\].*same `stacked`"):
        tx.update(w, tx.init(w), w, gradient_norms={"s": {"w": np.ones(4)}, "h": {"w": np.ones(4)}})
    tx.update(w, tx.init(w), w, gradient_norms={"s": {"w": np.ones(4)}, "h": {"w": 1.0}})
    tx.update(w, tx.init(w), w, gradient_norms={"s": {"w": np.ones((4, 4))}, "h": {"w": np.ones(4)}})


@pytest.mark.parametrize("empty", [{}, None, (), {"deeper": None}])
def test_modules_without_parameters_may_be_named_in_masks_and_norms(empty):
    w = {"a": {"w": np.ones(2)}, "relu": empty}
    tx = jd.scale_by_clars(0.5, mask={"a": True, "relu": False}, groups=lambda params: {"a": 1, "relu": 2})
    updates, _ = tx.update(w, tx.init(w), w, gradient_norms={"a": np.sqrt(2), "relu": 1.0})
    np.testing.assert_allclose(updates["a"]["w"], 0.5, rtol=1e-6)
    nothing = {"relu": empty}
    assert jax.tree.leaves(jd.scale_by_lars().update(nothing, optax.EmptyState(), nothing)[0]) == []


def test_gradients_of_other_parameters():
    tx = jd.scale_by_lars()
    with pytest.raises(ValueError, match="the gradients are .*'c'.*, but the parameters .*'b'.*; write gradients of"):
        tx.update({"a": np.ones(3), "c": np.ones(2)}, optax.EmptyState(), {"a": np.ones(3), "b": np.ones(2)})


def test_what_else_is_missing():
    tx = jd.scale_by_lars()
    with pytest.raises(ValueError, match=r"specs holds 'model'; write jax.sharding.PartitionSpec\(...\) for each"):
        jd.scale_by_lars(specs="model").update(PARAMS, optax.EmptyState(), PARAMS)
    with pytest.raises(ValueError, match="layer-wise scaling needs the parameters; write tx.update"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(
        ValueError, match=r"mask has no entry for the parameter at \['a'\]\['bias'\]; write a tree like the"
    ):
        jd.scale_by_lars(mask={"b": True}).update(PARAMS, optax.EmptyState(), PARAMS)
