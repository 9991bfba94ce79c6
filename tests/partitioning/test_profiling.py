"""A profile is measured once per kind of layer, survives a file, and refuses other models, inputs and devices."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple.partitioning import profiling

X = np.zeros((4, 8), np.float32)


def measured(layers, x=X, **arguments):
    return jd.profile(layers, x, repeats=1, seconds=0.0, **arguments)


def written(forward=(1.0, 1.0), backward=(2.0, 2.0), **fields):
    """A profile of two dense layers with chosen times."""
    return dataclasses.replace(measured([nn.Dense(8), nn.Dense(8)]), forward=forward, backward=backward, **fields)


@pytest.mark.core
def test_counts_bytes_and_measures_every_layer():
    profile = measured([nn.Dense(16), jnp.tanh, nn.Dense(2, use_bias=False)])
    assert profile.names == ("Dense", "tanh", "Dense")
    assert profile.sent == (4 * 8 * 4, 4 * 16 * 4, 4 * 16 * 4)
    assert profile.params == ((8 * 16 + 16) * 4, 0, 16 * 2 * 4)
    assert min(profile.forward) > 0 and min(profile.backward) > 0
    assert profile.device == jax.devices()[0].device_kind and profile.jax == jax.__version__
    assert profile.costs == tuple(f + b for f, b in zip(profile.forward, profile.backward, strict=True))


def test_identical_layers_are_measured_once_but_the_first_is_not_like_the_others(monkeypatch):
    seen = []

    def measure(stage, x, *rest):
        seen.append((stage.first, x.shape))
        return float(len(seen)), 0.0

    monkeypatch.setattr(profiling, "_measure", measure)
    profile = measured([nn.Dense(8), nn.Dense(8), nn.Dense(8), nn.Dense(4), nn.Dense(4), nn.Dense(4)])
    assert seen == [(0, (4, 8)), (1, (4, 8)), (3, (4, 8)), (4, (4, 4))]  # layer 3 has the shape of none before
    assert profile.forward == (1, 2, 2, 3, 4, 4)


def test_forward_and_backward_are_what_is_timed_on_the_device_that_is_given(monkeypatch):
    device, calls = jax.devices()[1], []

    def seconds(call, repeats, seconds):
        result = call()
        found = {**vars(result.outcome), "residual": result.residual}
        calls.append({name for name in ("y", "residual", "params", "sent") if found[name] is not None})
        for leaf in jax.tree.leaves(result):
            assert leaf.devices() == {device}
        return len(calls)

    monkeypatch.setattr(profiling, "_seconds", seconds)
    profile = measured([nn.Dense(8), nn.Dense(4)], device=device)
    assert profile.forward == (1, 3) and profile.backward == (2, 4)
    forward = {"y", "residual"}
    # The first layer sends no gradient down.
    assert calls == [forward, {"params"}, forward, {"params", "sent"}]


def test_a_time_is_the_median_over_repeats_of_several_calls(monkeypatch):
    durations = iter([9.0, 0.5, *[1.0] * 2, *[4.0] * 2, *[2.0] * 2])  # compilation, a first look, three repeats of two
    now = [0.0]

    def call():
        now[0] += next(durations)
        return ()

    monkeypatch.setattr(profiling.time, "perf_counter", lambda: now[0])
    assert profiling._seconds(call, repeats=3, seconds=1.0) == 2.0


def test_measures_trees_integers_and_batch_statistics():
    layers = [
        nn.Embed(5, 4),
        nn.BatchNorm(use_running_average=False),
        lambda x: {"ids": (x > 0).astype(jnp.int32), "x": x},
        lambda tree: tree["x"] * tree["ids"],
    ]
    profile = measured(layers, np.zeros((3, 2), np.int32))
    assert profile.sent == (3 * 2 * 4, 96, 96, 2 * 96)


def test_survives_a_file(tmp_path):
    profile = measured([nn.Dense(16), jnp.tanh])
    profile.save(tmp_path / "profile.json")
    assert jd.Profile.load(tmp_path / "profile.json") == profile


def test_cuts_where_the_slowest_stage_is_fastest():
    layers = [nn.Dense(8) for _ in range(4)]
    profile = dataclasses.replace(measured(layers), forward=(1, 1, 1, 3), backward=(2, 2, 2, 6))
    assert jd.partition(layers, 2, costs=profile)[1].first == 3  # 9 | 9
    assert jd.partition(layers, 2, costs=profile, boundaries=(1,))[1].first == 1  # boundaries win
    # With the forward redone below the last stage: 4 x 3 = 12 | 9, but 4 x 2 = 8 | 12: the same slowest; fewer bytes
    # decide, here all alike, so the earliest.
    assert jd.partition(layers, 2, costs=profile, weights="replay")[1].first == 2
    skewed = dataclasses.replace(profile, sent=(1, 1, 9, 1))
    assert jd.partition(layers, 2, costs=skewed, weights="replay")[1].first == 3


def test_refuses_another_model():
    profile = written()
    profile.check([nn.Dense(8), nn.Dense(8)], X)
    with pytest.raises(ValueError, match=r"of another model, with 2 layers \(Dense, Dense\), but the network has 1"):
        profile.check([nn.Dense(8)])
    with pytest.raises(ValueError, match="of another model: layers of the same names"):
        profile.check([nn.Dense(8), nn.Dense(9)], X)
    with pytest.raises(ValueError, match=r"for inputs float32\[4, 8\], but these are float32\[5, 8\]; measure again"):
        profile.check([nn.Dense(8), nn.Dense(8)], np.zeros((5, 8), np.float32))
    with pytest.raises(ValueError, match="of another model"):
        jd.partition([nn.Dense(8)] * 3, 2, costs=profile)


def test_refuses_another_device():
    with pytest.raises(ValueError, match=r"measured on 'TPU v9', but this is .*; measure again"):
        written(device="TPU v9").check([nn.Dense(8), nn.Dense(8)], X, jax.devices()[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"forward": (1.0,)}, r"forward is \[1.0\]; it needs 2 numbers"),
        ({"backward": (1.0, -1.0)}, r"backward is \[1.0, -1.0\]; it needs 2 numbers of at least 0"),
        ({"forward": (1.0, float("nan"))}, "forward is"),
        ({"forward": (1.0, None)}, "forward is"),
    ],
)
def test_refuses_wrong_numbers(fields, message):
    with pytest.raises(ValueError, match=message):
        written(**fields)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"names": ["a"]}', '{"colour": 1}'])
def test_refuses_a_file_that_holds_no_profile(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no profile"):
        jd.Profile.load(path)


def test_refuses_a_file_with_a_column_missing(tmp_path):
    path = tmp_path / "profile.json"
    written().save(path)
    fields = json.loads(path.read_text())
    del fields["backward"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="backward"):
        jd.Profile.load(path)


def test_names_the_layer_that_does_not_fit():
    with pytest.raises(ValueError, match=r"layer 1 \(<lambda>\) cannot take float32\[4, 3\]"):
        measured([nn.Dense(3), lambda x: x.reshape(7, 7)])


@pytest.mark.parametrize("arguments", [{"layers": []}, {"layers": [nn.Dense(2)], "repeats": 0}])
def test_refuses_nothing_to_measure(arguments):
    with pytest.raises(ValueError, match="write at least one layer, and repeats of at least 1"):
        jd.profile(sample=X, **arguments)
