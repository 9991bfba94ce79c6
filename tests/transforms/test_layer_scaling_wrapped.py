"""LARS and CLARS work inside everything that optax wraps transforms in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from tests.oracles.layerwise import READY, SCALE_BY, STEPS, assert_close, example_norms, mean, run, stack, start

BUILDS = {"lars": lambda: jd.lars(0.5, 0.02), "clars": lambda: jd.clars(0.5, 0.02, layers="tensor")}


@pytest.mark.parametrize("rule", BUILDS)
def test_inside_chain(rule, x64):
    w, gradients = start()
    chained = optax.chain(optax.identity(), optax.chain(BUILDS[rule](), optax.scale(2.0)))
    plain = READY[rule](1.0, 0.02, **({"layers": "tensor"} if rule == "clars" else {}))
    (got, traces), (want, _) = run(chained, w, gradients), run(plain, w, gradients)
    assert_close(got[-1], want[-1])
    assert traces == 1


@pytest.mark.parametrize("masks_extras", [False, True])
@pytest.mark.parametrize("rule", BUILDS)
def test_inside_multi_transform(rule, masks_extras, x64):
    """Some modules are another transform's; the norms are of all of them."""
    w, gradients = start()
    labels = {"Conv_0": "scaled", "Norm_0": "plain", "one": "scaled"}
    everywhere = jax.tree.map(lambda _: True, w)  # also where the parameters are hidden
    build = {"lars": jd.lars, "clars": jd.clars}[rule]
    scaled = build(0.5, 0.02, mask=everywhere, **({"layers": "tensor"} if rule == "clars" else {}))
    tx = optax.multi_transform(
        {"scaled": scaled, "plain": optax.sgd(0.1)}, labels, mask_compatible_extra_args=masks_extras
    )
    (got, traces), (scaled, _), (plain, _) = (run(t, w, gradients) for t in (tx, BUILDS[rule](), optax.sgd(0.1)))
    assert_close(got[-1], {**scaled[-1], "Norm_0": plain[-1]["Norm_0"]})
    assert traces == 1


@pytest.mark.parametrize("rule", BUILDS)
def test_masked_from_outside_is_masked_from_inside(rule, x64):
    """optax.masked hides the tensors; the own mask leaves them unscaled. Where they are scaled, both do the same."""
    w, gradients = start()
    g, norms = mean(gradients[0]), example_norms(gradients[0])
    outside = optax.masked(SCALE_BY[rule](0.1), jd.weight_mask)
    inside = SCALE_BY[rule](0.1, mask=jd.weight_mask)
    (a, _), (b, _) = (tx.update(g, tx.init(w), w, gradient_norms=norms) for tx in (outside, inside))
    assert_close(a, b)


MULTI_STEPS = functools.partial(optax.MultiSteps, accumulator_dtype=np.float64)  # by default it sums in float32


@pytest.mark.parametrize("accumulate", [MULTI_STEPS, jd.accumulate_gradients], ids=["MultiSteps", "accumulate"])
@pytest.mark.parametrize("rule", BUILDS)
def test_accumulated(rule, accumulate, x64):
    """The mean of M gradients, and the norms that came with the last."""
    M, (w, gradients) = 3, start()
    got, traces = run(accumulate(BUILDS[rule](), M), w, gradients)
    tx, state = BUILDS[rule](), BUILDS[rule]().init(w)
    for n in range(M - 1, STEPS, M):
        group = mean(stack([mean(g) for g in gradients[n + 1 - M : n + 1]]))
        updates, state = tx.update(group, state, w, gradient_norms=example_norms(gradients[n]))
        w = optax.apply_updates(w, updates)
        assert_close(got[n], w)
    assert traces == 1


@pytest.mark.parametrize("rule", BUILDS)
def test_under_vmap_over_seeds(rule, x64):
    tx = BUILDS[rule]()
    runs = [(w, mean(g), example_norms(g)) for w, (g,) in (start(seed, steps=1) for seed in range(3))]

    def step(w, g, norms):
        return tx.update(g, tx.init(w), w, gradient_norms=norms)[0]

    together = jax.jit(jax.vmap(step))(*map(stack, zip(*runs, strict=True)))
    for i, alone in enumerate(runs):
        assert_close(jax.tree.map(lambda u, i=i: u[i], together), step(*alone))


def test_eta_may_be_searched_by_vmap(x64):
    w, gradients = start()
    g = mean(gradients[0])

    def scaled(eta):
        tx = jd.scale_by_lars(eta)
        return tx.update(g, tx.init(w), w)[0]

    got = jax.vmap(scaled)(jnp.array([0.1, 0.3]))
    assert_close(jax.tree.map(lambda u: u[1], got), scaled(0.3))
    injected = optax.inject_hyperparams(jd.clars)(learning_rate=0.1, eta=0.2, momentum=0.0)
    state = injected.init(w)
    state.hyperparams["eta"] = jnp.asarray(0.4)
    norms = example_norms(gradients[0])
    plain = jd.clars(0.1, 0.4, momentum=0.0)
    got, _ = injected.update(g, state, w, gradient_norms=norms)
    assert_close(got, plain.update(g, plain.init(w), w, gradient_norms=norms)[0])


def test_injected_settings_keep_stacks_and_masks(x64):
    """inject_hyperparams takes a callable argument for a schedule, unless it is told that it is static."""
    w, gradients = start()
    w = {"004_Block": w, "005-005_Block": stack([w])}
    g = {name: mean(gradients[0]) if name == "004_Block" else stack([mean(gradients[0])]) for name in w}
    norms = example_norms(gradients[0])
    norms = {"004_Block": norms, "005-005_Block": stack([norms], axis=1)}
    for settings in ({}, {"mask": jd.weight_mask}):
        plain = jd.clars(0.1, 0.2, **settings)
        injected = optax.inject_hyperparams(jd.clars, static_args=("mask",))(learning_rate=0.1, eta=0.2, **settings)
        (a, _), (b, _) = (tx.update(g, tx.init(w), w, gradient_norms=norms) for tx in (plain, injected))
        assert_close(a, b)
