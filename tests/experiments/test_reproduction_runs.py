"""One small row of every kind runs, in the shortest way there is."""

import functools
import statistics

import jax
import numpy as np
import pytest

from experiments.reproduction import diagnostics, memory, predictions, speed, stragglers, training
from experiments.reproduction.kind import Scale
from experiments.reproduction.rows import DIVERGES
from experiments.reproduction.slow_devices import SlowDispatcher, Slowness
from jaxdecouple import schedules

TINY = {"model": "mlp", "image_size": 8, "batch_size": 8, "num_classes": 10, "repeats": 1, "seconds": 0.02}
TRAINING = {
    **{"model": "resnet20", "dataset": "cifar10", "epochs": 300, "decay_epochs": (150, 225, 275), "batch_size": 128},
    **{"method": "fdg", "num_stages": 2, "beta": 0.5, "warmup_epochs": 3.0, "warmup_rate": 0.01},
}


def results(kind, settings, seeds=(0,)):
    found = {}
    kind.run(settings, seeds, found.__setitem__)
    return found


def test_a_training_row():
    settings = training.scaled(TRAINING, Scale("small", epochs=1))
    found = results(training.KIND, {**settings, "model": "mlp"}, seeds=(0, 1))
    assert list(found) == [0, 1] and found[0]["test_error"] != found[1]["test_error"]
    assert len(found[0]["records"]) == 1 and found[0]["staleness"] == ((1,), (0,))
    _, (column,) = training.KIND.measures["best_accuracy"]
    assert column.value(found[0]) == pytest.approx(100 - 100 * found[0]["records"][0]["test_error"], abs=1e-3)


def test_a_divergence_is_a_result():
    settings = {**training.scaled(TRAINING, Scale("small", epochs=2)), "model": "mlp", "learning_rate": 1e30}
    (found,) = results(training.KIND, {**settings, "warmup_epochs": 0.0, "warmup_rate": 0.0}).values()
    assert found["diverged"] and "the loss of batch" in found["message"]
    assert {column.value(found) for _, columns in training.MEASURES.values() for column in columns} == {DIVERGES}


def test_a_row_with_diagnostics():
    settings = {**diagnostics.scaled(TRAINING, Scale("small", epochs=2)), "model": "mlp", "beta": 1.0}
    assert settings["diagnose_every"] == diagnostics.EVERY["small"]
    (found,) = results(diagnostics.KIND, settings).values()
    for _, columns in diagnostics.MEASURES.values():
        assert all(isinstance(column.value(found), float) for column in columns)
    assert {type(record) for record in diagnostics.records(found)} == set(diagnostics._PROBES.values())


def test_speed_is_measured_and_predicted():
    (found,) = results(speed.KIND, {**TINY, "method": "fdg", "num_stages": 2}).values()
    assert found["speedup"] > 0 and found["predicted_speedup"] > 0 and found["devices"] == 2
    (alone,) = results(speed.KIND, {**TINY, "method": "backprop", "num_stages": 1}).values()
    assert alone["predicted_speedup"] == 1


def test_memory_is_that_of_all_devices():
    (found,) = results(memory.KIND, {**TINY, "method": "ddg", "num_stages": 2}).values()
    assert len(found["peak_bytes"]) == 2
    assert found["ratio"] == sum(found["peak_bytes"]) / sum(found["baseline_bytes"]) > 1


def test_ideal_speeds_and_staleness():
    (found,) = results(predictions.IDEAL, {"method": "fdg", "num_stages": 4}).values()
    assert found["speedup"] == pytest.approx(4)
    settings = {"method": "adl", "num_stages": 8, "accumulate": 4, "stage": 0}
    assert results(predictions.STALENESS, settings)[0]["staleness"] == 3.5  # eq. 17: 2 (8 - 1) / 4


def test_simulated_stragglers():
    """Without any, a batch takes what the slowest device works; what one slow tick costs depends."""
    schedule, slow = schedules.dsp((1, 1, 0), (4, 2, 0)), np.ones((50, 3))
    even = stragglers.ends_of(schedule, slow)
    assert even[21] - even[20] == 4  # forward, redone forward, backward
    slow[20, 2] = 2  # the last stage redoes nothing: 3 of 4 units, that become 6
    assert 0 <= stragglers.ends_of(schedule, slow)[-1] - even[-1] <= 2
    together = [stragglers.ends_of(schedules.backprop(3), slowness)[-1] for slowness in (slow, np.ones((50, 3)))]
    assert together[0] - together[1] == 3
    random = np.random.default_rng(0)
    longer = [
        stragglers.simulated_slowdown(schedules.dsp(p, m), 100, 1 / 3, random)
        for p, m in (((1, 1, 0), (4, 2, 0)), ((3, 3, 0), (10, 5, 0)))
    ]
    replay = stragglers.simulated_slowdown(schedules.features_replay(3), 100, 1 / 3, random)
    assert replay > longer[0] > longer[1] > 100 / 3 - 5  # DSP, Table 2: longer queues, less harm; not below the mean


def test_measured_stragglers():
    settings = {"method": "dsp", "num_stages": 2, "p": [1, 0], "m": [2, 0], "percent": 300, "probability": 0.5}
    (found,) = results(stragglers.KIND, {**settings, **stragglers.TINY, "ticks": 24, "emulated": True}).values()
    assert found["measured"] > 50 and found["simulated"] > 100


def test_slow_devices_wait_at_once_and_not_the_host():
    settings = {"method": "dsp", "num_stages": 2, "p": [1, 0], "m": [2, 0], **stragglers.TINY}
    entrant = speed.pipelined(settings)
    seconds = [{"forward": 0.01, "backward": 0.03, "backward_forward": 0.04}, {"train": 0.03}]
    slow = SlowDispatcher(entrant.pipeline, Slowness(seconds, 0.0, 0.5, emulated=True), np.random.default_rng(0))
    entrant.loop.step = functools.partial(entrant.pipeline.step, dispatcher=slow)
    entrant.loop.run(4)
    rates = [entrant.loop.images_per_second(10) for _ in range(3)]
    assert 0.04 <= settings["batch_size"] / statistics.median(rates) < 0.065  # one after the other it would be 0.07
    jax.clear_caches()
