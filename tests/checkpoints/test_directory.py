"""A directory of checkpoints keeps the newest and the best, and passes over what is damaged."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdecouple as jd
from jaxdecouple.checkpoints import CheckpointError
from tests.oracles.saving import BATCHES, DOCUMENT, X, assert_same, full_disk, restored_from


def ticks(path):
    return sorted(int(entry.name[5:]) for entry in path.iterdir() if entry.name.startswith("tick-"))


def states_of(pipeline, count=6):
    state = pipeline.init(jax.random.key(0), X)
    return [state := pipeline.step(state, given)[0] for given in BATCHES[:count]]


def test_the_newest_and_the_best_are_kept(tmp_path, fdg):
    states, scores = states_of(fdg[0]), [3.0, 0.5, float("nan"), 0.5, 2.0, None]
    with jd.Checkpoints(tmp_path, keep=1) as checkpoints:
        for state, score, kept in zip(states, scores, [{1}, {2}, {2, 3}, {4}, {4, 5}, {4, 6}], strict=True):
            checkpoints.save(state, lambda state=state: {"epoch": state.tick}, score=score)
            checkpoints.save(state, {"epoch": "saved twice"}, score=0.0)
            checkpoints.wait()
            assert set(ticks(tmp_path)) == kept
    with jd.Checkpoints(tmp_path, keep=1) as checkpoints:
        assert (checkpoints.newest.tick, checkpoints.best.tick, checkpoints.best.score) == (6, 4, 0.5)
        state, metadata = restored_from(checkpoints, fdg[0])
    assert metadata == {"epoch": 6}
    assert_same(states[-1], state)


@pytest.mark.parametrize(("scores", "best"), [((float("nan"), 0.5), 2), ((np.float32(0.5), 0.7), 1)])
def test_scores_that_are_no_numbers_or_of_numpy(scores, best, tmp_path, fdg):
    with jd.Checkpoints(tmp_path) as checkpoints:
        for state, score in zip(states_of(fdg[0], 2), scores, strict=True):
            checkpoints.save(state, score=score)
        checkpoints.wait()
        assert checkpoints.best.tick == best


@pytest.mark.parametrize("damage", ["gone", "empty", "a name", "no data"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(damage, tmp_path, fdg):
    states, said = states_of(fdg[0], 3), []
    (tmp_path / "tick-00000009.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "notes").write_text("")
    with jd.Checkpoints(tmp_path, report=said.append) as checkpoints:
        assert restored_from(checkpoints, fdg[0]) is None and checkpoints.newest is None
        for state in states:
            checkpoints.save(state)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes", *(f"tick-0000000{n}" for n in (1, 2, 3))]

    def hurt(path):
        document = path / DOCUMENT
        if damage == "no data":
            (path / "state" / "manifest.ocdbt").unlink()
        elif damage == "gone":
            document.unlink()
        else:
            document.write_text("" if damage == "empty" else document.read_text().replace('"score"', '"scare"'))

    hurt(tmp_path / "tick-00000003")
    with jd.Checkpoints(tmp_path, report=said.append) as checkpoints:
        state, _ = restored_from(checkpoints, fdg[0])
        assert_same(states[1], state)
        assert len(said) == 1 and "damaged-tick-00000003" in said[0]
        checkpoints.save(states[2])
        checkpoints.wait()
        assert ticks(tmp_path) == [1, 2, 3] and (tmp_path / "damaged-tick-00000003").is_dir()
        for n in (1, 2, 3):
            hurt(tmp_path / f"tick-0000000{n}")
        with pytest.raises(CheckpointError, match="no checkpoint in .* is whole"):
            restored_from(checkpoints, fdg[0])


def test_what_cannot_be_saved_is_reported_and_those_before_are_kept(tmp_path, fdg):
    states, said = states_of(fdg[0]), []
    below, last = states[1].stages
    nan = states[1].replace(stages=(below.replace(params=jax.tree.map(lambda w: w * jnp.nan, below.params)), last))

    def refuse():
        raise CheckpointError("the loss is not finite")

    with jd.Checkpoints(tmp_path / "run", report=said.append) as checkpoints:
        for state, metadata in ((states[0], None), (nan, None), (states[2], refuse), (states[3], {"f": print})):
            checkpoints.save(state, metadata)
        checkpoints.wait()
        with full_disk():
            checkpoints.save(states[4])
            checkpoints.wait()
        assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["tick-00000001"]
        checkpoints.save(states[5])
        checkpoints.wait()
        assert ticks(tmp_path / "run") == [1, 6]
    expected = ("params.*is not finite", "loss is not finite", "JSON", "cannot be written")
    for sentence, words in zip(said, expected, strict=True):
        assert re.search(words, sentence) and "the newest is that of tick 1" in sentence
    assert_same(states[5], restored_from(jd.Checkpoints(tmp_path / "run"), fdg[0])[0])
    with pytest.raises(CheckpointError, match="cannot be written"):
        jd.Checkpoints(tmp_path / "run" / "tick-00000001" / DOCUMENT)
