"""An optimizer of a stage with stacks gives each layer the update that it would give it without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple.network.adapters import as_layer
from jaxdecouple.network.stack import stack_layers
from jaxdecouple.network.stage import Stage
from jaxdecouple.transforms.unstacked import unstacked


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, param_dtype=jnp.float64)(nn.LayerNorm(param_dtype=jnp.float64)(x))


def stage_of(count=2):
    """Two stacks, and layers by themselves before, between and after; layer 4 on."""
    layers = [Block(5), nn.Dense(4, param_dtype=jnp.float64)]
    layers += [Block(4) for _ in range(count)] + [Block(6)] + [Block(6) for _ in range(2)]
    shapes = jax.ShapeDtypeStruct((2, 5), jnp.float64)
    stacked, _ = stack_layers([as_layer(layer) for layer in layers], shapes, first=4, shortest=2)
    return Stage(stacked, first=4), shapes


def by_name(names, other):
    """One transform for some layers, by their names, another for the rest."""

    def labels(params):
        return {name: "some" if name[:3] in names else "rest" for name in params}

    return optax.multi_transform({"some": optax.sgd(0.1, momentum=0.9), "rest": other}, labels)


def over_kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


TRANSFORMS = {
    "momentum": optax.sgd(optax.cosine_decay_schedule(0.1, 9), momentum=0.9),
    "mask by ndim": optax.chain(optax.add_decayed_weights(0.5, mask=over_kernels), optax.sgd(0.1)),
    "factored": optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    "norm of a tensor": optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.1)),
    "norm of all": optax.chain(optax.clip_by_global_norm(0.1), optax.trace(0.9), optax.clip_by_global_norm(0.1)),
    "by name": by_name(("005", "009"), optax.adam(0.1)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1)),
    "muon": optax.contrib.muon(0.1, ns_steps=1),
    "lars": jd.lars(0.1),
}
ALIKE = ("momentum", "mask by ndim", "factored", "norm of a tensor", "muon", "lars")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_stacked_or_not_the_updates_are_the_same(name, x64):
    stage, shapes = stage_of()
    assert len(stage.stacks) == 2
    params, _ = stage.init(jax.random.key(0), shapes)
    tx = optax.with_extra_args_support(TRANSFORMS[name])
    seen = unstacked(tx, stage)
    apart = stage.by_layer(params)
    state, state_apart, rng = seen.init(params), tx.init(apart), np.random.default_rng(0)
    for _ in range(2):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        updates, state = jax.jit(seen.update)(grads, state, params)
        wanted, state_apart = tx.update(stage.by_layer(grads), state_apart, apart)
        params, apart = optax.apply_updates(params, updates), optax.apply_updates(apart, wanted)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), stage.by_layer(params), apart)
    assert jax.tree.structure(state) == jax.tree.structure(seen.init(params))


def count_equations(tx, count):
    stage, shapes = stage_of(count)
    params = jax.eval_shape(lambda: stage.init(jax.random.key(0), shapes)[0])
    tx = unstacked(optax.with_extra_args_support(tx), stage)
    jaxpr = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params).jaxpr
    return len(jaxpr.eqns)


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_compiled_does_not_grow_with_the_number_of_layers(name):
    assert count_equations(TRANSFORMS[name], 4) == count_equations(TRANSFORMS[name], 2)


def test_the_state_is_stacked_where_layers_are_treated_alike_and_apart_elsewhere():
    stage, shapes = stage_of()
    params, _ = stage.init(jax.random.key(0), shapes)
    trace = unstacked(optax.trace(0.9), stage).init(params).trace
    assert jax.tree.structure(trace) == jax.tree.structure(params)
    (state,) = [
        s
        for s in jax.tree.leaves(
            unstacked(by_name(("006",), optax.identity()), stage).init(params),
            is_leaf=lambda node: isinstance(node, optax.TraceState),
        )
        if isinstance(s, optax.TraceState)
    ]
    assert {name for name, tree in state.trace.items() if jax.tree.leaves(tree)} == {"006_Block"}


def test_norms_of_examples_are_each_layers_own(x64):
    stage, shapes = stage_of()
    params, _ = stage.init(jax.random.key(0), shapes)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    apart = stage.by_layer(params)
    norms_apart = jax.tree.map(lambda leaf: rng.uniform(1, 2, size=6), apart)

    def turned(name, tree):
        return jax.tree.map(np.transpose, tree) if name in stage.stacks else tree

    norms = {name: turned(name, tree) for name, tree in stage.from_layers(norms_apart).items()}
    tx, seen = jd.clars(0.1), unstacked(jd.clars(0.1), stage)
    got, _ = seen.update(grads, seen.init(params), params, gradient_norms=norms)
    want, _ = tx.update(stage.by_layer(grads), tx.init(apart), apart, gradient_norms=norms_apart)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13), stage.by_layer(got), want)


def test_without_stacks_an_optimizer_is_itself():
    stage = Stage((as_layer(Block(3)),))
    tx = optax.sgd(0.1)
    assert unstacked(tx, stage) is tx
