"""A training run that was killed, stopped or broken ends with the same bytes as one that was left alone."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdecouple as jd
from experiments.measure import kills
from experiments.training import auto, run_directory, session
from experiments.training import trainer as training
from experiments.training.config import Config, Saving
from experiments.training.progress import NonFiniteLoss
from experiments.training.stopping import Stopped
from experiments.training.trainer import Trainer
from jaxdecouple.checkpoints import files

ROOT = pathlib.Path(__file__).parents[2]
SMALL = Config(
    model="mlp", method="fdg", num_stages=2, boundaries=(2,), epochs=2, batch_size=200, learning_rate=0.05
)  # 8 batches an epoch
OFTEN = Saving(save_every=3, keep=2)
CASES = {
    "fdg": {},
    "adl, groups under way": {"method": "adl", "accumulate": 3},
    "dgl": {"method": "dgl", "epochs": 1},
    "probes": {"method": "features_replay", "diagnose_every": 5},
    "gradient norms": {"optimizer": "clars", "accumulate": 2, "norm_sample": 50},
    "auto": {"method": "auto", "boundaries": (), "epochs": 1},
    "streamed": {"epochs": 1, "batch_size": 7, "image_size": 8},
}


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch):
    """Pictures are tested elsewhere."""
    for name in ("curves", "schedules", "diagnostics"):
        monkeypatch.setattr(session.plots, name, lambda *args: None)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run of SMALL that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    session.train(SMALL, workdir, saving=OFTEN)
    return workdir


def quick_choice(*args, choose=auto.choose, **settings):
    """Measured once, for no time."""
    profile = jd.profile(args[0], args[2], repeats=1, seconds=0.0)
    return choose(*args, profile=profile, repeats=1, seconds=0.0, **settings)


class Killed(BaseException):
    """Ends a run between two operations, as SIGKILL would, but for what was under way in the background."""


@pytest.fixture
def pictures(tmp_path):
    """A folder of image files to be streamed."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 6)):
        for index in range(count):
            path = tmp_path / "pictures" / part / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def config_of(case, pictures):
    config = dataclasses.replace(SMALL, **CASES[case])
    return dataclasses.replace(config, dataset=f"imagenet:{pictures}") if case == "streamed" else config


def run(config, workdir, saving=OFTEN):
    return session.train(config, workdir, saving=saving)


def die_at(monkeypatch, tick, action):
    """Has ``action(state)`` called in place of the step of a tick, once."""
    step, calls = Trainer.step, []

    def dying(self, state, batch, diagnostics=None):
        if state.tick == tick and not calls:
            calls.append(tick)
            state = action(state) or state
        return step(self, state, batch, diagnostics)

    monkeypatch.setattr(Trainer, "step", dying)


def assert_same_end(one, other, config):
    names = [session.METRICS, session.SUMMARY, session.VARIABLES, session.ABOUT]
    names += ["diagnostics.jsonl"] * bool(config.diagnose_every)
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    documents = [jd.checkpoints.document(path / "checkpoints" / "final") for path in (one, other)]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_like_one_that_was_left_alone(case, pictures, tmp_path, monkeypatch):
    config = config_of(case, pictures)
    if config.method == "auto":
        monkeypatch.setattr(training.auto, "choose", quick_choice)
    run(config, tmp_path / "alone")
    if config.method == "auto":  # what was measured once is not measured again
        (tmp_path / "killed").mkdir()
        for name in ("config.json", "cut.json"):
            shutil.copy(tmp_path / "alone" / name, tmp_path / "killed" / name)
        monkeypatch.setattr(training.auto, "choose", lambda *args, **settings: pytest.fail("measured again"))
    ticks = 6 if config.epochs == 1 else 13  # in the second epoch; the newest checkpoint is older

    def die(state):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        die_at(patched, ticks - 1, die)
        run(config, tmp_path / "killed")
    saved = jd.checkpoints.saved_in(tmp_path / "killed" / "checkpoints")
    assert saved and saved[-1].tick < ticks
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 7, "tic')  # killed while it wrote
    run(config, tmp_path / "killed")
    assert_same_end(tmp_path / "alone", tmp_path / "killed", config)


def test_a_checkpoint_stays_where_a_failure_comes_before_this_process_knows_of_it(tmp_path, monkeypatch):
    """As when another process is killed while both save."""

    def fail(state):
        raise ValueError("another process is gone")

    monkeypatch.setattr(jd.Checkpoints, "newest", None)
    die_at(monkeypatch, 7, fail)
    with pytest.raises(ValueError, match="is gone"):
        run(SMALL, tmp_path / "run")
    assert [saved.tick for saved in jd.checkpoints.saved_in(tmp_path / "run" / "checkpoints")] == [3, 6]


def test_runs_killed_at_random_moments(tmp_path):
    """The program that kills a hundred, here once."""
    case = kills.Case(dataclasses.replace(SMALL, **CASES["adl, groups under way"]), 1)
    kills.run_cases([case], tmp_path, jobs=1, seed=int(time.time()))
    assert case.exact and len(case.resumed_at) == 1


def test_all_methods_are_killed():
    hundred = kills.cases(100)
    assert len(hundred) == 4 * len(kills.WITH_AUTO) and sum(case.kills for case in hundred) == 100
    assert all(case.config.diagnose_every for case in hundred)
    assert {case.config.method for case in kills.cases(9, processes=2, methods=("fdg", "auto"))} == {"fdg"}


def test_files_that_differ_are_named(alone, tmp_path):
    other = shutil.copytree(alone, tmp_path / "other")
    (other / "speed.json").write_text("[]")
    assert kills.differences(alone, other) == []
    (other / "curves.png").write_text("none")
    (other / session.METRICS).unlink()
    shutil.rmtree(other / "checkpoints" / "final")
    shutil.copytree(jd.checkpoints.saved_in(alone / "checkpoints")[0].path, other / "checkpoints" / "final")
    assert kills.differences(alone, other) == ["curves.png", session.METRICS, "checkpoints"]


def test_what_auto_wrote_is_all_there_after_a_kill(tmp_path, monkeypatch):
    """Whatever file it came before: the last one written says that nothing is measured again."""
    config = dataclasses.replace(SMALL, **CASES["auto"])
    monkeypatch.setattr(training.auto, "choose", quick_choice)
    files = {*run_directory.MEASURED, run_directory.LAYOUT}

    write = session.RunDirectory.file
    for last in sorted(files):

        def file(self, name, last=last):
            if name == last:
                raise Killed
            return write(self, name)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(session.RunDirectory, "file", file)
            run(config, tmp_path / "run")
        assert not (tmp_path / "run" / run_directory.LAYOUT).exists()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        die_at(patched, 0, lambda state: (_ for _ in ()).throw(Killed()))
        run(config, tmp_path / "run")
    assert files <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_probe_under_way_is_not_lost_at_a_stop(tmp_path, monkeypatch, capfd):
    config = dataclasses.replace(SMALL, **CASES["probes"], epochs=1)
    run(config, tmp_path / "alone")
    with monkeypatch.context() as patched, pytest.raises(Stopped) as stopped:
        die_at(patched, 0, lambda state: os.kill(os.getpid(), signal.SIGTERM))  # the first batch is followed
        run(config, tmp_path / "run")
    assert "after 1 batches" not in str(stopped.value) and "all of them are saved" in str(stopped.value)
    run(config, tmp_path / "run")
    assert_same_end(tmp_path / "alone", tmp_path / "run", config)


def test_a_stop_does_not_wait_for_ever(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="features_replay", diagnose_every=1)  # a probe is always under way
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        die_at(patched, 1, lambda state: os.kill(os.getpid(), signal.SIGTERM))
        run(config, tmp_path / "run")
    assert 2 < jd.checkpoints.saved_in(tmp_path / "run" / "checkpoints")[-1].tick < 10


def test_a_run_that_may_replace_what_was_there_says_how_to_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stopped, match="the same command without --overwrite goes on"):
        die_at(patched, 1, lambda state: os.kill(os.getpid(), signal.SIGTERM))
        session.train(SMALL, tmp_path / "run", overwrite=True)


def test_a_damaged_test_image_costs_no_epoch(pictures, tmp_path):
    config = dataclasses.replace(config_of("streamed", pictures), epochs=2)
    run(config, tmp_path / "alone")
    path = pictures / "val" / "class1" / "5.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(training.BrokenData, match=r"5\.png cannot be decoded .*after 6 batches, 0 whole epochs"):
        run(config, tmp_path / "run")
    path.write_bytes(whole)
    run(config, tmp_path / "run")
    assert_same_end(tmp_path / "alone", tmp_path / "run", config)


def test_a_picture_costs_no_run(alone, tmp_path, monkeypatch, capfd):
    def unable(*args):
        raise RuntimeError("no such font")

    monkeypatch.setattr(session.plots, "curves", unable)
    run(SMALL, tmp_path / "run")
    assert "warning: a picture could not be drawn (RuntimeError: no such font)" in capfd.readouterr().err
    assert_same_end(alone, tmp_path / "run", SMALL)


def test_a_run_that_is_refused_before_its_first_tick_leaves_nothing(alone, tmp_path):
    config = dataclasses.replace(SMALL, init_from=str(alone))
    wider = dataclasses.replace(config, model="cnn")
    with pytest.raises(ValueError, match="build the model that they are of"):
        run(wider, tmp_path / "run")
    assert session.standing(tmp_path / "run", config) is session.Standing.NEW
    with pytest.raises(ValueError, match="init_from is .*, in the workdir that --overwrite would empty"):
        session.train(dataclasses.replace(config, seed=1), alone, overwrite=True)
    assert (alone / "summary.json").is_file()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_after_the_tick_and_saves(signum, alone, tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signum)
    if signum == signal.SIGHUP:
        signal.signal(signum, signal.SIG_DFL)  # under nohup it would be ignored
    try:
        with monkeypatch.context() as patched, pytest.raises(Stopped) as stopped:
            die_at(patched, 4, lambda state: os.kill(os.getpid(), signum))
            run(SMALL, tmp_path / "stopped", Saving(save_every=0))
        assert signal.getsignal(signum) == (signal.SIG_DFL if signum == signal.SIGHUP else before)
    finally:
        signal.signal(signum, before)
    assert f"{stopped.value}".startswith(
        f"stopped by {signal.Signals(signum).name} after 5 batches; all of them are saved"
    )
    assert stopped.value.signum == signum and "once more to exit at once" in capfd.readouterr().err
    assert [saved.tick for saved in jd.checkpoints.saved_in(tmp_path / "stopped" / "checkpoints")] == [5]
    run(SMALL, tmp_path / "stopped")
    assert "going on after 5 of 16 batches" in capfd.readouterr().out
    assert_same_end(alone, tmp_path / "stopped", SMALL)


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(alone, tmp_path, monkeypatch):
    def poison(state):
        first = state.stages[0]
        broken = first.replace(params={**first.params, "000_DenseLayer": _nan(first.params["000_DenseLayer"])})
        return state.replace(stages=(broken, *state.stages[1:]))

    with monkeypatch.context() as patched:
        die_at(patched, 7, poison)
        with pytest.raises(
            NonFiniteLoss, match=r"batch 7, computed by stage 1 in tick 8.*last good checkpoint, of tick 6"
        ):
            run(SMALL, tmp_path / "run", Saving(save_every=2, keep=1))
    (saved,) = jd.checkpoints.saved_in(tmp_path / "run" / "checkpoints")
    assert saved.tick == 6
    run(SMALL, tmp_path / "run")  # it was no fault of the settings: the same command goes on
    assert_same_end(alone, tmp_path / "run", SMALL)


def _nan(tree):
    return {
        name: _nan(value) if isinstance(value, dict) else jnp.full_like(value, np.nan) for name, value in tree.items()
    }


def test_a_full_disk_does_not_end_the_training(alone, tmp_path, monkeypatch, capfd):
    save, failures = files._save, iter([False, True, True])

    def full(path, arrays, document):
        if next(failures, False):
            path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
            raise OSError(28, "No space left on device")
        save(path, arrays, document)

    monkeypatch.setattr(files, "_save", full)
    run(SMALL, tmp_path / "full", Saving(save_every=2, keep=9))
    warnings = capfd.readouterr().err
    assert warnings.count("No space left on device); free some space") == 2
    assert "training goes on, and the newest is that of tick 2" in warnings
    left = {path.name for path in (tmp_path / "full" / "checkpoints").iterdir()}
    assert "tick-00000004" not in left and not any("tmp" in name for name in left) and "tick-00000012" in left
    assert_same_end(alone, tmp_path / "full", SMALL)


def test_a_damaged_checkpoint_is_passed_over(alone, tmp_path, monkeypatch, capfd):
    def die(state):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        die_at(patched, 14, die)
        run(SMALL, tmp_path / "run")
    newest = jd.checkpoints.saved_in(tmp_path / "run" / "checkpoints")[-1]
    largest = max((path for path in newest.path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    run(SMALL, tmp_path / "run")
    assert f"put aside as damaged-{newest.path.name}" in capfd.readouterr().err
    assert_same_end(alone, tmp_path / "run", SMALL)


def test_other_data_are_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)

    def write(labels):
        images = rng.integers(0, 256, (60, 8, 8, 1), np.uint8)
        part = {"x_train": images, "y_train": labels, "x_test": images[:10], "y_test": labels[:10]}
        np.savez(tmp_path / "data.npz", **part)

    write(np.arange(60) % 3)
    config = dataclasses.replace(SMALL, dataset=f"npz:{tmp_path / 'data.npz'}", batch_size=20)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        die_at(patched, 2, lambda state: os.kill(os.getpid(), signal.SIGTERM))
        run(config, tmp_path / "run")
    write(np.arange(60) % 3)
    with pytest.raises(jd.CheckpointError, match="was trained on other data than data are now.*put back the data"):
        run(config, tmp_path / "run")


def test_probes_are_not_cut_in_two(tmp_path):
    """A save that is due waits until no batch is followed."""
    config = dataclasses.replace(SMALL, **CASES["probes"], epochs=1)
    run(config, tmp_path / "run", Saving(save_every=1, keep=99))
    ticks = [saved.tick for saved in jd.checkpoints.saved_in(tmp_path / "run" / "checkpoints")]
    followed = {tick + 1 for tick in range(0, 16, 5)}  # the ticks after which a followed batch is in flight
    assert ticks and not followed & set(ticks)


def test_weights_of_another_run_begin_one(alone):
    other = dataclasses.replace(SMALL, method="ddg", num_stages=4, boundaries=(), init_from=str(alone))
    trainer = Trainer(other, other.load_data(), kills.devices.of_stages(4))
    begun = jd.export_variables(trainer.pipeline, trainer.init(3))
    kept = jd.read_variables(alone / session.VARIABLES)
    assert json.dumps(_lists(begun)) == json.dumps(_lists(kept))
    wider = dataclasses.replace(other, model="cnn")
    with pytest.raises(ValueError, match="build the model that they are of"):
        Trainer(wider, wider.load_data(), kills.devices.of_stages(4)).init(0)


def _lists(tree):
    return {
        name: _lists(value) if isinstance(value, dict) else np.asarray(value).tolist() for name, value in tree.items()
    }
