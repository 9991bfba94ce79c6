"""Batches: every example once, an order that (seed, epoch) decides, and refusals at the call."""

import numpy as np
import pytest

from jaxdecouple.data import DataError, epoch_batches, num_batches

N = 23
X = np.arange(N * 2).reshape(N, 2)
Y = np.arange(N) * 10


def rows(batch_size=5, **options):
    options = {"seed": 0, "epoch": 0, **options}
    return [y // 10 for _, y in epoch_batches(X, Y, batch_size, **options)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 40])
def test_every_example_comes_once(batch_size, shuffle):
    seen = np.concatenate(rows(batch_size, shuffle=shuffle))
    assert sorted(seen) == list(range(N))


def test_inputs_stay_with_their_targets():
    for x, y in epoch_batches(X, Y, 5, seed=0, epoch=0):
        np.testing.assert_array_equal(x[:, 0] // 2, y // 10)


def test_the_order_is_the_stated_permutation():
    order = np.random.default_rng([3, 7]).permutation(N)
    np.testing.assert_array_equal(np.concatenate(rows(seed=3, epoch=7)), order)


def test_each_epoch_and_each_seed_has_its_own_order_and_it_repeats():
    orders = {(s, e): tuple(np.concatenate(rows(seed=s, epoch=e))) for s in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[1, 0] == tuple(np.concatenate(rows(seed=1, epoch=0)))


def test_without_shuffling_the_order_is_the_arrays():
    assert np.concatenate(rows(shuffle=False, epoch=4)).tolist() == list(range(N))


def test_the_ragged_last_batch_is_kept_unless_dropped():
    assert [len(r) for r in rows()] == [5, 5, 5, 5, 3]
    assert [len(r) for r in rows(drop_last=True)] == [5, 5, 5, 5]
    assert [len(r) for r in rows(23, drop_last=True)] == [23]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 22, 23])
def test_num_batches_counts_what_comes(batch_size, drop_last):
    expected = len(rows(batch_size, drop_last=drop_last))
    assert num_batches(N, batch_size, drop_last) == expected


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}])
def test_starting_later_gives_the_same_rest(options):
    whole = rows(seed=2, epoch=1, **options)
    for start in range(len(whole) + 1):
        rest = rows(seed=2, epoch=1, start=start, **options)
        assert [r.tolist() for r in rest] == [r.tolist() for r in whole[start:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 6}, "start is 6, but an epoch has 5 batches; write 0 to 5"),
        ({"start": -1}, "start is -1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 24, "drop_last": True}, "exceeds the 23 examples"),
        ({"y": Y[:-1]}, "x has 23 examples and y has 22"),
        ({"x": X[:0], "y": Y[:0]}, "there are 0 examples"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch is -1"),
    ],
)
def test_refusals_come_at_the_call_not_at_the_first_batch(options, message):
    arguments = {"x": X, "y": Y, "batch_size": 5, "seed": 0, "epoch": 0, **options}
    with pytest.raises(DataError, match=message):
        epoch_batches(**arguments)  # nothing is drawn from it
