"""The sweeps over large batches train what they say, write everything, and see runs that diverge."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.large_batch import batch_scaling, cost, sweeps, warmup
from experiments.large_batch.batch_scaling import BatchScaling
from experiments.large_batch.sweeps import Sweep
from experiments.large_batch.warmup import Warmup
from experiments.training.config import Config
from experiments.training.progress import EpochRecord

SMALL = {"model": "mlp", "num_examples": 256, "num_tests": 100, "epochs": 2, "chunk_size": 32, "augment": False}
SWEEP = Sweep(**SMALL)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _caches_stay(monkeypatch):
    """What other tests have compiled, a sweep need not forget."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture(scope="module")
def digits():
    return SWEEP.load()


def test_the_learning_rate_grows_with_the_batch(digits):
    assert Sweep().rate(128) == 0.1 and Sweep().rate(8192) == 6.4  # thesis, section 4.4.4
    config = SWEEP.config(digits, 64, optimizer="clars", eta=0.1, decay="constant")
    assert (config.learning_rate, config.batch_size, config.accumulate, config.nesterov) == (0.05, 32, 2, True)
    assert SWEEP.config(digits, 16).accumulate == 1


def test_warmup_trains_every_method_with_every_eta(digits, tmp_path):
    configs = Warmup(**SMALL, batch_size=64, etas=(0.1, 1e30), warmups=(1.0,)).configs(digits)
    assert [(config.optimizer, config.warmup_epochs) for config in configs.values()][::2] == [
        ("clars", 0.0),
        ("lars", 0.0),
        ("lars", 1.0),
    ]
    assert {config.decay for config in configs.values()} == {"constant"}
    some = {key: config for key, config in configs.items() if config.optimizer == "clars" or key[1] == 0.1}
    results = sweeps.train_all(some, digits)
    assert [result.finite for result in results.values()] == [True, False, True, True]
    assert warmup.best(results) == {label: (label, 0.1) for label, _ in some}
    results |= {(label, eta): results["CLARS", 1e30] for label, eta in configs if (label, eta) not in results}
    table = warmup.as_markdown(results, math.log(10)).splitlines()
    assert table[0] == "| method | eta = 0.1 | eta = 1e+30 |" and table[1] == "| --- | --- | --- |"
    assert table[2].startswith("| CLARS | **") and "diverged in epoch 1" in table[2] and len(table) == 5
    warmup.plot(results, tmp_path / "warmup.png", "title", math.log(10))
    assert (tmp_path / "warmup.png").read_bytes().startswith(PNG)


def test_a_run_that_learns_nothing_is_marked():
    records = [EpochRecord(1, 4, loss, 2.0, 0.9, 1.0, 1.0) for loss in (2.5, 2.2)]
    runs = {
        ("LARS", eta): sweeps.Outcome(Config(), [record], True, 1.0)
        for eta, record in zip((0.1, 0.01), records, strict=True)
    }
    (row,) = warmup.as_markdown(runs, math.log(10)).splitlines()[2:]
    assert row == "| LARS | lost: 2.500, 90.0 % | **2.200, 90.0 %** |"


def test_batch_scaling_gives_each_batch_its_rate(digits):
    configs = BatchScaling(**SMALL, batch_sizes=(32, 128), eta=0.02).configs(digits)
    assert [config.optimizer for config in configs.values()] == ["sgd", "sgd", "lars", "lars"]
    assert [config.eta for config in configs.values()] == [0.0, 0.0, 0.02, 0.02]
    assert [round(config.learning_rate, 9) for config in configs.values()] == [0.025, 0.1] * 2


def test_images_are_shrunk_to_means_of_squares(digits):
    whole = dataclasses.replace(SWEEP, shrink=1).load()
    small = dataclasses.replace(SWEEP, shrink=3).load()
    assert small.image_shape == (2, 2, 1) and small.x_train.dtype == whole.x_train.dtype
    mean = whole.x_train[5, 3:6, 0:3, 0].astype(np.float64).mean()
    assert small.x_train[5, 1, 0, 0] == pytest.approx(mean, abs=0.5)


def test_cost_counts_time_and_memory():
    asked = cost.Asked(model="mlp", image_size=8, batch_size=64, chunk_size=32, norm_sample=32, repeats=2)
    costs = cost.measure(asked, say=lambda line: None)
    assert {len(each.seconds) for each in costs.values()} == {2} and costs["LARS"].ratios == [1.0, 1.0]
    weights = 4 * (192 * 128 + 2 * 128 * 128 + 128 * 10)  # bytes; beside them momentum and the sum of gradients
    assert all(each.peak_bytes > 3 * weights for each in costs.values())
    assert len(cost.as_markdown(costs).splitlines()) == 5


def test_programs_write_everything(tmp_path, call):
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    done = call(batch_scaling, *small, f"--workdir={tmp_path / 'run'}", "--batch_sizes=32,128", "--eta=0.02")
    assert done.status == 0, done.stderr
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [run["batch_size"] for run in written["runs"]] == [32, 128, 32, 128]
    assert written["setting"]["eta"] == 0.02 and written["setting"]["dataset"] == "digits"
    assert all(len(run["train_loss"]) == 2 and run["finite"] for run in written["runs"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == written["runs"] and done.stdout.count("training loss") == 5
    table = (tmp_path / "run" / "table.md").read_text()
    assert table in done.stdout
    assert table.splitlines()[2].startswith("| 32 | 0.025 | 16 |")
    assert table.splitlines()[3].startswith("| 128 | 0.1 | 4 |")
    assert (tmp_path / "run" / "batch_scaling.png").read_bytes().startswith(PNG)
