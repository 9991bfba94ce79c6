"""Checkpoints: exact continuation with everything in flight, and no wrong value from a damaged or foreign one."""

import os
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from jaxdecouple import schedules
from jaxdecouple.checkpoints import CheckpointError, DamagedCheckpoint
from jaxdecouple.checkpoints import metadata as metadata_of
from jaxdecouple.checkpoints.snapshot import Snapshot
from jaxdecouple.network.stack import LayerStack, stack_layers
from tests.oracles.pipelines import KINDS, PRESETS, assert_equal, batch, layer, make
from tests.oracles.saving import BATCHES, DOCUMENT, X, assert_same, full_disk, pipeline_like, restored_from, train


def assert_continues(path, build, *, batches=BATCHES, stop=5, targets=None, prepare=lambda pipeline, state: state):
    """Trains, saves, restores into a new pipeline, which shares what is compiled, and goes on with both."""
    pipeline = build()
    state = prepare(pipeline, train(pipeline, stop=stop, batches=batches))
    jd.save(path, state)
    other = pipeline.with_schedule(pipeline.schedule)
    restored = jd.restore(path, other, batches[0][0], targets)
    assert_same(state, restored)
    for device, *own in zip(other.placement.devices, restored.stages, restored.in_flight, strict=True):
        assert all(leaf.devices() == {device} and leaf.committed for leaf in jax.tree.leaves(own))
    ends = [p.flush(train(p, s, start=stop, batches=batches)) for p, s in ((pipeline, state), (other, restored))]
    assert_same(*ends)
    return state


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_training_goes_on_exactly_in_a_new_pipeline(name, accumulate, tmp_path):
    assert_continues(tmp_path / "run", lambda: make(PRESETS[name](3), accumulate=accumulate))


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_layers(kind, tmp_path):
    def build():
        return jd.Pipeline(jd.partition(KINDS[kind](), 2), schedules.adl(2), optimizer=optax.adam(0.1))

    assert_continues(tmp_path / "run", build)


def test_a_legacy_key(tmp_path):
    state = train(make(schedules.fdg(2)), make(schedules.fdg(2)).init(jax.random.PRNGKey(0), X))
    jd.save(tmp_path / "run", state)
    assert_same(state, jd.restore(tmp_path / "run", make(schedules.fdg(2)), X))


@pytest.mark.parametrize("name", ["fdg", "dgl", "dni"])
def test_labels_of_another_dtype(name, tmp_path):
    batches = [batch(n, labels=np.uint8) for n in range(9)]
    assert_continues(tmp_path / "run", lambda: make(PRESETS[name](2)), batches=batches)


def test_a_smaller_batch_in_flight_and_half_precision(tmp_path):
    batches = [batch(n, size=3 if n == 4 else 4, dtype=jnp.bfloat16) for n in range(9)]
    assert_continues(tmp_path / "run", lambda: make(PRESETS["dsp"](3), dtype=jnp.bfloat16), batches=batches)


def test_double_precision(tmp_path, x64):
    batches = [batch(n, dtype=np.float64, labels=np.int64) for n in range(9)]
    assert_continues(tmp_path / "run", lambda: make(schedules.fdg(3), dtype=jnp.float64), batches=batches)


@pytest.mark.parametrize("stop", [5, 7])  # drained, and filling again
def test_after_a_flush(stop, tmp_path):
    def refill(pipeline, state):
        return train(pipeline, pipeline.flush(state), start=5, stop=stop)

    assert assert_continues(tmp_path / "run", lambda: make(schedules.fdg(3), accumulate=4), prepare=refill).first == 5


def test_measured_gradient_norms(tmp_path):
    pipeline, other = (pipeline_like(optimizer=jd.clars(0.1, 0.05)) for _ in range(2))
    state = pipeline.init(jax.random.key(0), X)
    for given in BATCHES[:4]:
        state, _ = pipeline.step(pipeline.measure_gradient_norms(state, given, sample_size=3), given)
    jd.save(tmp_path / "run", state)
    restored = jd.restore(tmp_path / "run", other, X)
    assert restored.stages[0].gradient_norms is not None
    assert_same(state, restored)
    assert_same(pipeline.step(state, BATCHES[4])[0], other.step(restored, BATCHES[4])[0])


def test_stacks_of_identical_layers(tmp_path):
    def build():
        stacks, _ = stack_layers([layer() for _ in range(3)], X, shortest=2)
        assert isinstance(stacks[0], LayerStack)
        stages = [jd.Stage(stacks), jd.Stage((layer(3),), first=3)]
        return jd.Pipeline(stages, schedules.fdg(2), optimizer=optax.adam(0.1))

    assert_continues(tmp_path / "run", build)


def test_versions_of_weights_that_share_memory_still_do(tmp_path):
    state = train(make(schedules.fdg(3), accumulate=4), stop=9)
    jd.save(tmp_path / "run", state)
    restored = jd.restore(tmp_path / "run", make(schedules.fdg(3), accumulate=4), X)

    def buffers(state):
        leaves = jax.tree.leaves((state.stages[0].params, state.in_flight[0].residuals))
        return len(leaves), len({leaf.unsafe_buffer_pointer() for leaf in leaves})

    assert buffers(restored) == buffers(state)
    assert buffers(state)[0] > buffers(state)[1]


def test_saving_changes_nothing_and_donation_does_not_change_what_is_saved(tmp_path, monkeypatch):
    trained = threading.Event()
    problem = Snapshot.problem
    pipeline, plain = make(schedules.fdg(3)), make(schedules.fdg(3))
    expected = train(plain)
    jd.save(tmp_path / "at once", expected)
    with jd.Checkpoints(tmp_path / "run") as checkpoints:
        state = train(pipeline)
        # The thread looks at the state only after training has reused its memory.
        monkeypatch.setattr(Snapshot, "problem", lambda self: [trained.wait(60), problem(self)][1])
        checkpoints.save(state)
        later = train(pipeline, state, start=5, stop=9)
        jax.block_until_ready(later)
        trained.set()
    at_once, saved = (jd.restore(path, plain, X) for path in (tmp_path / "at once", checkpoints.newest.path))
    assert_same(at_once, saved)
    assert_same(later, train(plain, expected, start=5, stop=9))


def squares(outputs, targets):
    if isinstance(targets, dict):
        return ((outputs - targets["y"]) ** 2 * targets["weight"]).mean()
    return (outputs**2 if targets is None else (outputs - targets) ** 2).mean()


@pytest.mark.parametrize("kind", ["numbers", "none", "several"])
@pytest.mark.parametrize("preset", [schedules.fdg, schedules.ddg])
def test_targets_that_are_no_labels(kind, preset, tmp_path):
    """They are as they wait in the checkpoint; of several arrays, the caller says how they belong together."""
    given = np.ones((4, 3), np.float32)
    targets = {"numbers": given, "none": None, "several": {"y": given, "weight": given}}[kind]
    batches = [(x, targets) for x, _ in BATCHES]
    pipeline, other = (pipeline_like(preset(2), loss=squares, donate=False) for _ in range(2))
    state = train(pipeline, batches=batches)
    jd.save(tmp_path / "run", state)
    if kind == "several" and preset is schedules.fdg:  # under the other, none are in flight
        with pytest.raises(CheckpointError, match=r"several arrays.*restore\(path, pipeline, x, targets\)"):
            jd.restore(tmp_path / "run", other, X)
    restored = jd.restore(tmp_path / "run", other, X, targets if kind == "several" else None)
    assert_same(train(pipeline, state, start=5, batches=batches), train(other, restored, start=5, batches=batches))


def test_targets_of_which_nothing_waits(tmp_path):
    """Of a split backward no targets may be left, but what follows from them: then the caller gives some."""
    given = np.ones((4, 3), np.float32)
    batches = [(x, given) for x, _ in BATCHES]
    optimizer = jd.stagewise(optax.sgd(0.1), accumulate=2)
    pipeline, other = (
        pipeline_like(schedules.zero_bubble(2, 2), loss=squares, optimizer=optimizer, donate=False) for _ in range(2)
    )
    state = train(pipeline, batches=batches)
    jd.save(tmp_path / "run", state)
    with pytest.raises(CheckpointError, match=r"'zero_bubble', which fails.*jd.restore\(path, pipeline, x, targets\)"):
        jd.restore(tmp_path / "run", other, X)
    restored = jd.restore(tmp_path / "run", other, X, given)
    assert_same(train(pipeline, state, start=5, batches=batches), train(other, restored, start=5, batches=batches))


OTHERS = {
    "stages": (lambda: make(schedules.fdg(3)), "has 2 stages, but this pipeline 3"),
    "width": (lambda: pipeline_like(layers=(5, 3)), r"params.*float32\[4\] in the checkpoint, but float32\[5\] here"),
    "cut": (lambda: pipeline_like(layers=(4, 4, 3), boundaries=(2,)), "params.*but not in.*cut it, as it was"),
    "optimizer": (lambda: pipeline_like(optimizer=optax.adam(0.1)), "opt_state.*write the optimizer"),
    "schedule": (lambda: pipeline_like(schedules.ddg(2)), "in_flight.*schedule 'ddg'.*or flush before saving"),
    "weights": (lambda: pipeline_like(weights="latest"), "in_flight.*with weights 'latest'"),
    "local": (lambda: pipeline_like(schedules.dgl(2), auxiliary=nn.Dense(3)), "auxiliary.*learn locally in one"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_pipeline_is_refused(what, tmp_path, fdg):
    jd.save(tmp_path / "run", fdg[1])
    other, match = OTHERS[what]
    with pytest.raises(CheckpointError, match=match) as caught:
        jd.restore(tmp_path / "run", other(), X)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_another_dtype_and_other_batches_are_refused(tmp_path, fdg):
    jd.save(tmp_path / "run", fdg[1])
    with pytest.raises(CheckpointError, match=r"params.*kernel.*\[4, 4\] in the checkpoint, but float32\[7, 4\]"):
        jd.restore(tmp_path / "run", fdg[0], np.ones((4, 7), np.float32))
    with jax.enable_x64(True), pytest.raises(CheckpointError, match="float32.* in the checkpoint, but float64"):
        jd.restore(tmp_path / "run", make(schedules.fdg(2), [nn.Dense(4, param_dtype=float), nn.Dense(3)]), X)


def test_a_drained_state_may_go_on_under_another_schedule(tmp_path, fdg):
    pipeline, state = fdg
    jd.save(tmp_path / "run", pipeline.flush(state))
    for other in (pipeline_like(schedules.ddg(2)), pipeline_like(schedules.gpipe(2, 5))):
        restored = jd.restore(tmp_path / "run", other, X)
        assert_equal(pipeline.flush(state).stages, restored.stages)
        assert jax.tree.leaves(restored.stages[1])[0].devices() == {jax.devices()[1]} != {jax.devices()[0]}
        other.flush(train(other, restored, start=5))


def outcome(path, pipeline, state):
    """Whether a checkpoint is read as it was written, or refused; anything else fails."""
    try:
        restored = jd.restore(path, pipeline, X)
    except CheckpointError:
        return "refused"
    assert_same(state, restored)
    return "the same"


def test_no_damage_goes_unnoticed(tmp_path, fdg):
    path, (pipeline, state) = tmp_path / "run", fdg
    jd.save(path, state, {"epoch": 3})
    outcomes = set()
    for file in [file for file in sorted(path.rglob("*")) if file.is_file()]:
        whole = file.read_bytes()
        changed = [whole[: len(whole) // 2], b"", bytes(len(whole)), None]
        for i in range(0, len(whole), max(1, len(whole) // 5)):
            changed.append(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        for content in changed:
            file.unlink() if content is None else file.write_bytes(content)
            outcomes.add(outcome(path, pipeline, state))
            file.write_bytes(whole)
    assert outcomes == {"refused", "the same"}


DAMAGES = {
    "another tick": ('"tick": 5', '"tick": 4'),
    "another first batch": ('"first": 5', '"first": 4'),
    "another place": ('"start": 4', '"start": 5'),
    "another kind of key": ('"key": "threefry2x32"', '"key": "threegry2x32"'),
    "another name": ('"start": 4', '"stbrt": 4'),
    "other metadata": ('"epoch": 3', '"epoch": 2'),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_changed_document_is_damage(what, tmp_path, fdg):
    path, (pipeline, state) = tmp_path / "run", fdg
    jd.save(path, pipeline.flush(state) if what in ("another tick", "another first batch") else state, {"epoch": 3})
    text = (path / DOCUMENT).read_text()
    assert DAMAGES[what][0] in text
    (path / DOCUMENT).write_text(text.replace(*DAMAGES[what], 1))
    with pytest.raises(DamagedCheckpoint):
        jd.restore(path, pipeline, X)


def test_metadata_and_overwriting(tmp_path, fdg):
    pipeline, state = fdg
    path = tmp_path / "new" / "run"
    jd.save(path, state, {"epoch": [1, 2.5, "ä", None]})
    assert metadata_of(path) == {"epoch": [1, 2.5, "ä", None]}
    with pytest.raises(CheckpointError, match="overwrite=True"):
        jd.save(path, state)
    jd.save(path, pipeline.flush(state), overwrite=True)
    assert metadata_of(path) is None and jd.restore(path, pipeline, X).first == 5
    with pytest.raises(CheckpointError, match="no checkpoint"):
        jd.save(tmp_path, state, overwrite=True)
    for swapped in (lambda: jd.save(state, path), lambda: jd.restore(pipeline, path, X)):
        with pytest.raises(CheckpointError, match=r"the path is a .*; write save\(path, state\)"):
            swapped()
    with pytest.raises(CheckpointError, match="JSON"):
        jd.save(tmp_path / "other", state, {"function": print})
    assert [entry.name for entry in (*tmp_path.iterdir(), *path.parent.iterdir())] == ["new", "run"]


def test_saving_removes_no_other_checkpoint(tmp_path, fdg):
    pipeline, state = fdg
    jd.save(tmp_path / "run.new", state)
    jd.save(tmp_path / "run", state)
    assert_same(state, jd.restore(tmp_path / "run.new", pipeline, X))


def test_what_may_not_be_read_is_not_damaged(tmp_path, fdg, monkeypatch):
    """And is not put aside, so that it is there once it may be."""
    pipeline, state = fdg
    with jd.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state)
    (saved,) = jd.checkpoints.saved_in(tmp_path / "run")
    locked = next(file for file in saved.path.rglob("*") if file.is_file())
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: place != locked and allowed(place, mode))
    for act in (lambda: jd.restore(saved.path, pipeline, X), lambda: jd.checkpoints.metadata(saved.path)):
        with pytest.raises(jd.CheckpointError, match=r"may not be read .*; allow this user to") as refused:
            act()
        assert not isinstance(refused.value, jd.checkpoints.DamagedCheckpoint)
    with jd.Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(jd.CheckpointError, match="may not be read"):
        restored_from(checkpoints, pipeline)
    assert saved.path.is_dir()


def test_a_write_that_fails_leaves_nothing(tmp_path, fdg):
    pipeline, state = fdg
    with full_disk(), pytest.raises(CheckpointError, match="cannot be written"):
        jd.save(tmp_path / "run", state)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="cannot be written"):
        jd.save("/dev/null/run", state)
