"""Testing and exporting what a training run has saved."""

import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import jaxdecouple as jd
from experiments import evaluate, export, train
from experiments.training import loading, session
from experiments.training.config import Config, Saving
from jaxdecouple.errors import DataWarning

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = Config(model="mlp", method="adl", num_stages=2, epochs=2, batch_size=200, eval_batch_size=100)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "adl"
    session.train(CONFIG, path, saving=Saving(save_every=8))
    return path


def loaded_from(path, **changes):
    path = loading.find(path)
    return loading.load(path, *loading.saved_config(path, **changes), other_data="dataset" in changes)


def test_the_final_checkpoint_has_the_error_of_the_summary(workdir):
    loaded = loaded_from(workdir)
    found = loaded.trainer.evaluate(loaded.state)
    summary = json.loads((workdir / "summary.json").read_text())
    assert (
        loaded.path.name == "final"
        and 1 - found.accuracy == summary["test_error"]
        and found.loss == summary["test_loss"]
    )


def test_an_epochs_checkpoint_has_the_error_of_its_epoch(workdir):
    loaded = loaded_from(workdir / "checkpoints" / "tick-00000008")
    found = loaded.trainer.evaluate(loaded.state)
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["ticks"] == 8 and 1 - found.accuracy == first["test_error"] and found.loss == first["test_loss"]


def test_of_a_run_under_way_the_newest_is_taken(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "final")
    (tmp_path / "run" / "checkpoints" / "tick-00000099.orbax-checkpoint-tmp").mkdir()
    assert loading.find(tmp_path / "run").name == "tick-00000016"
    assert (tmp_path / "run" / "checkpoints" / "tick-00000099.orbax-checkpoint-tmp").is_dir()  # its writer's, untouched


@pytest.mark.parametrize("suffix", evaluate.SUFFIXES)
def test_predictions_are_those_of_the_network(suffix, workdir, tmp_path):
    loaded, path = loaded_from(workdir), tmp_path / f"predictions{suffix}"
    loading.write_predictions(loaded, path)
    batches = list(loaded.trainer.test_batches())
    logits = np.concatenate([loaded.trainer.pipeline.predict(loaded.state, x) for x, _ in batches])
    if suffix == ".csv":
        with path.open() as file:
            rows = list(csv.DictReader(file))
        label, predicted, probability = (
            np.array([float(row[name]) for row in rows]) for name in ("label", "predicted", "probability")
        )
        assert [int(row["image"]) for row in rows] == list(range(360))
    else:
        with np.load(path) as file:
            label, predicted, probability = file["label"], file["predicted"], file["probability"]
            np.testing.assert_array_equal(file["logits"], logits)
            assert list(file["class_names"]) == list(loaded.trainer.dataset.class_names)
    np.testing.assert_array_equal(label, np.concatenate([y for _, y in batches]))
    np.testing.assert_array_equal(predicted, logits.argmax(axis=-1))
    np.testing.assert_allclose(probability, np.asarray(jax.nn.softmax(logits)).max(axis=-1), atol=1e-6)
    with pytest.raises(ValueError, match="predictions cannot be written to .*write another file"):
        loading.write_predictions(loaded, tmp_path / "nowhere" / f"x{suffix}")


def test_a_run_may_be_tested_on_other_data(workdir, tmp_path):
    digits = jd.data.load("digits")
    part = {"x_train": digits.x_train[:50], "y_train": digits.y_train[:50]}
    np.savez(tmp_path / "few.npz", **part, x_test=digits.x_test[:20], y_test=digits.y_test[:20])
    loaded = loaded_from(workdir, dataset=f"npz:{tmp_path / 'few.npz'}")
    assert loaded.trainer.evaluate(loaded.state).examples == 20
    path = loading.find(workdir)
    config, metadata = loading.saved_config(path, dataset=f"npz:{tmp_path / 'few.npz'}")
    with pytest.raises(jd.CheckpointError, match="was trained on other data than few"):
        loading.load(path, config, metadata)


def test_checkpoints_of_others_are_refused(tmp_path):
    import flax.linen as nn
    import optax

    pipeline = jd.Pipeline([nn.Dense(3)], jd.schedules.backprop(1), optimizer=optax.sgd(0.1))
    jd.save(tmp_path / "own", pipeline.init(jax.random.key(0), np.zeros((2, 4), np.float32)), {"mine": 1})
    with pytest.raises(jd.CheckpointError, match="says nothing of its model.*use jaxdecouple.restore"):
        loading.saved_config(tmp_path / "own")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(jd.CheckpointError, match="holds no checkpoint yet"):
        loading.find(tmp_path)


def test_the_programs(workdir, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    summary = json.loads((workdir / "summary.json").read_text())
    done = call(evaluate, f"--checkpoint={workdir}", "--predictions=p.csv")
    assert done.stdout.startswith(
        f"test error {100 * summary['test_error']:.2f} %, test loss {summary['test_loss']:.4f}"
    )
    assert "images normalised by the mean (0.3" in done.stdout and "of digits" in done.stdout
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 361
    done = call(export, f"--checkpoint={workdir / 'checkpoints' / 'tick-00000016'}")
    assert (tmp_path / "model.msgpack").read_bytes() == (workdir / "model.msgpack").read_bytes(), done.stderr
    about = json.loads((tmp_path / "model.json").read_text())
    assert about == json.loads((workdir / "model.json").read_text()) and about["image_shape"] == [8, 8, 1]
    assert about["model"] == "mlp" and len(about["class_names"]) == 10 and 0 < about["mean"][0] < about["std"][0] < 1
    again = [f"--{name}={getattr(CONFIG, name)}" for name in ("model", "method", "num_stages", "epochs", "batch_size")]
    done = call(train, *again, "--eval_batch_size=100", f"--workdir={workdir}")
    assert done.status == 0 and "this run is finished" in done.stdout, done.stderr


def other(path, digits, **changes):
    """A file with the digits' first 20 test images, and other training images."""
    part = {"x_train": digits.x_train[:50], "y_train": digits.y_train[:50]}
    np.savez(path, **{**part, "x_test": digits.x_test[:20], "y_test": digits.y_test[:20], **changes})
    return f"npz:{path}"


def test_test_images_are_normalised_as_in_training(workdir, tmp_path):
    digits = jd.data.load("digits")
    same = loaded_from(workdir, dataset=other(tmp_path / "same.npz", digits))
    bright = np.where(digits.x_train[:50] > 127, 255, 200).astype(np.uint8)
    moved = loaded_from(workdir, dataset=other(tmp_path / "moved.npz", digits, x_train=bright))
    few = [(x, y) for x, y in same.trainer.test_batches()]
    assert same.trainer.evaluate(same.state) == moved.trainer.evaluate(moved.state)
    own = next(loaded_from(workdir).trainer.test_batches())[0][:20]
    np.testing.assert_array_equal(few[0][0], own)


def test_pixels_of_another_scale_are_remarked_upon(workdir, tmp_path):
    digits = jd.data.load("digits")
    scaled = {name: np.float32(getattr(digits, name)[:50]) for name in ("x_train", "x_test")}
    with pytest.warns(DataWarning, match=r"deviate by .*digits.*are both on the same scale, 0..1 or 0..255"):
        loaded_from(workdir, dataset=other(tmp_path / "other.npz", digits, **scaled, y_test=digits.y_test[:50]))


def test_predictions_do_not_replace_the_data(workdir, tmp_path, call):
    given = other(tmp_path / "other.npz", jd.data.load("digits"))
    before = (tmp_path / "other.npz").read_bytes()
    done = call(evaluate, f"--checkpoint={workdir}", f"--dataset={given}", f"--predictions={tmp_path / 'other.npz'}")
    assert done.status != 0 and "which holds the data; write another file" in done.stderr
    assert (tmp_path / "other.npz").read_bytes() == before


def test_an_export_replaces_no_file_of_another_kind(workdir, tmp_path, call):
    (tmp_path / "config.json").write_text('{"method": "fdg"}')
    done = call(export, f"--checkpoint={workdir}", f"--output={tmp_path / 'config.msgpack'}")
    assert "config.json would be replaced, and that says nothing of a model" in done.stderr
    (tmp_path / "notes.txt").write_text("mine")
    done = call(export, f"--checkpoint={workdir}", f"--output={tmp_path / 'notes.txt'}")
    assert "notes.txt, which is there and no model of this program; write another file" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_test": np.zeros((20, 9, 9), np.uint8), "x_train": np.zeros((50, 9, 9), np.uint8)}, "9 x 9 x 1.*8 x 8 x 1"),
        ({"y_train": np.arange(50) % 12}, "classes of other are 0, 1, 2, 3, 4 and 7 more, but the model was trained"),
    ],
)
def test_data_that_do_not_fit_a_model_are_refused(changes, says, workdir, tmp_path):
    given = other(tmp_path / "other.npz", jd.data.load("digits"), **changes)
    with pytest.raises(jd.data.DataError, match=says):
        loaded_from(workdir, dataset=given)
