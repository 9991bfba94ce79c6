"""One small row of every kind runs, in the shortest way there is."""

import dataclasses
import functools
import statistics

import jax
import numpy as np
import pytest

from experiments.papers.kinds import diagnostics, memory, predictions, speed, stragglers, training
from experiments.papers.kinds.slow_devices import SlowDevices, Slowness
from experiments.papers.table import DIVERGES, Scale
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


def test_a_divergence_is_a_result():
    config = small(training.config_of, epochs=2, learning_rate=1e30, warmup_epochs=0.0, warmup_rate=0.0)
    (found,) = results(training.FINAL_ERROR, config).values()
    assert found["diverged"] and "the loss of batch" in found["message"]
    measures = (training.FINAL_ERROR, training.BEST_ERROR, training.BEST_ACCURACY, diagnostics.SIGMA)
    assert {column.value(found) for measure in measures for column in measure.columns} == {DIVERGES}


def test_a_row_with_diagnostics(tmp_path):
    config = small(diagnostics.config_of, epochs=2, beta=1.0)
    assert config.diagnose_every == diagnostics.EVERY["small"]
    (found,) = results(diagnostics.SIGMA, config).values()
    for measure in (diagnostics.SIGMA, diagnostics.GRADIENT_DIFFERENCE):
        assert all(isinstance(column.value(found), float) for column in measure.columns)
    assert {type(record) for record in diagnostics.records(found)} == {DirectionRecord, GradientRecord}
    diagnostics.SIGMA.draw(found, tmp_path / "row.png", "row")
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")


def test_speed_is_measured_and_predicted():
    (found,) = results(speed.SPEED, {**TINY, "method": "fdg", "num_stages": 2}).values()
    assert found["speedup"] > 0 and found["predicted_speedup"] > 0 and found["devices"] == 2
    (alone,) = results(speed.SPEED, {**TINY, "method": "backprop", "num_stages": 1}).values()
    assert alone["predicted_speedup"] == 1


def test_memory_is_that_of_all_devices():
    (found,) = results(memory.MEMORY, {**TINY, "method": "ddg", "num_stages": 2}).values()
    assert len(found["peak_bytes"]) == 2
    assert found["ratio"] == sum(found["peak_bytes"]) / sum(found["baseline_bytes"]) > 1


def test_ideal_speeds_and_staleness():
    (found,) = results(predictions.IDEAL_SPEEDUP, {"method": "fdg", "num_stages": 4}).values()
    assert found["speedup"] == pytest.approx(4)
    settings = {"method": "adl", "num_stages": 8, "accumulate": 4, "stage": 0}
    assert results(predictions.STALENESS, settings)[0]["staleness"] == 3.5  # eq. 17: 2 (8 - 1) / 4


def test_simulated_stragglers():
    """DSP, Table 2: longer queues, less harm; not below the mean."""
    random = np.random.default_rng(0)
    presets = [schedules.features_replay(3), schedules.dsp((1, 1, 0), (4, 2, 0)), schedules.dsp((3, 3, 0), (10, 5, 0))]
    replay, short, long = (stragglers.simulated_slowdown(preset, 100, 1 / 3, random) for preset in presets)
    assert replay > short > long > 100 / 3 - 5


def test_measured_stragglers():
    settings = {"method": "dsp", "num_stages": 2, "p": (1, 0), "m": (2, 0), "percent": 300, "probability": 0.5}
    (found,) = results(stragglers.SLOWDOWN, {**settings, **stragglers.TINY, "ticks": 24, "emulated": True}).values()
    assert found["measured"] > 50 and found["simulated"] > 100


def test_slow_devices_wait_at_once_and_not_the_host():
    settings = {"method": "dsp", "num_stages": 2, "p": (1, 0), "m": (2, 0), **stragglers.TINY}
    entrant = speed.pipelined(settings)
    seconds = [{"forward": 0.01, "backward": 0.03, "backward_forward": 0.04}, {"train": 0.03}]
    slow = SlowDevices(entrant.pipeline, Slowness(seconds, 0.0, 0.5, emulated=True), np.random.default_rng(0))
    entrant.loop.step = functools.partial(entrant.pipeline.step, observer=slow)
    entrant.loop.run(4)
    rates = [entrant.loop.images_per_second(10) for _ in range(3)]
    assert 0.04 <= settings["batch_size"] / statistics.median(rates) < 0.065  # one after the other it would be 0.07
    jax.clear_caches()
