"""A partition puts the boundaries where it is told, or where no other cut has a cheaper most expensive stage."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdecouple as jd
from jaxdecouple.partitioning.partition import balance, flops


def identities(count):
    return [jd.from_function(lambda x: x, name=f"layer{index}") for index in range(count)]


def starts(stages):
    return tuple(stage.first for stage in stages)[1:]


def cuts(num_layers, num_stages):
    """Every way to cut, as boundaries; the earliest first."""
    return itertools.combinations(range(1, num_layers), num_stages - 1)


def slowest(costs, boundaries):
    edges = (0, *boundaries, len(costs))
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(edges))


def random_costs():
    rng = np.random.default_rng(0)
    for count in range(1, 9):
        yield [1] * count
        yield [0] * count
        for high in (2, 5, 100):
            yield from (rng.integers(0, high, count).tolist() for _ in range(4))


def test_balance_is_the_best_of_all_cuts():
    for costs in random_costs():
        for num_stages in range(1, len(costs) + 1):
            boundaries = balance(costs, num_stages)
            assert boundaries in set(cuts(len(costs), num_stages))  # increasing, and no stage is empty
            least = min(slowest(costs, cut) for cut in cuts(len(costs), num_stages))
            assert slowest(costs, boundaries) == least, f"{costs} into {num_stages}"


def test_balance_takes_the_earliest_of_the_best_first_cuts_and_balances_the_rest():
    for costs in random_costs():
        for num_stages in range(2, len(costs) + 1):
            boundaries = balance(costs, num_stages)
            least = slowest(costs, boundaries)
            best = [cut for cut in cuts(len(costs), num_stages) if slowest(costs, cut) == least]
            assert boundaries[0] == best[0][0], f"{costs} into {num_stages}"
            rest = balance(costs[boundaries[0] :], num_stages - 1)
            assert boundaries[1:] == tuple(boundaries[0] + cut for cut in rest)


def test_balance_breaks_ties_by_bytes_and_counts_the_last_stage_apart():
    rng = np.random.default_rng(1)
    for _ in range(300):
        count = int(rng.integers(1, 9))
        costs, last, sent = rng.integers(0, 4, count), rng.integers(0, 4, count), rng.integers(0, 9, count)

        def rank(cut, costs=costs, last=last, sent=sent, count=count):
            edges = (0, *cut, count)
            stages = [sum(costs[a:b]) for a, b in itertools.pairwise(edges[:-1])] + [sum(last[edges[-2] :])]
            return max(stages), sum(sent[list(cut)])

        for num_stages in range(1, count + 1):
            found = balance(costs, num_stages, last=last, sent=sent)
            assert found in set(cuts(count, num_stages))
            assert rank(found) == min(map(rank, cuts(count, num_stages))), (costs, last, sent, num_stages)


def test_balance_is_quick_for_a_thousand_layers():
    costs = np.random.default_rng(0).random(1200)
    boundaries = balance(costs, 8)
    assert slowest(costs, boundaries) < 1.01 * costs.sum() / 8 + costs.max()


def test_a_redone_forward_moves_the_cut_to_seven_quarters():
    # Even cuts into two cap Features Replay at 1.5 times one worker, the best cut at 1.75: 3/7 of the layers below.
    layers = identities(7)
    assert starts(jd.partition(layers, 2, costs=[3] * 7, weights="replay")) == (3,)
    assert starts(jd.partition(layers, 2, costs=[3] * 7, weights="remat")) == (3,)
    assert starts(jd.partition(identities(14), 2, costs=[1] * 14)) == (7,)


def test_parameters_as_costs():
    layers, x = [nn.Dense(8), nn.Dense(64), jnp.sin, nn.Dense(8)], np.zeros((2, 8), np.float32)
    assert starts(jd.partition(layers, 2, sample=x, costs="params")) == (2,)  # 72 + 576 | 520


def test_balance_worked_by_hand():
    assert balance([1, 1, 1, 1], 2) == (2,)
    assert balance([9, 1, 1, 1], 2) == (1,)
    assert balance([1, 1, 1, 9], 2) == (3,)
    assert balance([2, 2, 2, 2, 2, 2, 2], 3) == (1, 4)  # 2 | 6 | 6
    assert balance([0.5, 0.25, 0.25, 1.0], 2) == (3,)
    assert balance(np.array([5, 1, 2]), 3) == (1, 2)
    assert balance([0, 0, 0], 3) == (1, 2)
    assert balance([7], 1) == ()


def test_stages_hold_all_layers_in_order():
    layers = identities(6)
    for num_stages in range(1, 7):
        stages = jd.partition(layers, num_stages)
        assert len(stages) == num_stages
        assert [layer for stage in stages for layer in stage.layers] == layers
        assert [stage.first for stage in stages] == [0, *itertools.accumulate(len(s.layers) for s in stages[:-1])]
    names = [key for stage in jd.partition(layers, boundaries=(2,)) for key in stage.keys]
    assert names == [f"00{index}_layer{index}" for index in range(6)]


def test_boundaries_win_over_costs():
    layers, costs = identities(5), [100, 1, 1, 1, 1]
    assert starts(jd.partition(layers, 2, costs=costs)) == (1,)
    assert starts(jd.partition(layers, 2, costs=costs, boundaries=(4,))) == (4,)
    assert starts(jd.partition(layers, boundaries=[1, 3])) == (1, 3)
    assert starts(jd.partition(layers, boundaries=())) == ()


def test_costs_win_over_operations():
    layers, x = [nn.Dense(64), nn.Dense(64), nn.Dense(1), nn.Dense(1)], np.zeros((2, 64), np.float32)
    assert starts(jd.partition(layers, 2, sample=x)) == (1,)  # 8192 | 8192 + small
    assert starts(jd.partition(layers, 2)) == (2,)  # all alike
    assert starts(jd.partition(layers, 2, sample=x, costs=[0, 0, 1, 1])) == (3,)


def multiply_adds(examples):
    """Of each layer of ResNet-20: two operations per weight and position."""
    groups = [(16, 16, 32)] * 3 + [(16, 32, 16)] + [(32, 32, 16)] * 2 + [(32, 64, 8)] + [(64, 64, 8)] * 2
    blocks = [2 * 9 * size**2 * (below * above + above**2) for below, above, size in groups]
    return [examples * cost for cost in (2 * 9 * 32**2 * 3 * 16, *blocks, 2 * 64 * 10)]


def test_operations_of_resnet20():
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    layers = [jd.as_layer(layer) for layer in jd.models.resnet20()]
    counted = flops(layers, x)
    assert len(counted) == 11
    np.testing.assert_allclose(counted[:-1], multiply_adds(2)[:-1], rtol=0.2)  # norms come on top, the padding off
    assert counted[-1] < counted[0] / 50
    for num_stages, boundaries in {2: (5,), 3: (4, 7), 5: (2, 4, 6, 8)}.items():
        assert balance(multiply_adds(1), num_stages) == boundaries
        assert balance(counted, num_stages) == boundaries


def test_resnet20_is_cut_by_operations_by_default():
    layers, x = jd.models.resnet20(), np.zeros((2, 32, 32, 3), np.float32)
    assert starts(jd.partition(layers, 2, sample=x)) == (5,)
    assert starts(jd.partition(layers, 3, sample=x)) == (4, 7)
    assert starts(jd.partition(layers, 3)) == (3, 7)  # by number of layers


def test_operations_do_not_need_memory():
    # 4 TiB of activations: only shapes are looked at.
    x = jax.ShapeDtypeStruct((2**20, 2**20), np.float32)
    stages = jd.partition([jnp.sin, nn.Dense(2), jnp.sin], 2, sample=x)
    assert starts(stages) == (1,)


def test_layers_may_pass_trees_and_integers():
    layers = [
        lambda x: {"ids": (x > 0).astype(jnp.int32), "x": x},
        lambda tree: (tree["ids"].sum(axis=1), tree["x"]),
        lambda pair: pair[0],
        nn.Embed(num_embeddings=5, features=2),
    ]
    stages = jd.partition(layers, 3, sample=np.zeros((3, 4), np.float32))
    assert sum(len(stage.layers) for stage in stages) == 4


def test_layers_that_do_not_fit_are_named():
    layers = [nn.Dense(3), jnp.sin, lambda x: x.reshape(7, 7), nn.Dense(2)]
    x = np.zeros((2, 5), np.float32)
    for arguments in ({"num_stages": 2}, {"boundaries": (1,)}):
        with pytest.raises(ValueError, match=r"layer 2 \(<lambda>\) cannot take float32\[2, 3\].*\(7, 7\)"):
            jd.partition(layers, sample=x, **arguments)
    with pytest.raises(ValueError, match=r"layer 0 \(Embed\) cannot take float32\[2, 5\].*or the network's input"):
        jd.partition([nn.Embed(3, 2), nn.Dense(2)], 2, sample=x)
    assert len(jd.partition(layers, 2)) == 2  # without a sample, nothing is known of shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs num_stages, or boundaries"),
        ({"num_stages": 5}, r"num_stages is 5; the network has 4 layers: write 1\.\.4"),
        ({"num_stages": 0}, "num_stages is 0"),
        ({"num_stages": "2"}, "num_stages is '2'; write an integer"),
        ({"num_stages": 2.0}, "num_stages is 2.0; write an integer"),
        ({"boundaries": 1}, r"boundaries is 1; write a tuple, \(1,\)"),
        ({"num_stages": 2, "sample": (4, 5)}, "the sample is a tuple of numbers; write arrays"),
        ({"boundaries": (0,)}, r"boundaries \(0,\) must be increasing layer indices of 1\.\.3"),
        ({"boundaries": (4,)}, r"boundaries \(4,\) must be .*the network has 4 layers"),
        ({"boundaries": (-1, 2)}, r"boundaries \(-1, 2\) must be"),
        ({"boundaries": (2, 1)}, r"boundaries \(2, 1\) must be increasing"),
        ({"boundaries": (2, 2)}, r"boundaries \(2, 2\) must be increasing"),
        ({"boundaries": (1.5,)}, r"boundaries \(1.5,\) must be"),
        ({"boundaries": (1, 2), "num_stages": 2}, "into 3 stages, but num_stages is 2; write 1 boundaries, or leave"),
        ({"boundaries": (), "num_stages": 2}, "into 1 stages, but num_stages is 2"),
        ({"num_stages": 4, "costs": [1, 1, 1]}, "got 3 costs"),
        ({"num_stages": 2, "costs": "time"}, "costs is 'time'; write 'flops', 'params', a profile, or one number"),
        ({"num_stages": 2, "costs": "params"}, "costs='params' needs shapes: write sample="),
        ({"num_stages": 2, "costs": [1, float("nan"), 1, 1]}, "write one number of at least 0 per layer"),
        ({"num_stages": 2, "costs": [1, 1, 1, -1]}, "write one number of at least 0 per layer"),
    ],
)
def test_refuses_and_says_what_to_write(arguments, message):
    with pytest.raises(ValueError, match=message):
        jd.partition(identities(4), **arguments)


def test_refuses_a_network_of_nothing():
    with pytest.raises(ValueError, match="the network has no layers"):
        jd.partition([], 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_stages": 2, "costs": [1, 1, 1]},
        {"num_stages": 2, "costs": [0, 0, 0, 0, 1, 1]},
        {"boundaries": (1,), "costs": [1]},
    ],
)
def test_refuses_another_number_of_costs_than_layers(arguments):
    with pytest.raises(ValueError, match=r"costs.*4 layers"):
        jd.partition(identities(4), **arguments)


def test_refuses_infinite_costs():
    with pytest.raises(ValueError, match="write one"):
        balance([float("inf"), 1, 1], 2)


def test_numpy_integers_are_integers():
    assert starts(jd.partition(identities(4), np.int64(2))) == (2,)
    assert starts(jd.partition(identities(4), boundaries=np.array([3]))) == (3,)


def test_a_sample_is_checked_when_costs_are_given():
    layers = [nn.Dense(3), lambda x: x.reshape(7, 7)]
    with pytest.raises(ValueError, match="layer 1"):
        jd.partition(layers, 2, costs=[1, 1], sample=np.zeros((2, 5), np.float32))


def test_long_runs_become_loops_unless_told_otherwise():
    layers, x = [nn.Dense(4) for _ in range(70)], np.zeros((2, 4), np.float32)
    below, last = jd.partition(layers, boundaries=(33,), sample=x)
    assert [layer.count for layer in below.layers] == [33] and [layer.count for layer in last.layers] == [37]
    assert below.num_layers == 33 and last.first == 33
    plain = jd.partition(layers, boundaries=(33,), sample=x, scan=False)
    assert [len(stage.layers) for stage in plain] == [33, 37]
    assert [len(stage.layers) for stage in jd.partition(layers, boundaries=(33,))] == [33, 37]  # shapes are not known


def test_a_sequential_or_lists_of_layers_are_cut_like_their_layers():
    x = np.ones((2, 4), np.float32)
    linen = [nn.Dense(4), nn.relu, nn.Dense(4), nn.relu, nn.Dense(3)]
    both = [nnx.Linear(4, 4, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(4, 3, rngs=nnx.Rngs(1))]
    for network, count in (
        (nn.Sequential(linen), 5),
        ([linen[:2], [linen[2], linen[3:]]], 5),
        (nnx.Sequential(*both), 3),
    ):
        first, last = jd.partition(network, 2, sample=x)
        assert (first.num_layers + last.num_layers, last.first) == (count, first.num_layers)
