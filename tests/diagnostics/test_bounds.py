"""Bounds are the papers' formulas, written out anew; where they can be checked, they hold for a measured run."""

import math

import numpy as np
import pytest

from jaxdecouple import schedules
from jaxdecouple.diagnostics import GradientRecord, bounds
from tests.diagnostics.test_diagnostics import watch
from tests.oracles.problems import pipeline_for, problem, start

L, M = 3.0, 0.7


def test_fdg_theorem_1():
    squares, beta, K = [0.5, 0.2, 0.1], 0.6, 3
    z1 = sum(beta ** (K - k) * squares[k - 1] for k in range(1, K + 1))
    z2 = L * M * (beta**K - 1) / (beta - 1) + L * M * sum(beta ** (3 * (K - k)) * 2 * (K - k) for k in range(1, K + 1))
    found = bounds.fdg_theorem_1(squares, beta=beta, lipschitz=L, second_moment=M)
    for rate in (0.01, 0.2):
        assert found.change(rate) == pytest.approx(-rate / 2 * z1 + rate**2 * z2)
    assert found.largest_rate == pytest.approx(min(1 / L, z1 / (2 * z2)))
    plain = bounds.fdg_theorem_1(squares, beta=1.0, lipschitz=L, second_moment=M)
    assert plain.noise == pytest.approx(L * M * (K + 6))  # (beta^K - 1) / (beta - 1) is K


@pytest.mark.parametrize(("K", "accumulate"), [(1, 1), (4, 1), (8, 4)])
def test_adl_theorems(K, accumulate):
    levels = [[max(0, math.ceil((2 * (K - k) - j) / accumulate)) for j in range(accumulate)] for k in range(1, K + 1)]
    factor = 1 + sum(map(np.mean, levels)) / accumulate
    found = bounds.adl_theorem_1(0.4, lipschitz=L, second_moment=M, levels=levels)
    assert found.change(0.1) == pytest.approx(-0.1 / 2 * 0.4 + 0.01 * M * L * factor / accumulate)
    rates = [0.2, 0.1, 0.05]
    squares, total = sum(rate**2 for rate in rates), sum(rates)
    expected = 2 * 1.5 / total + 2 * M * L * factor * squares / (accumulate * total)
    assert found.average(rates, excess=1.5) == pytest.approx(expected)
    rate, least = bounds.adl_theorem_3(900, excess=1.5, lipschitz=L, second_moment=M, levels=levels, epsilon=0.5)
    assert rate == pytest.approx(0.5 * math.sqrt(accumulate * 1.5 / (900 * M * L * factor)))
    assert least == pytest.approx(found.average([rate] * 900, excess=1.5))  # as the supplement derives it
    with pytest.raises(ValueError, match="above 1 / L; write a smaller one"):
        bounds.adl_theorem_3(1, excess=1e3, lipschitz=L, second_moment=M, levels=levels)


def test_the_least_accumulation():
    """The larger K, the more is needed; where M does, M - 1 does not."""
    constants = {"gradient_square": 0.4, "lipschitz": L, "second_moment": M}
    needed = [bounds.adl_least_accumulation(K, 0.1, **constants) for K in (1, 2, 4, 8, 16)]
    assert needed == sorted(needed) and needed[0] < needed[-1]
    for K, accumulate in zip((4, 16), (needed[2], needed[4]), strict=True):
        for count, holds in ((accumulate, True), (accumulate - 1, False)):
            levels = schedules.staleness(schedules.adl(K), count)
            assert (bounds.adl_theorem_1(levels=levels, **constants).change(0.1) < 0) == holds
    assert bounds.adl_least_accumulation(16, 0.5, **constants) is None  # above 1 / L no M helps


def test_thesis_chapters_5_and_6():
    K, rates = 3, [0.3 / (1 + t) for t in range(20)]
    squares, total = sum(rate**2 for rate in rates), sum(rates)
    found = bounds.ddg_lemma(0.4, K, lipschitz=L, second_moment=M, sigma=K)
    m_k = K * M + K**5 * M  # Theorem 5.4.2
    assert found.average(rates, excess=2.0) == pytest.approx(2 * 2.0 / total + 2 * squares * L * m_k / total)
    constant = bounds.ddg_lemma(0.4, K, lipschitz=L, second_moment=M)
    assert constant.average([0.1] * 7, excess=2.0) == pytest.approx(
        2 * 2.0 / (0.1 * 7) + 2 * 0.1 * L * (K * M + K**4 * M)
    )
    with pytest.raises(ValueError, match="a rate is 0.5, but the theorem holds up to 1 / L = 0.333"):
        constant.average([0.5], excess=2.0)
    replay = bounds.features_replay_lemma(0.4, sigma=0.8, lipschitz=L, second_moment=M)
    assert replay.change(0.1) == pytest.approx(-0.8 * 0.1 * 0.4 + 0.01 * L * M / 2)
    assert replay.average(rates, excess=2.0) == pytest.approx(2.0 / (0.8 * total) + L * M / (2 * 0.8) * squares / total)
    with pytest.raises(ValueError, match="not downhill"):
        bounds.features_replay_lemma(0.4, sigma=-0.1, lipschitz=L, second_moment=M)


@pytest.mark.parametrize("late", [0, 1, 10])
def test_dsp_theorems(late):
    """The limits are where the coefficients of the gradients' squares, in appendices D and E, change their sign."""
    K, variance = 3, 0.2
    constants = {"lipschitz": L, "error_gradient": M, "variance": variance}
    c_0 = M**2 * K * (K + 1) ** 2
    found = bounds.dsp_theorem_1(K, late, **constants)
    rate = found.limit
    assert L**2 * c_0 * late**2 * rate**2 + (2 * late**2 + 4) * L * rate - 2 == pytest.approx(0, abs=1e-9)
    c_1 = L * c_0 * late**2 * rate
    expected = 2 * 1.5 / (9 * rate) + L * variance * (2 + K * late**2 + K * c_1 / 4) * rate
    assert found.average([rate] * 9, excess=1.5) == pytest.approx(expected)
    for s in (0.0, 1.0, 10.0):
        beta = 0.9
        c_2 = ((1 - beta) * s - 1) ** 2 / (1 - beta) ** 2
        c_3 = c_0 * late**2 * (c_2 + s**2)
        c_4 = 3 + beta**2 * c_2 + 2 * (1 - beta) ** 2 * late**2 * (c_2 + s**2)
        found = bounds.dsp_theorem_2(K, late, momentum=beta, s=s, **constants)
        rate = found.limit
        assert (1 - beta) * c_3 * L**2 * rate**2 + c_4 * L * rate - (1 - beta) == pytest.approx(0, abs=1e-9)
        root = L * rate * 2 * (1 - beta) * c_3
        c_5 = (2 + beta**2 * c_2) / (1 - beta) + 2 * (1 - beta) * late**2 * (c_2 + s**2) + root / (2 * (1 - beta))
        expected = 2 * (1 - beta) * 1.5 / (9 * rate) + c_5 * variance * L * rate
        assert found.average([rate] * 9, excess=1.5) == pytest.approx(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clars_theorems(momentum):
    layers, factors, B = [4.0, 1.0, 0.5], [30.0, 2.0, 900.0], 256
    rest, top = 1 - momentum, 6.0
    gamma = bounds.clars_largest_rate(layers, factors, batch_size=B, momentum=momentum, global_lipschitz=top)

    def holds(gamma):
        rates = [gamma / constant for constant in layers]
        each = all(
            rate <= min(rest / (8 * constant), rest * B / (8 * constant * m)) * (1 + 1e-12)
            for rate, constant, m in zip(rates, layers, factors, strict=True)
        )
        root = math.sqrt(B / max(factors))
        limits = [1 / (2 * top), root / (2 * top)]
        if momentum:
            limits = [rest**2 / (4 * momentum**2 * top), rest / (4 * top)]
            limits += [limit * root for limit in limits]
        return each and sum(rates) / 3 <= min(limits) * (1 + 1e-12)

    assert holds(gamma) and not holds(1.001 * gamma)


def record(difference, true_norm, distance, secant=None):
    ones = [1.0] * len(distance)
    rest = dict.fromkeys(("lag", "staleness", "weight_gap", "norm", "mean_absolute", "cosine"), ones)
    return GradientRecord(
        batch=0, tick=0, difference=difference, true_norm=true_norm, distance=distance, secant=secant, **rest
    )


def test_constants_of_records():
    records = [
        record([0.5, 0.1, 0.0], [2.0, 1.0, 3.0], [0.3, 0.2, 0.0], 4.0),
        record([0.0] * 3, [0.1] * 3, [0.0] * 3, 5.0),
    ]
    assert bounds.least_lemma_1_constant(records) == pytest.approx(max(1.0 / 0.5, 0.1 / 0.2))
    assert bounds.least_second_moment(records) == pytest.approx(4 + 1 + 9)
    assert bounds.least_lipschitz(records) == 5.0
    assert bounds.dsp_lemma_1([0.3, 0.2, 0.1], lipschitz=2, error_gradient=3) == pytest.approx([3.6, 1.8, 0.6])
    squares = [1 / 4 * 0.09, 2 / 4 * 0.04, 3 / 4 * 0.01]
    assert bounds.dsp_lemma_2([0.3, 0.2, 0.1], lipschitz=2, error_gradient=3) == pytest.approx(
        0.5 * 4 * (9 * 3 * 16) * sum(squares)
    )
    with pytest.raises(ValueError, match="secants=True"):
        bounds.least_lipschitz([record([0.0], [0.0], [0.0])])


def test_lemmas_of_dsp_hold_for_a_run(x64):
    """Lemma 2, for all stages together, with the least constant of Lemma 1 for each."""
    task = problem(3, learning_rate=0.05)
    pipeline = pipeline_for(task, schedules.dsp((1, 1, 0), (4, 2, 0)))
    _, records, _ = watch(pipeline, start(pipeline, task), task.batches, every=1, secants=True)
    constant = bounds.least_lemma_1_constant(records)
    for found in records:
        sizes = [part * norm for part, norm in zip(found.difference, found.true_norm, strict=True)]
        limits = bounds.dsp_lemma_1(found.distance, lipschitz=constant, error_gradient=1)
        assert all(size <= limit * (1 + 1e-9) + 1e-12 for size, limit in zip(sizes, limits, strict=True))
        assert sum(size**2 for size in sizes) <= bounds.dsp_lemma_2(
            found.distance, lipschitz=constant, error_gradient=1
        )
    assert 0 < bounds.least_lipschitz(records) < 10 and constant > 0
    assert any(size > 0 for found in records for size in found.distance)
