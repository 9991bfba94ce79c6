"""Every module that needs a training switch gets it, and what a user has frozen stays frozen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple import schedules

KEY = jax.random.key(0)
X = 3 + np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


class TwoSwitches(nn.Module):
    """The second may be positional only behind the first."""

    @nn.compact
    def __call__(self, x, deterministic, mask=None, train=False):
        assert mask is None and train is not deterministic
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class Optional(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None, train=False):
        assert mask is None
        return nn.Dropout(0.5)(x, deterministic=not train)


class Asking(nn.Module):
    """Is trained where there is a stream for dropout."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5)(x, deterministic=not self.has_rng("dropout"))


def apply(layer, train, batch=0):
    params, model_state = layer.init(KEY, X)
    return layer.apply(params, model_state, X, key=jax.random.fold_in(KEY, batch), train=train)


def is_switched(layer):
    """Whether it drops out in training, and does not otherwise."""
    train, other, evaluation, again = (apply(layer, *how)[0] for how in ((True, 0), (True, 1), (False, 0), (False, 1)))
    np.testing.assert_array_equal(evaluation, again)
    return not np.array_equal(train, other)


@pytest.mark.parametrize(
    "module",
    [
        nn.remat(Block, static_argnums=(2,))(),
        TwoSwitches(),
        nn.remat(Optional, static_argnums=(3,))(),
        Asking(),
        nn.Sequential([nn.Dense(6), nn.Dropout(0.5), nn.BatchNorm(), nn.relu]),
        nn.Sequential([nn.Sequential([Block(), nn.Dense(6)]), nn.Dense(4)]),
        nn.Sequential([nn.Dense(6), nn.remat(Block, static_argnums=(2,))()]),
    ],
    ids=["remat", "two switches", "remat, behind a default", "asking", "sequential", "nested", "remat within"],
)
def test_linen_modules_that_need_a_switch_get_it(module):
    assert is_switched(jd.as_layer(module))


def test_dropout_that_is_never_switched_off_goes_on_in_evaluation():
    layer = jd.as_layer(nn.Dropout(0.5, deterministic=False))
    assert not np.array_equal(apply(layer, False, 0)[0], apply(layer, False, 1)[0])


@pytest.mark.parametrize("within", [False, True])
def test_spectral_normalisation_updates_in_training_alone(within):
    norm = nn.SpectralNorm(nn.Dense(6))
    layer = jd.as_layer(nn.Sequential([norm, nn.relu]) if within else norm)
    _, before = layer.init(KEY, X)
    for train in (True, False):
        state = apply(layer, train, 0)[1]
        assert train != all(jax.tree.leaves(jax.tree.map(np.array_equal, before, state)))


def test_a_remat_computes_what_the_module_does():
    """The same weights, masks and statistics."""
    plain, remat = jd.as_layer(Block()), jd.as_layer(nn.remat(Block, static_argnums=(2,))())
    for train in (True, False):
        for a, b in zip(*(jax.tree.leaves(apply(layer, train)) for layer in (plain, remat)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


class Chooses(nn.Module):
    """Calls modules with switches of its own, or with their defaults."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5)(x, deterministic=True)
        x = WithDefault()(x)
        return nn.BatchNorm(use_running_average=True)(x)


class WithDefault(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_who_calls_a_module_may_choose():
    layer = jd.as_layer(Chooses())
    _, model_state = layer.init(KEY, X)
    assert not is_switched(layer)
    jax.tree.map(np.testing.assert_array_equal, apply(layer, True)[1], model_state)


class Nnx(nnx.Module):
    def __init__(self, frozen, rngs):
        self.norm = nnx.BatchNorm(6, use_running_average=frozen, rngs=rngs)
        self.drop = nnx.List([nnx.Dropout(0.5, rngs=rngs)])

    def __call__(self, x):
        return self.drop[0](self.norm(x))


class Linen(nn.Module):
    frozen: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=self.frozen or not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.mark.parametrize(
    ("make", "frozen"),
    [
        (Linen, True),
        (lambda frozen: Nnx(frozen, nnx.Rngs(0)), True),
        (lambda frozen: jd.from_nnx(lambda rngs: Nnx(frozen, rngs)), False),
    ],
    ids=["linen", "nnx", "nnx factory"],
)
def test_frozen_statistics_do_not_move_while_the_rest_trains(make, frozen):
    network = [make(frozen), nn.Dense(3)]
    pipeline = jd.Pipeline(network, schedules.fdg(2), optimizer=optax.sgd(0.1))
    state = pipeline.init(KEY, X)
    assert is_switched(pipeline.stages[0].layers[0])
    before = jax.tree.map(np.asarray, state.stages[0].model_state)
    for _ in range(3):
        state, _ = pipeline.step(state, (X, np.arange(8) % 3))
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (before, state.stages[0].model_state)), strict=True)
    ]
    assert any(moved) is not frozen


def test_an_nnx_module_that_was_switched_off_stays_off():
    module = Nnx(False, nnx.Rngs(0))
    module.eval()
    layer = jd.from_nnx(module)
    assert not is_switched(layer)
    np.testing.assert_array_equal(apply(layer, True)[0], apply(layer, False)[0])
    module.train()
    assert is_switched(jd.from_nnx(module))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_layers_are_frozen_by_name(kind):
    """In whichever stage they are, and with weight decay."""
    make = nn.Dense if kind == "linen" else lambda size: nnx.Linear(6, size, rngs=nnx.Rngs(0))

    def labels(params):
        return {name: "frozen" if name[:3] in ("000", "002") else "trained" for name in params}

    optimizer = optax.multi_transform({"frozen": optax.set_to_zero(), "trained": optax.adamw(0.1)}, labels)
    stages = jd.partition([make(6), make(6), make(6), make(3)], boundaries=(2,))
    pipeline = jd.Pipeline(stages, schedules.backprop(2), optimizer=optimizer)
    state = pipeline.init(KEY, X)
    before = jd.export_variables(pipeline, state)["params"]
    after = jd.export_variables(pipeline, pipeline.step(state, (X, np.arange(8) % 3))[0])["params"]
    moved = {
        name: not np.array_equal(*(next(iter(v for k, v in p[name].items() if "kernel" in k)) for p in (before, after)))
        for name in before
    }
    assert moved == {"layers_0": False, "layers_1": True, "layers_2": False, "layers_3": True}


def test_frozen_by_stop_gradient_means_a_gradient_of_zero():
    frozen = jd.from_linen(nn.Dense(6))
    layer = jd.Layer(
        frozen.init,
        lambda params, *rest, **more: frozen.apply(jax.lax.stop_gradient(params), *rest, **more),
    )
    pipeline = jd.Pipeline([layer, nn.Dense(3)], schedules.ddg(2), optimizer=optax.sgd(0.1))
    state = pipeline.init(KEY, X)
    before = jnp.array(state.stages[0].params["000_layer"]["kernel"])
    for _ in range(2):
        state, _ = pipeline.step(state, (X, np.arange(8) % 3))
    np.testing.assert_array_equal(state.stages[0].params["000_layer"]["kernel"], before)
