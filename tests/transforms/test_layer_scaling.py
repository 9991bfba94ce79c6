"""LARS and CLARS equal the thesis's equations, and its published code, in float64 NumPy; LARS equals optax's."""

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from tests.oracles.layerwise import (
    BETA,
    DECAY,
    EXAMPLES,
    LAYER,
    PATHS,
    READY,
    SCALE_BY,
    SHAPES,
    assert_close,
    example_norms,
    flat,
    gamma,
    is_weight,
    mean,
    nested,
    random_tree,
    ratios,
    run,
    start,
    zero,
)

# weights, gradients of single examples -> the same, spoilt in some way
CASES = {
    "random": lambda w, g: (w, g),
    "zero weights": lambda w, g: (zero(w, "Conv_0"), g),
    "a zero tensor": lambda w, g: (zero(w, "Conv_0", "bias"), g),
    "zero gradients": lambda w, g: (w, zero(g, "one")),
    "both zero": lambda w, g: (zero(w, "Norm_0"), zero(g, "Norm_0")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("groups", LAYER)
@pytest.mark.parametrize("rule", SCALE_BY)
def test_scaling_is_the_equation(rule, groups, excluding, case, x64):
    rng = np.random.default_rng(len(case))
    for _ in range(5):
        w, gradients = CASES[case](random_tree(rng), random_tree(rng, EXAMPLES))
        g = mean(gradients)
        for bounds in ({}, {"eps": 0.3}, {"clip": 0.02}):
            tx = SCALE_BY[rule](0.05, groups=groups, mask=jd.weight_mask if excluding else True, **bounds)
            updates, _ = tx.update(g, tx.init(w), w, gradient_norms=example_norms(gradients))
            want = ratios(
                rule,
                flat(w),
                flat(gradients),
                flat(g),
                eta=0.05,
                layer=LAYER[groups],
                scaled=is_weight if excluding else lambda path: True,
                **bounds,
            )
            assert_close(updates, nested({path: want[path] * g for path, g in flat(g).items()}))


def test_clars_is_lars_times_the_agreement_of_the_examples(x64):
    """Eq. 4.8 says the same as eq. 4.7."""
    rng = np.random.default_rng(0)
    w, gradients = random_tree(rng), random_tree(rng, EXAMPLES)
    g, norms = mean(gradients), example_norms(gradients)
    (got, _), (lars, _) = (
        tx.update(g, tx.init(w), w, gradient_norms=norms) for tx in (jd.scale_by_clars(0.01), jd.scale_by_lars(0.01))
    )
    for module in SHAPES:
        of_mean = np.sqrt(sum((x**2).sum() for x in g[module].values()))
        mean_of = np.sqrt(sum(n**2 for n in norms[module].values())).mean()
        assert_close(got[module], jax.tree.map(lambda u: u * of_mean / mean_of, lars[module]))  # noqa: B023
        assert of_mean < 0.9 * mean_of


def reference(rule, w, all_gradients, step, *, decay=0.0, **settings):
    """``step(t, w, ratio, d, memory) -> w``, for one tensor, over all tensors and steps."""
    w, memory, history = flat(w), {path: {} for path in PATHS}, []
    for t, gradients in enumerate(map(flat, all_gradients)):
        d = {path: gradients[path].mean(0) + decay * w[path] for path in PATHS}
        ratio = ratios(rule, w, gradients, d, **settings)
        w = {path: step(t, w[path], ratio[path], d[path], memory[path]) for path in PATHS}
        history.append(nested(w))
    return history


THESIS = {"eta": 0.01, "layer": LAYER["module"], "scaled": lambda path: True}
CODE = {"eta": 0.01, "layer": LAYER["tensor"], "scaled": is_weight}


@pytest.mark.core
@pytest.mark.parametrize("rule", READY)
def test_the_default_is_equation_4_6(rule, x64):
    """v_{t+1} = w_t - gamma_k g, w_{t+1} = v_{t+1} + beta (v_{t+1} - v_t), from v_0 = w_0."""

    def step(t, w, ratio, d, memory):
        v_old = memory.get("v", w)
        memory["v"] = w - gamma(t) * ratio * d
        return memory["v"] + BETA * (memory["v"] - v_old)

    w, gradients = start()
    got = run(READY[rule](gamma, 0.01, momentum=BETA), w, gradients)
    for a, b in zip(got, reference(rule, w, gradients, step, **THESIS), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("rule", READY)
def test_algorithm_8_as_published(rule, x64):
    """Heavy ball of the raw gradients, decay in them, rate and ratio outside; biases and normalisation unscaled.

    The code's eps of 1e-6 in two denominators is left out: with it, M_k times the ratio of LARS is eq. 4.7 only nearly.
    """

    def step(t, w, ratio, d, memory):
        memory["b"] = BETA * memory.get("b", 0) + d
        return w - gamma(t) * ratio * memory["b"]

    clip = {"clip": 0.004} if rule == "clars" else {}
    w, gradients = start()
    tx = READY[rule](
        gamma,
        0.01,
        momentum=BETA,
        nesterov=False,
        momentum_of="gradients",
        weight_decay=DECAY,
        groups="tensor",
        mask=jd.weight_mask,
        **clip,
    )
    want = reference(rule, w, gradients, step, decay=DECAY, **CODE, **clip)
    for a, b in zip(run(tx, w, gradients), want, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("nesterov", "momentum_of"), [(False, "steps"), (True, "steps"), (True, "gradients")])
@pytest.mark.parametrize("rule", READY)
def test_the_formulas_of_the_docstring(rule, nesterov, momentum_of, x64):
    def step(t, w, ratio, d, memory):
        rate = gamma(t) * ratio
        inside, outside = (rate, 1) if momentum_of == "steps" else (1, rate)
        memory["b"] = BETA * memory.get("b", 0) + inside * d
        return w - outside * (BETA * memory["b"] + inside * d if nesterov else memory["b"])

    w, gradients = start()
    tx = READY[rule](gamma, 0.01, momentum=BETA, nesterov=nesterov, momentum_of=momentum_of, weight_decay=DECAY)
    for a, b in zip(run(tx, w, gradients), reference(rule, w, gradients, step, decay=DECAY, **THESIS), strict=True):
        assert_close(a, b)


def test_the_two_momentums_part_only_when_rates_change(x64):
    """One tensor whose ratio is fixed: with a constant rate it makes no difference what the momentum sums."""
    w, gradients = start()
    fixed = {"mask": False}  # a ratio of 1 everywhere
    for rate, equal in ((0.1, True), (gamma, False)):
        inside = run(jd.lars(rate, momentum=BETA, **fixed), w, gradients)
        outside = run(jd.lars(rate, momentum=BETA, momentum_of="gradients", **fixed), w, gradients)
        gap = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (inside[-1], outside[-1])), strict=True))
        assert (gap < 1e-12) == equal


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mask", [True, jd.weight_mask])
def test_lars_is_optax_lars(nesterov, mask, x64):
    w, gradients = start()
    w = zero(w, "Conv_0", "bias")
    ours = jd.lars(
        gamma, 0.02, momentum=BETA, nesterov=nesterov, weight_decay=DECAY, weight_decay_mask=jd.weight_mask,
        groups="tensor", mask=mask, eps=1e-3,
    )  # fmt: skip
    theirs = optax.lars(
        gamma, DECAY, jd.weight_mask, trust_coefficient=0.02, eps=1e-3, trust_ratio_mask=mask, momentum=BETA,
        nesterov=nesterov,
    )  # fmt: skip
    for a, b in zip(run(ours, w, gradients), run(theirs, w, gradients), strict=True):
        assert_close(a, b)


def test_scale_by_lars_is_optax_trust_ratio(x64):
    w, gradients = start()
    g = mean(gradients[0])
    ours, theirs = jd.scale_by_lars(0.1, groups="tensor", eps=0.2), optax.scale_by_trust_ratio(0, 0.1, 0.2)
    assert_close(ours.update(g, ours.init(w), w)[0], theirs.update(g, theirs.init(w), w)[0])
