"""Plans: the virtual clock by hand, delays, where versions are kept; then whether the methods converge with them."""

from typing import Any

import numpy as np
import pytest

from jaxdecouple import asynchronous
from jaxdecouple.asynchronous import Clock, DrawnDelays, Stragglers
from jaxdecouple.asynchronous.engines import clock

CLOCK = Clock(example=1.0, message=2.0, update=0.5)
NOBODY = Stragglers(probability=0.0)
THREE = clock.Work(3, ())  # a message of three gradients arrives after 2 + 3 seconds


def plans(
    work: clock.Work = THREE, late: Stragglers = NOBODY, *, rounds: bool = False, **counts: int
) -> list[clock.Plan]:
    make = clock.synchronous if rounds else clock.asynchronous
    return list(make(CLOCK, late, work, **{"workers": 2, "outer_steps": 1, "inner_steps": 4, **counts}))


def given(delays: Any, **counts: int) -> list[clock.Plan]:
    return list(clock.given(delays, **counts))


def assert_plan(of: clock.Plan, worker: list[int], delay: list[int], seconds: list[float]) -> None:
    assert of.worker.tolist() == worker
    assert of.delay.tolist() == delay
    np.testing.assert_allclose(of.seconds, seconds)
    assert of.end == of.seconds[-1]


def test_two_workers() -> None:
    """Both arrive at 5, and are taken until 5.5 and 6; they come back 5 seconds later, with their answers' w."""
    (only,) = plans()
    assert_plan(only, [0, 1, 0, 1], [0, 1, 1, 1], [5.5, 6, 11, 11.5])


def test_a_worker_that_is_always_late() -> None:
    """With m = 3 worker 1 needs 2 + 3 * 4 seconds, in which worker 0 is heard twice."""
    (only,) = plans(late=Stragglers(probability=1.0, slowdown=(3.0, 3.0), workers=(1,)))
    assert_plan(only, [0, 0, 1, 0], [0, 0, 2, 1], [5.5, 11, 14.5, 16.5])


def test_the_server_takes_one_message_at_a_time() -> None:
    slow = Clock(example=1.0, message=0.0, update=4.0)
    (only,) = clock.asynchronous(slow, NOBODY, clock.Work(1, ()), workers=2, outer_steps=1, inner_steps=4)
    assert_plan(only, [0, 1, 0, 1], [0, 1, 1, 1], [5, 9, 13, 17])


def test_a_full_gradient_is_over_when_the_slowest_has_its_part() -> None:
    (only,) = plans(clock.Work(3, (2, 5)))
    assert_plan(only, [0, 1, 0, 1], [0, 1, 1, 1], [12.5, 13, 18, 18.5])  # 5 + 2 seconds later
    (only,) = plans(clock.Work(3, (2, 5)), Stragglers(probability=1.0, slowdown=(3.0, 3.0), workers=(0,)))
    np.testing.assert_allclose(only.seconds[0], 8 + 2 + 5 + 0.5)  # worker 1's first message; worker 0 has 2 * 4 seconds


def test_one_worker_goes_on_with_the_broadcast() -> None:
    """It is not in the middle of a message when an outer iteration ends, for that ends with its own message."""
    of = plans(workers=1, outer_steps=3, inner_steps=2)
    np.testing.assert_allclose([each.seconds for each in of], [[5.5, 11], [16.5, 22], [27.5, 33]])


def test_rounds() -> None:
    """2 + 3 seconds for the messages, and twice 0.5 for taking them."""
    first, second = plans(rounds=True, outer_steps=2)
    assert_plan(first, [0, 1, 0, 1], [0, 1, 0, 1], [6, 6, 12, 12])
    assert_plan(second, [0, 1, 0, 1], [0, 1, 0, 1], [18, 18, 24, 24])


def test_rounds_wait_for_the_slowest() -> None:
    late = Stragglers(probability=1.0, slowdown=(3.0, 3.0), workers=(0,))
    (only,) = plans(late=late, rounds=True)
    assert_plan(only, [0, 1, 0, 1], [0, 1, 0, 1], [15, 15, 30, 30])
    (only,) = plans(clock.Work(3, (2, 5)), late, rounds=True)
    assert_plan(only, [0, 1, 0, 1], [0, 1, 0, 1], [25, 25, 40, 40])  # worker 0 has 2 * 4 seconds for its part


def test_a_message_is_computed_with_the_answer_to_the_one_before() -> None:
    """Or with the broadcast at the start of the outer iteration, the oldest that there can be."""
    late = Stragglers(probability=0.4, slowdown=(0.0, 10.0), workers=(0, 2, 3), seed=5)
    of = plans(late=late, workers=5, outer_steps=4, inner_steps=40)
    for each in of:
        answer = dict.fromkeys(range(5), 0)
        for t, (worker, delay) in enumerate(zip(each.worker.tolist(), each.delay.tolist(), strict=True)):
            assert t - delay == answer[worker]
            answer[worker] = t + 1
    seconds = np.concatenate([each.seconds for each in of])
    assert (np.diff(seconds) >= CLOCK.update - 1e-9).all()
    assert max(each.delay.max() for each in of) > 8
    assert all(each.delay[0] == 0 for each in of)


def test_stragglers_are_late_with_the_probability_and_by_the_slowdown() -> None:
    late = Stragglers(probability=0.3, slowdown=(2.0, 6.0), workers=(1,), seed=4)
    drawn = [m for _, m in zip(range(4000), late.draw(1), strict=False)]
    slow = np.array([m for m in drawn if m > 0])
    assert abs(len(slow) / 4000 - 0.3) < 5 * np.sqrt(0.21 / 4000)
    assert 2 <= slow.min() < 2.1 and 5.9 < slow.max() <= 6
    assert {m for _, m in zip(range(100), late.draw(0), strict=False)} == {0.0}


@pytest.mark.parametrize("bad", [{"probability": 1.5}, {"slowdown": (3.0, 1.0)}, {"slowdown": (-1.0, 1.0)}], ids=str)
def test_stragglers_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="write a probability from 0 to 1"):
        Stragglers(**bad)


def test_given_delays_reach_back_to_the_start_of_the_outer_iteration() -> None:
    counts = {"workers": 3, "outer_steps": 2, "inner_steps": 5}
    for each in given(2, **counts):
        assert each.worker.tolist() == [0, 1, 2, 0, 1]
        assert each.delay.tolist() == [0, 1, 2, 2, 2]
        assert np.isnan(each.seconds).all() and np.isnan(each.end)
    first, second = given(np.array([0, 4, 1, 0, 4, 3, 0, 0, 1, 2]), **counts)
    assert first.delay.tolist() == [0, 1, 1, 0, 4]
    assert second.delay.tolist() == [0, 0, 0, 1, 2]


def test_drawn_delays_are_all_between_none_and_the_bound() -> None:
    counts = {"workers": 3, "outer_steps": 3, "inner_steps": 200}
    of = given(DrawnDelays(4, seed=2), **counts)
    share = np.mean([each.delay[4:, None] == np.arange(6) for each in of], axis=(0, 1))
    assert (np.abs(share[:5] - 0.2) < 0.1).all() and share[5] == 0
    again, other = given(DrawnDelays(4, seed=2), **counts), given(DrawnDelays(4, seed=3), **counts)
    assert (of[0].delay == again[0].delay).all() and (of[0].delay != of[1].delay).any()
    assert (of[0].delay != other[0].delay).any()


def random_plans() -> list[clock.Plan]:
    rng = np.random.default_rng(8)
    drawn = [np.minimum(rng.integers(0, bound + 1, 30), np.arange(30)) for bound in (0, 1, 3, 6, 30) for _ in range(4)]
    return [clock.Plan(np.zeros(30, int), delay, np.zeros(30), 0.0, np.zeros(1)) for delay in drawn]


def test_slots_hold_what_is_read() -> None:
    for of in random_plans():
        read, write, count = clock.slots(of)
        kept = {0: 0}
        for t in range(30):
            assert kept[read[t]] == t - of.delay[t]
            kept[write[t]] = t + 1
        assert set(kept) <= set(range(count))


def test_slots_are_as_few_as_can_be() -> None:
    """When the w after message t is kept, so is all that a later message reads."""
    for of in random_plans():
        versions = np.arange(30) - of.delay
        live = [len({v for v in versions[t + 1 :] if v <= t}) for t in range(30)]
        assert clock.slots(of)[2] == max(live) + 1


@pytest.mark.parametrize("tau", [0, 1, 5])
def test_slots_of_a_constant_delay(tau: int) -> None:
    (of,) = given(tau, workers=2, outer_steps=1, inner_steps=20)
    assert clock.slots(of)[2] == tau + 1


def test_more_workers_are_faster_until_the_server_is_busy_all_the_time() -> None:
    """A message takes 10 seconds, of which the server is busy for 0.5: up to 20 workers gain, and no more do."""
    total, work = 400, clock.Work(15, ())  # 2 + 15 seconds, then 0.5

    def seconds(workers: int) -> float:
        (only,) = plans(work, workers=workers, inner_steps=total)
        return only.end

    times = {workers: seconds(workers) for workers in (1, 2, 5, 10, 20, 35, 70, 140)}
    for workers in (1, 2, 5, 10, 20):
        np.testing.assert_allclose(times[workers], total * 17.5 / workers, rtol=0.05)
    busy = total * CLOCK.update + 17  # nothing arrives before that
    for workers in (35, 70, 140):
        np.testing.assert_allclose(times[workers], busy, rtol=0.05)
    rounds = plans(work, rounds=True, workers=20, inner_steps=total)[0].end
    np.testing.assert_allclose(rounds, total / 20 * (17 + 20 * 0.5))
    assert rounds > times[20]


GENERATOR = np.random.default_rng(31)
X = GENERATOR.standard_normal((64, 5)) * np.array([0.2, 0.5, 1, 1, 2]) * GENERATOR.uniform(0.1, 0.7, (64, 1))
Y = X @ GENERATOR.standard_normal(5) + 0.1 * GENERATOR.standard_normal(64)


@pytest.mark.parametrize("delays", [None, "K - 1"])
@pytest.mark.parametrize("workers", [1, 4, 16])
def test_ridge_regression_converges(workers: int, delays: str | None, x64: None) -> None:
    """To the solution of the normal equations (2 X^T X / n + l2 I) w = 2 X^T y / n."""
    problem = asynchronous.ridge(X, Y, l2=0.2)
    given = None if delays is None else workers - 1
    result = asynchronous.dis_dfsdca(problem, workers=workers, local_steps=2, outer_steps=80, delays=given)
    gaps = result.trace.column("gap")
    assert gaps[0] > 0.1 and gaps[-1] < 1e-8
    best = np.linalg.solve(2 * X.T @ X / 64 + 0.2 * np.eye(5), 2 * X.T @ Y / 64)
    np.testing.assert_allclose(result.w, best, atol=1e-4)


@pytest.mark.parametrize("how", ["importance", "adaptive"])
def test_other_samplings_converge(how: str, x64: None) -> None:
    problem = asynchronous.ridge(X, Y, l2=0.2)
    result = asynchronous.dis_dfsdca(problem, workers=4, local_steps=2, outer_steps=80, sampling=how)
    assert result.trace.column("gap")[-1] < 1e-8


def test_cocoa_plus_converges(x64: None) -> None:
    problem = asynchronous.ridge(X, Y, l2=0.2)
    result = asynchronous.cocoa_plus(problem, workers=4, local_steps=8, outer_steps=80)
    assert result.trace.column("gap")[-1] < 1e-8


def test_a_convex_sum_of_parts_that_are_not_converges(x64: None) -> None:
    """Where (mu I - C) w = b; the squared norms of some examples are above mu - l2, where phi_i is not convex."""
    covariance, b = X.T @ X / 64, np.arange(1.0, 6)
    mu = float(np.linalg.eigvalsh(covariance)[-1]) + 1.0
    problem = asynchronous.pca(X, mu=mu, l2=0.5, b=b)
    assert not problem.convex_parts and np.sum(X**2, axis=1).max() > 2 * mu
    best = np.linalg.solve(mu * np.eye(5) - covariance, b)
    at, minimum = problem.optimum()
    np.testing.assert_allclose(at, best)
    np.testing.assert_allclose(minimum, best @ (mu * np.eye(5) - covariance) @ best / 2 - b @ best)
    np.testing.assert_allclose(problem.objective(best), minimum)
    result = asynchronous.dis_dfsdca(problem, workers=4, local_steps=2, outer_steps=150)
    suboptimality = result.trace.column("suboptimality")
    assert suboptimality[0] > 0.1 and abs(suboptimality[-1]) < 1e-8
    np.testing.assert_allclose(result.w, best, atol=1e-4)


@pytest.mark.filterwarnings("ignore::jaxdecouple.asynchronous.StepSizeWarning")
def test_asysvrg_goes_where_sgd_does_not(x64: None) -> None:
    """SGD's noise does not vanish; with as many gradients, and with any of these rates, it ends far above AsySVRG."""
    problem = asynchronous.logistic(X, np.where(Y + X[:, 0] > 0, 1.0, -1.0), l2=0.05)
    reduced = asynchronous.distributed_asysvrg(problem, batch_size=4, outer_steps=40, step_size=0.3, delays=3)
    epochs = reduced.trace[-1].epochs
    ends = []
    for step in (0.03, 0.3, 1.0):
        for decay in (0.0, 1.0):
            result = asynchronous.sgd(
                problem, batch_size=4, outer_steps=round(epochs), step_size=step, decay=decay, delays=3
            )
            assert result.trace[-1].epochs == epochs
            ends.append(result.trace[-1].squared_gradient)
    assert reduced.trace[-1].squared_gradient < 1e-4 * min(ends)
