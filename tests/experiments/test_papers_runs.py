"""One small row of every kind runs, in the shortest way there is."""

import dataclasses
import functools
import statistics

import jax
import numpy as np
import pytest

from experiments.papers import adl, program
from experiments.papers.kinds import diagnostics, predictions, speed, stragglers, training
from experiments.papers.kinds.slow_devices import SlowDevices, Slowness
from experiments.papers.scales import Scale
from experiments.papers.store import Job, Store
from experiments.papers.table import DIVERGES
from experiments.training.saving import Saver
from jaxdecouple import schedules
from jaxdecouple.diagnostics import DirectionRecord, GradientRecord

TINY = {"model": "mlp", "image_size": 8, "batch_size": 8, "num_classes": 10, "repeats": 1, "seconds": 0.02}
TRAINING = {
    **{"model": "resnet20", "dataset": "cifar10", "epochs": 300, "decay_epochs": (150, 225, 275), "batch_size": 128},
    **{"method": "fdg", "num_stages": 2, "beta": 0.5, "warmup_epochs": 3.0, "warmup_rate": 0.01},
}


def results(measure, settings, seeds=(0,)):
    found = {}
    measure.run(settings, seeds, found.__setitem__)
    return found


def small(config_of, epochs, **changes):
    return dataclasses.replace(config_of(TRAINING, Scale("small", epochs=epochs)), model="mlp", **changes)


def test_a_training_row():
    found = results(training.FINAL_ERROR, small(training.config_of, epochs=1), seeds=(0, 1))
    assert list(found) == [0, 1] and found[0]["test_error"] != found[1]["test_error"]
    assert len(found[0]["records"]) == 1 and found[0]["staleness"] == ((1,), (0,))
    (column,) = training.BEST_ACCURACY.columns
    assert column.value(found[0]) == pytest.approx(100 - 100 * found[0]["records"][0]["test_error"], abs=1e-3)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    config = small(training.config_of, epochs=3)
    job = Job(training.FINAL_ERROR, config)
    between_ticks, restored = Saver.between_ticks, []

    def go(store):
        program.run_row("a", job, (0, 1), store, lambda text: None, keep_weights=True)
        found = store.results(job, (0, 1))
        for result in found.values():
            timed = ("seconds", "images_per_second")
            result["records"] = [{k: v for k, v in record.items() if k not in timed} for record in result["records"]]
            del result["seconds"]
        return found, [
            store.places(job, s, keep_weights=True).weights.joinpath("model.msgpack").read_bytes() for s in (0, 1)
        ]

    def killed(self, state, progress):
        between_ticks(self, state, progress)
        if state.tick == 50:  # in the third epoch; the second ended with the least error so far, and was saved
            raise KeyboardInterrupt

    def restore(self, start=Saver.start):
        restored.append(start(self))
        return restored[-1]

    store = Store(tmp_path / "killed")
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "between_ticks", killed)
        with pytest.raises(KeyboardInterrupt):
            go(store)
    monkeypatch.setattr(Saver, "start", restore)
    found = go(store)
    assert [start and start.state.tick > 0 for start in restored] == [True, None]  # seed 1 had not begun
    assert not list((tmp_path / "killed" / "running").iterdir())
    assert found == go(Store(tmp_path / "whole"))
    assert found[1][0] != found[1][1]


def test_a_divergence_is_a_result():
    config = small(training.config_of, epochs=2, learning_rate=1e30, warmup_epochs=0.0, warmup_rate=0.0)
    (found,) = results(training.FINAL_ERROR, config).values()
    assert found["diverged"] and "the loss of batch" in found["message"]
    measures = (training.FINAL_ERROR, training.BEST_ERROR, training.BEST_ACCURACY, diagnostics.SIGMA)
    assert {column.value(found) for measure in measures for column in measure.columns} == {DIVERGES}


def test_a_loss_of_guessing_at_the_end_is_a_divergence():
    """As the papers' crossed circles: the rate is so small that nothing is learnt."""
    config = small(training.config_of, epochs=1, learning_rate=1e-9, warmup_epochs=0.0, warmup_rate=0.0, beta=1.0)
    (found,) = results(training.FINAL_ERROR, config).values()
    assert not found["diverged"] and found["chance_loss"] == pytest.approx(np.log(10))
    for measure in (training.FINAL_ERROR, training.BEST_ACCURACY, training.TOP_1_AND_5):
        assert {column.value(found) for column in measure.columns} == {DIVERGES}


def test_top_5_errors():
    config = small(training.config_of, epochs=1, learning_rate=0.02, warmup_epochs=0.0, warmup_rate=0.0)
    first, fifth = training.TOP_1_AND_5.columns
    (found,) = results(training.TOP_1_AND_5, config).values()
    trainer = training.trainer_of(config)
    final = trainer.run(0)
    images, labels = (np.concatenate(parts) for parts in zip(*trainer.test_batches(), strict=True))
    logits = np.asarray(trainer.pipeline.predict(final.state, images))
    rank = (logits > np.take_along_axis(logits, labels[:, None], 1)).sum(1)  # how many are larger than the label's
    assert fifth.value(found) == pytest.approx(100 * np.mean(rank >= 5))
    assert 0 < fifth.value(found) < first.value(found) == pytest.approx(100 * np.mean(rank >= 1))


def test_a_row_with_diagnostics(tmp_path):
    config = small(diagnostics.direction_config_of, epochs=2, beta=1.0)
    assert config.diagnose_every == diagnostics.EVERY["small"] and config.direction_batches == 0
    (found,) = results(diagnostics.SIGMA, config).values()
    for measure in (diagnostics.SIGMA, diagnostics.GRADIENT_DIFFERENCE):
        assert all(isinstance(column.value(found), float) for column in measure.columns)
    assert {type(record) for record in diagnostics.records(found)} == {DirectionRecord, GradientRecord}
    diagnostics.SIGMA.draw(found, tmp_path / "row.png", "row")
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")


def test_speed_is_measured_and_predicted():
    (found,) = results(speed.SPEED, {**TINY, "method": "fdg", "num_stages": 2}).values()
    assert found["speedup"] > 0 and found["predicted_speedup"] > 0 and found["devices"] == 2
    assert 0 < found["lock_step_speedup"] <= found["predicted_speedup"] * (1 + 1e-9)
    (busy,) = (column.value(found) for column in speed.SPEED.columns if "busy" in column.header)
    assert busy == ", ".join(f"{100 * part:.0f}" for part in found["lock_step_busy"])
    (alone,) = results(speed.SPEED, {**TINY, "method": "backprop", "num_stages": 1}).values()
    assert alone["predicted_speedup"] == 1


def test_data_parallelism_is_predicted_from_what_one_device_does(monkeypatch):
    shared = {**TINY, "method": "backprop", "num_stages": 1, "group_size": 2}
    (found,) = results(speed.SPEED, shared).values()
    assert found["devices"] == 2 and found["speedup"] > 0 and 0 < found["predicted_speedup"] != 1
    sizes = []
    monkeypatch.setattr(speed, "_measure", lambda *entrants: sizes.extend(one.batch_size for one in entrants[:3]) or {})
    results(speed.SPEED, shared)
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize(("name", "images"), [("K4/adl", 8), ("K4/gpipe", 2)])
def test_adl_takes_a_whole_batch_per_tick_where_speed_is_measured(name, images):
    """ADL, section 6.2; GPipe's rounds split theirs."""
    (row,) = (row for row in adl.TABLE3.rows if row.name == name)
    entrant = speed.pipelined({**adl.TABLE3.settings_of(row), **TINY, "num_stages": 2})
    assert entrant.batch_size == images and entrant.accumulate == 4
    jax.clear_caches()


def test_memory_is_that_of_all_devices():
    (found,) = results(speed.MEMORY, {**TINY, "method": "ddg", "num_stages": 2}).values()
    assert len(found["peak_bytes"]) == 2
    assert found["ratio"] == sum(found["peak_bytes"]) / sum(found["baseline_bytes"]) > 1


def test_ideal_speeds_and_staleness():
    (found,) = results(predictions.IDEAL_SPEEDUP, {"method": "fdg", "num_stages": 4}).values()
    assert found["speedup"] == found["lock_step_speedup"] == pytest.approx(4)
    (found,) = results(predictions.IDEAL_SPEEDUP, {"method": "dgl", "num_stages": 4, "auxiliary": 0.1}).values()
    assert found["lock_step_speedup"] == pytest.approx(1 / (1 / 4 + 0.1))
    settings = {"method": "adl", "num_stages": 8, "accumulate": 4, "stage": 0}
    assert results(predictions.STALENESS, settings)[0]["staleness"] == 3.5  # eq. 17: 2 (8 - 1) / 4


def test_simulated_stragglers():
    """DSP, Table 2: longer queues, less harm; not below the mean."""
    presets = [schedules.features_replay(3), schedules.dsp((1, 1, 0), (4, 2, 0)), schedules.dsp((3, 3, 0), (10, 5, 0))]
    slowness = 1 + (np.random.default_rng(0).random((2100, 3)) < 1 / 3)
    replay, short, long = (stragglers.simulated_slowdown(preset, slowness) for preset in presets)
    assert replay > short > long > 100 / 3 - 5
    # In lock-step a tick takes 4 forwards, 8 if one of the two lower stages is slow, and 6 if the last one is alone.
    mean = 5 / 9 * 8 + 4 / 27 * 6 + 8 / 27 * 4
    lock_step = stragglers.simulated_slowdown(presets[2], slowness, lock_step=True)
    assert lock_step == pytest.approx(100 * (mean / 4 - 1), abs=3)
    # Never more than the slowness itself, however devices wait: so 359 % of 150 % (Features Replay) has other reasons.
    always = np.full((2100, 3), 2.5)
    assert stragglers.simulated_slowdown(presets[0], always, lock_step=True) == pytest.approx(150)


def test_measured_stragglers():
    settings = {"method": "dsp", "num_stages": 2, "p": (1, 0), "m": (2, 0), "percent": 300, "probability": 0.5}
    (found,) = results(stragglers.SLOWDOWN, {**settings, **stragglers.TINY, "ticks": 24, "emulated": True}).values()
    assert found["measured"] > 50 and found["simulated"] > 100 and found["lock_step"] > 100


def test_slow_devices_wait_at_once_and_not_the_host():
    settings = {"method": "fdg", "num_stages": 2, **stragglers.TINY}
    entrant = speed.pipelined(settings)
    seconds = [{"forward": 0.01, "backward": 0.03, "backward_forward": 0.04}, {"train": 0.03}]
    slow = SlowDevices(entrant.pipeline, Slowness(seconds, 0.0, 0.5, emulated=True), np.random.default_rng(0))
    entrant.loop.step = functools.partial(entrant.pipeline.step, observer=slow)
    entrant.loop.run(4)
    rates = [entrant.loop.images_per_second(10) for _ in range(3)]
    assert 0.04 <= settings["batch_size"] / statistics.median(rates) < 0.065  # one after the other it would be 0.07
    jax.clear_caches()
