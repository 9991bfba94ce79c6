"""Every transform, by itself and inside everything that optax wraps transforms in: one table, one battery."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from tests.oracles.layerwise import (
    EXAMPLES,
    STEPS,
    example_norms,
    mean,
    random_tree,
    run,
    stack,
    start,
)

TRANSFORMS = {
    "shrinking": lambda **_: optax.with_extra_args_support(jd.shrink_gradients(0.5, 2)),
    "accumulation": lambda **_: jd.accumulate_gradients(optax.sgd(0.1, momentum=0.9), 3),
    "stagewise": lambda **_: jd.stagewise(optax.adam(0.1), beta=0.7, accumulate=2)(0, 3),
    "scale by lars": lambda **more: jd.scale_by_lars(0.1, **more),
    "scale by clars": lambda **more: jd.scale_by_clars(0.1, **more),
    "lars": lambda **more: jd.lars(0.5, 0.02, **more),
    "clars": lambda **more: jd.clars(0.5, 0.02, groups="tensor", **more),
    "delay": lambda **_: jd.delay_gradients(optax.sgd(0.1, momentum=0.9), 2),
    "nadam": lambda **_: optax.with_extra_args_support(jd.nadam(0.1)),
    "predicted weights": lambda **_: jd.predict_weights(optax.adam(0.1), 2),
    "corrected weights": lambda **_: jd.correct_weights(optax.adam(0.1), 2),
}
every_one = pytest.mark.parametrize("name", TRANSFORMS)
with_state_or_norms = pytest.mark.parametrize("name", ["accumulation", "lars", "clars"])  # what others are made of


def by_hand(tx, w, all_gradients):
    """The weights after each step, without compilation; and the states."""
    state, history, states = tx.init(w), [], []
    for gradients in all_gradients:
        updates, state = tx.update(mean(gradients), state, w, gradient_norms=example_norms(gradients))
        w = optax.apply_updates(w, updates)
        history.append(w)
        states.append(state)
    return history, states


@pytest.mark.core
@every_one
def test_compiled_once_it_does_what_it_does_by_hand_and_keeps_its_types(name, x64):
    w, gradients = start()
    compiled, (eager, states) = run(TRANSFORMS[name](), w, gradients), by_hand(TRANSFORMS[name](), w, gradients)
    chex.assert_trees_all_close(compiled, eager, rtol=0, atol=1e-12)
    for state in states:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, TRANSFORMS[name]().init(w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@every_one
def test_updates_are_of_the_gradients_dtype(name, dtype):
    w = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), start()[0])
    norms, tx = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), w), TRANSFORMS[name]()
    updates = jax.eval_shape(lambda w, g, norms: tx.update(g, tx.init(w), w, gradient_norms=norms)[0], w, w, norms)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, w)


@with_state_or_norms
def test_inside_chain(name, x64):
    w, gradients = start()
    tx, chained = TRANSFORMS[name](), optax.chain(optax.identity(), optax.chain(TRANSFORMS[name](), optax.scale(-2.0)))

    def doubled(updates, state, params, **extra):
        updates, state = tx.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: -2 * u, updates), state

    by_itself = optax.GradientTransformationExtraArgs(tx.init, doubled)
    got, want = (run(each, w, gradients) for each in (chained, by_itself))
    chex.assert_trees_all_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "masks_extras"), [("accumulation", False), ("lars", False), ("clars", False), ("clars", True)]
)
def test_inside_multi_transform(name, masks_extras, x64):
    """Some modules are another transform's; the norms are of all of them."""
    w, gradients = start()
    labels = {"Conv_0": "own", "Norm_0": "plain", "one": "own"}
    everywhere = jax.tree.map(lambda _: True, w)  # also where the parameters are hidden
    tx = optax.multi_transform(
        {"own": TRANSFORMS[name](mask=everywhere), "plain": optax.sgd(0.1)},
        labels,
        mask_compatible_extra_args=masks_extras,
    )
    got, own, plain = (run(each, w, gradients)[-1] for each in (tx, TRANSFORMS[name](), optax.sgd(0.1)))
    chex.assert_trees_all_close(got, {**own, "Norm_0": plain["Norm_0"]}, rtol=0, atol=1e-12)


MULTI_STEPS = functools.partial(optax.MultiSteps, accumulator_dtype=np.float64)  # by default it sums in float32


@pytest.mark.parametrize("accumulate", [MULTI_STEPS, jd.accumulate_gradients], ids=["MultiSteps", "accumulate"])
@pytest.mark.parametrize("name", ["lars", "clars"])
def test_accumulated(name, accumulate, x64):
    """The mean of M gradients, and the norms that came with the last."""
    M, (w, gradients) = 3, start()
    got = run(accumulate(TRANSFORMS[name](), M), w, gradients)
    tx, state = TRANSFORMS[name](), TRANSFORMS[name]().init(w)
    update = jax.jit(tx.update)
    for n in range(M - 1, STEPS, M):
        group = mean(stack([mean(g) for g in gradients[n + 1 - M : n + 1]]))
        updates, state = update(group, state, w, gradient_norms=example_norms(gradients[n]))
        w = optax.apply_updates(w, updates)
        chex.assert_trees_all_close(got[n], w, rtol=0, atol=1e-12)


@with_state_or_norms
def test_under_vmap_over_seeds(name, x64):
    """Networks that are at different places of their groups."""
    tx, runs = TRANSFORMS[name](), []
    update = jax.jit(lambda w, state, g, norms: tx.update(g, state, w, gradient_norms=norms))
    for seed in range(3):
        w, gradients = start(seed, steps=seed + 1)
        state = tx.init(w)
        for step in gradients[:-1]:
            state = update(w, state, mean(step), example_norms(step))[1]
        runs.append((w, state, mean(gradients[-1]), example_norms(gradients[-1])))
    together = jax.jit(jax.vmap(update))(*map(stack, zip(*runs, strict=True)))
    chex.assert_trees_all_close(together, stack([update(*alone) for alone in runs]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["scale by lars", "scale by clars"])
def test_masked_from_outside_is_masked_from_inside(name, x64):
    """optax.masked hides the tensors; the own mask leaves them unscaled. Where they are scaled, both do the same."""
    w, (gradients,) = start(steps=1)
    g, norms = mean(gradients), example_norms(gradients)
    outside = optax.masked(TRANSFORMS[name](), jd.weight_mask)
    (a, _), (b, _) = (
        tx.update(g, tx.init(w), w, gradient_norms=norms) for tx in (outside, TRANSFORMS[name](mask=jd.weight_mask))
    )
    chex.assert_trees_all_close(a, b, rtol=0, atol=1e-12)


@with_state_or_norms
def test_inside_apply_if_finite(name, x64):
    """A gradient that is not finite changes neither weights nor state; those after it go on as if it had not been."""
    w, gradients = start()
    spoilt = [*gradients[:2], jax.tree.map(lambda g: np.full_like(g, np.nan), gradients[2]), *gradients[2:]]
    got = run(optax.apply_if_finite(TRANSFORMS[name](), 2), w, spoilt)
    chex.assert_trees_all_close([*got[:2], *got[3:]], run(TRANSFORMS[name](), w, gradients), rtol=0, atol=1e-12)
    chex.assert_trees_all_equal(got[2], got[1])


def test_eta_may_be_searched_by_vmap(x64):
    w, (gradients,) = start(steps=1)
    g, norms = mean(gradients), example_norms(gradients)

    def scaled(eta):
        tx = jd.scale_by_lars(eta)
        return tx.update(g, tx.init(w), w)[0]

    got = jax.vmap(scaled)(jnp.array([0.1, 0.3]))
    chex.assert_trees_all_close(jax.tree.map(lambda u: u[1], got), scaled(0.3), rtol=0, atol=1e-12)
    injected = optax.inject_hyperparams(jd.clars)(learning_rate=0.1, eta=0.2, momentum=0.0)
    state = injected.init(w)
    state.hyperparams["eta"] = jnp.asarray(0.4)
    plain = jd.clars(0.1, 0.4, momentum=0.0)
    got, want = (
        tx.update(g, state, w, gradient_norms=norms)[0] for tx, state in ((injected, state), (plain, plain.init(w)))
    )
    chex.assert_trees_all_close(got, want, rtol=0, atol=1e-12)


def test_injected_settings_keep_stacks_and_masks(x64):
    """inject_hyperparams takes a callable argument for a schedule, unless it is told that it is static."""
    rng = np.random.default_rng(0)
    w, gradients = random_tree(rng), random_tree(rng, EXAMPLES)
    g, norms = mean(gradients), example_norms(gradients)
    w = {"004_Block": w, "005-005_Block": stack([w])}
    g, norms = ({"004_Block": tree, "005-005_Block": stack([tree], axis=axis)} for tree, axis in ((g, 0), (norms, 1)))
    for settings in ({}, {"mask": jd.weight_mask}):
        plain = jd.clars(0.1, 0.2, **settings)
        injected = optax.inject_hyperparams(jd.clars, static_args=("mask",))(learning_rate=0.1, eta=0.2, **settings)
        (a, _), (b, _) = (tx.update(g, tx.init(w), w, gradient_norms=norms) for tx in (plain, injected))
        chex.assert_trees_all_close(a, b, rtol=0, atol=1e-12)
