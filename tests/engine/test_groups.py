"""Stages on groups of devices compute what stages on single devices compute."""

import jax
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple.engine import packing, placement
from tests.oracles.grouped import PRESETS, batches, fresh, pipeline, trained


def numbers(state):
    return [(stage.params, stage.model_state, stage.opt_state) for stage in state.stages]


def assert_close(tree, other, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), tree, other)


def groups():
    devices = jax.devices()
    return [devices[:2], devices[2:4]]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "zero_bubble"])  # test_zero_bubble has it
def test_groups_equal_single_devices(name, x64):
    data = [*batches(7), *batches(1, size=5)]  # a last batch that the group does not divide
    single = trained(pipeline(PRESETS[name], jax.devices()[:2]), data)
    grouped = trained(pipeline(PRESETS[name], groups()), data)
    assert_close(numbers(grouped), numbers(single))
    for k, stage in enumerate(grouped.stages):
        assert {leaf.sharding.device_set == set(groups()[k]) for leaf in jax.tree.leaves(stage)} == {True}


def test_large_parameters_can_be_split_over_a_group(x64, monkeypatch):
    for module in (packing, placement):
        monkeypatch.setattr(module, "LARGE", 32 * 8)  # nearly all
    single = trained(pipeline(PRESETS["fdg"], jax.devices()[:2]), batches(6))
    sharded = trained(pipeline(PRESETS["fdg"], groups(), params="sharded"), batches(6))
    assert_close(numbers(sharded), numbers(single))
    owned = [stage.packed_params for stage in sharded.stages] + [stage.packed_opt_state for stage in sharded.stages]
    for packed in owned:
        shares = [array.addressable_shards[0].data.size / array.size for array in packed.arrays]
        assert 0.5 in shares, shares


def test_a_mesh_is_a_list_of_groups(x64):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2).T, ("data", "stage"))
    made = fresh(PRESETS["fdg"], mesh)
    assert [list(group) for group in made.placement.groups] == groups()


def test_a_checkpoint_is_restored_on_another_group_size(tmp_path, x64):
    state = trained(pipeline(PRESETS["fdg"], groups()), batches(4))
    jd.save(tmp_path / "it", state)
    alone = pipeline(PRESETS["fdg"], jax.devices()[:2])
    assert_close(numbers(jd.restore(tmp_path / "it", alone, batches(1)[0][0])), numbers(state), atol=0)


def test_prediction_and_evaluation_on_groups(x64):
    data = batches(3)
    state = trained(pipeline(PRESETS["ddg"], jax.devices()[:2]), data)
    single = pipeline(PRESETS["ddg"], jax.devices()[:2])
    grouped = pipeline(PRESETS["ddg"], groups())
    moved = state.replace(stages=tuple(grouped.placement.own(stage, k) for k, stage in enumerate(state.stages)))
    assert_close(grouped.predict(moved, data[0][0][:5]), single.predict(state, data[0][0][:5]))
    assert_close(tuple(grouped.evaluate(moved, data)), tuple(single.evaluate(state, data)))


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (lambda d: [d[:2], d[2:3]], "the groups have 2, 1 devices; write groups of one size"),
        (lambda d: [d[:2]], "got 1 devices for 2 stages"),
        (lambda d: [[d[0], d[0]], d[1:3]], "a group has a device twice"),
        (lambda d: [[], []], "the groups have 0, 0 devices"),
        (lambda d: jax.sharding.Mesh(np.array(d[:4]).reshape(2, 2), ("pipe", "data")), "the mesh has axes pipe, data"),
    ],
)
def test_groups_that_cannot_be_are_refused(devices, says):
    with pytest.raises(ValueError, match=says):
        fresh(PRESETS["fdg"], devices(jax.devices()))


def test_batches_and_rules_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="batches have 7 examples, which groups of 2 devices do not divide"):
        pipeline(PRESETS["fdg"], groups()).init(jax.random.key(0), batches(1, size=7)[0][0])
    with pytest.raises(ValueError, match="params is 'split'; write one of replicated, sharded, annotated"):
        pipeline(PRESETS["fdg"], groups(), params="split")
