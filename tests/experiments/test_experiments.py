"""The experiments: every file is written, bad settings write none, and the tables say what the schedules do."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import jaxdecouple as jd
from experiments import compare, devices
from experiments.measure import comparison, throughput
from experiments.report import plots, tables
from experiments.report.workdir import Workdir
from experiments.training import session
from experiments.training.config import Config
from experiments.training.progress import NonFiniteLoss
from experiments.training.trainer import Trainer
from jaxdecouple import data, schedules

SMALL = Config(model="mlp", epochs=2, batch_size=64, drop_last=True, eval_batch_size=360)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "fdg"
    return session.train(SMALL, workdir), workdir


def test_train_writes_everything(finished):
    run, workdir = finished
    assert json.loads((workdir / "config.json").read_text())["method"] == "fdg"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[1]["ticks"] == 44
    assert lines[1]["test_error"] == run.records[1].test_error < lines[0]["test_error"]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["test_error"] == run.test_error < 0.5 and summary["staleness"] == [[1], [0]]
    assert summary["weights"] == "stash"
    for picture in ("curves.png", "schedule.png"):
        assert (workdir / picture).read_bytes().startswith(PNG)


def test_the_checkpoint_holds_the_final_weights(finished, digits):
    run, workdir = finished
    trainer = Trainer(SMALL, digits, devices.of_stages(2))
    restored = trainer.restore(workdir / "checkpoints" / "final")
    assert trainer.evaluate(restored) == run.final
    assert restored.tick == 44
    assert all(leaf.devices() == {jax.devices()[1]} for leaf in jax.tree.leaves(restored.stages[1].params))


def test_a_workdir_never_holds_two_runs(finished):
    _, workdir = finished
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="holds this run, finished; write a new --workdir"):
        session.train(SMALL, workdir)
    with pytest.raises(ValueError, match="holds another run: beta is 1.0 there and 0.5 here; write a new --workdir"):
        session.train(dataclasses.replace(SMALL, beta=0.5), workdir)
    with pytest.raises(ValueError, match="files that are no run"):
        Workdir.check(workdir.parent, overwrite=True)
    assert {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


def test_more_stages_than_devices(digits):
    with pytest.raises(ValueError, match="num_stages is 5, but there are 4 devices.*--share_devices"):
        devices.of_stages(5)
    assert devices.of_stages(8, share=True) == [device for device in jax.devices() for _ in range(2)]


def test_a_loss_that_is_not_finite_names_stage_tick_and_batch(digits):
    config = dataclasses.replace(SMALL, learning_rate=1e30, decay="constant")
    with pytest.raises(NonFiniteLoss, match=r"batch \d+, computed by stage 1 in tick \d+, is (nan|inf).*learning_rate"):
        Trainer(config, digits, devices.of_stages(2)).run(seed=0)


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        ("gpipe", schedules.gpipe),
        ("1f1b", schedules.one_forward_one_backward),
        ("zero_bubble", schedules.zero_bubble),
    ],
)
def test_a_round_has_as_many_micro_batches_as_an_update(method, preset):
    config = dataclasses.replace(SMALL, method=method, num_stages=3)
    assert config.steps_per_update == 4 and config.schedule() == preset(3, 4)
    assert dataclasses.replace(config, accumulate=7).schedule() == preset(3, 7)


def test_learning_rates_count_updates():
    config = dataclasses.replace(SMALL, learning_rate=1.0, epochs=8, accumulate=2, warmup_epochs=1.0)
    rate = config.learning_rates(batches_per_epoch=6)  # 3 updates an epoch
    expected = [0.01 + 0.33 * s for s in range(3)] + [1.0] * 9 + [0.1] * 6 + [0.01] * 6
    np.testing.assert_allclose([rate(s) for s in range(24)], expected, rtol=1e-5)
    flat = dataclasses.replace(config, decay="constant", warmup_epochs=0.0).learning_rates(6)
    assert optax.constant_schedule(1.0)(5) == flat(5)


def test_polynomial_decay_ends_at_zero():
    config = dataclasses.replace(SMALL, learning_rate=1.0, epochs=8, decay="polynomial", warmup_epochs=2.0)
    rate = config.learning_rates(batches_per_epoch=5)
    expected = [0.01 + 0.099 * s for s in range(10)] + [(1 - s / 30) ** 2 for s in range(31)]
    np.testing.assert_allclose([rate(s) for s in range(41)], expected, rtol=1e-5, atol=1e-7)


def test_layer_wise_optimizers_are_the_librarys():
    settings = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "learning_rate": 0.3, "decay": "constant"}
    params = {"a": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}}
    norms = {"a": 2.0}
    for name, build in (("lars", jd.lars), ("clars", jd.clars)):
        for scale_biases, mask in ((True, True), (False, jd.weight_mask)):
            config = dataclasses.replace(SMALL, optimizer=name, eta=0.05, scale_biases=scale_biases, **settings)
            ours = config.stage_optimizer(10)(0, 1)
            plain = build(0.3, 0.05, momentum=0.8, nesterov=True, weight_decay=0.01, mask=mask)
            got, want = (tx.update(params, tx.init(params), params, gradient_norms=norms)[0] for tx in (ours, plain))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_clars_measures_norms_once_for_each_update(digits, monkeypatch):
    config = dataclasses.replace(
        SMALL, method="adl", accumulate=3, batch_size=100, drop_last=False, epochs=1, optimizer="clars", norm_sample=50
    )
    trainer = Trainer(config, digits, devices.of_stages(2))
    measured, measure = [], trainer.pipeline.measure_gradient_norms

    def spy(state, batch, *, sample_size, statistics):
        assert statistics == "batch"
        measured.append((state.tick, sample_size))
        return measure(state, batch, sample_size=sample_size, statistics=statistics)

    monkeypatch.setattr(trainer.pipeline, "measure_gradient_norms", spy)
    run = trainer.run(0)
    assert measured == [(2, 50), (5, 50), (8, 50), (11, 50), (14, 37)]  # of 15 batches, the last has 37 images
    assert np.isfinite(run.final.loss)


def test_every_method_trains_and_is_tabled(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(comparison, "SECONDS", 0.0)
    base = dataclasses.replace(SMALL, epochs=1, batch_size=512, drop_last=True)
    configs = compare.configs(base)
    assert list(configs) == list(compare.METHODS) and configs["adl M=4"].batch_size == 128
    trainers = {label: Trainer(config, digits, devices.of_stages(2)) for label, config in configs.items()}
    rows = comparison.compare(base, Workdir(tmp_path / "all", {}), trainers, seeds=1, repeats=1)
    table = (tmp_path / "all" / "table.md").read_text().splitlines()
    assert len(table) == 2 + len(compare.METHODS)
    assert table[6].startswith("| fdg beta=1 | 1 | 1 | stash | 1 / 0 |")
    assert table[11].startswith("| dgl | 1 | - | - | 0 / 0 |") and table[12].startswith("| dni | 1 | 1 | replay |")
    assert table[3].startswith("| gpipe M=4 | flush | flush | replay | 0 / 0 |")
    results = json.loads((tmp_path / "all" / "results.json").read_text())["methods"]
    assert results["backprop"]["speed_against_backprop"] == 1.0
    assert results["adl M=4"]["staleness"] == [[1, 1, 0, 0], [0]* 4]  # fmt: skip
    for picture in ("curves.png", "schedules.png"):
        assert (tmp_path / "all" / picture).read_bytes().startswith(PNG)
    assert len(tables.text(tables.as_table(rows)).splitlines()) == len(rows) + 3


def test_the_picture_shows_every_operation(tmp_path):
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    schedule = schedules.fdg(3)
    plots._draw_schedule(panel, schedule, 5, 9)
    assert [text.get_text() for text in panel.texts].count("0") == 5  # three forwards, two backwards
    assert len(panel.patches) == sum(len(ops) for _, ops in schedule.run(5))


def test_confining_to_a_core_is_undone():
    import os

    if throughput.can_confine():
        before = os.sched_getaffinity(0)
        with throughput.one_core():
            assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) == before


def test_probes_are_written_and_drawn(tmp_path):
    config = dataclasses.replace(SMALL, method="features_replay", epochs=1, diagnose_every=4)
    run = session.train(config, tmp_path / "run", share_devices=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    kinds = [line["probe"] for line in lines]
    assert len(lines) == len(run.diagnostics) and set(kinds) == {"GradientRecord", "DirectionRecord"}
    followed = [line for line in lines if line["probe"] == "GradientRecord"]
    assert [line["staleness"] for line in followed][1:] == [[1, 0]] * (len(followed) - 1)
    assert (tmp_path / "run" / "diagnostics.png").read_bytes().startswith(PNG)


def test_bfloat16_computes_with_float32_parameters_and_loss(digits):
    config = dataclasses.replace(SMALL, dtype="bfloat16", epochs=1)
    trainer = Trainer(config, digits, devices.of_stages(2))
    state = trainer.init(0)
    assert {leaf.dtype.name for stage in state.stages for leaf in jax.tree.leaves(stage.params)} == {"float32"}
    state, _ = trainer.step(state, next(trainer.epoch(0, 0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.in_flight[1].activations)} == {"bfloat16"}
    assert trainer.pipeline.predict(state, np.zeros((2, *digits.image_shape), "f4")).dtype == np.float32
