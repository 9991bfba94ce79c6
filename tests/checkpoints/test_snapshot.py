"""How a state becomes a few flat arrays, and comes back."""

import pickle
import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple.checkpoints import snapshot
from tests.oracles.pipelines import assert_equal

X, Y = np.ones((4, 3), np.float32), np.arange(4, dtype=np.int32) % 2


def pipeline():
    layers = [nn.Dense(5), jax.nn.relu, nn.Dense(2)]
    return jd.Pipeline(jd.partition(layers, boundaries=(2,)), jd.schedules.fdg(2), optimizer=optax.adam(0.1))


@pytest.fixture(scope="module")
def state():
    ours = pipeline()
    state = ours.init(jax.random.key(0), X)
    for _ in range(5):
        state, _ = ours.step(state, (X, Y))
    return state


@pytest.mark.parametrize("chunk", [1, 60, 2**20], ids=["each alone", "a few together", "all together"])
def test_arrays_are_put_together_in_chunks_and_come_back_as_they_were(chunk, tmp_path, monkeypatch, state):
    monkeypatch.setattr(snapshot, "_CHUNK", chunk)
    taken = snapshot.take(state)
    copies = sum(map(len, taken.copies))
    dtypes = sum(len({np.asarray(copy).dtype for copy in of}) for of in taken.copies)
    arrays, document = taken.pack()
    count = sum(map(len, arrays.values()))
    assert count == copies if chunk == 1 else dtypes < count < copies if chunk == 60 else count == dtypes
    assert not any(taken.copies)  # given up
    assert len(document["leaves"]) > copies  # what is one array in memory is saved once
    jd.save(tmp_path / "it", state)
    restored = jd.restore(tmp_path / "it", pipeline(), X)
    assert_equal(restored, state)


def test_nothing_is_unpickled(tmp_path, monkeypatch, state):
    jd.save(tmp_path / "it", state)
    files = [file for file in (tmp_path / "it").rglob("*") if file.is_file()]
    assert files and not any(file.read_bytes().startswith(b"\x80") for file in files)

    def refuse(*args, **options):
        pytest.fail("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (np, "load")):
        monkeypatch.setattr(module, name, refuse)
    restored = jd.restore(tmp_path / "it", pipeline(), X)
    assert_equal(restored, state)


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("params", np.nan, "params.* is not finite"),
        ("params", np.inf, "params.* is not finite"),
        ("opt_state", np.nan, "opt_state.* is NaN"),
        ("opt_state", np.inf, None),  # some optimizers begin with it
        ("gradients", np.inf, "gradients.* is not finite"),
        ("activations", -np.inf, None),  # a mask
    ],
)
def test_a_state_that_is_not_finite_is_noticed(part, value, says, state):
    def spoil(tree):
        return jax.tree.map(lambda leaf: np.full_like(leaf, value) if leaf.dtype == np.float32 else leaf, tree)

    holders = state.stages if hasattr(state.stages[0], part) else state.in_flight
    spoilt = tuple(holder.replace(**{part: spoil(getattr(holder, part))}) for holder in holders)
    state = state.replace(**{"stages" if holders is state.stages else "in_flight": spoilt})
    problem = snapshot.take(state).problem()
    if says is None:
        assert problem is None
    else:
        assert re.search(says, problem)
