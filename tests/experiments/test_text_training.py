"""Language models are trained by the same program as networks of images, and tested by perplexity and bits per byte."""

import json
import math

import pytest

from experiments.training import loading, session
from experiments.training.config import Config
from experiments.training.tasks import Inputs, in_words, inputs_of, task_of

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 12
SETTINGS = {
    "model": "gpt_nano",
    "dataset": "text:fox.txt",
    "tokens": "characters",
    "context": 8,
    "method": "ddg",
    "num_stages": 1,
    "batch_size": 16,
    "eval_batch_size": 16,
    "epochs": 2,
    "optimizer": "adamw",
    "learning_rate": 0.01,
}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    return Config(**SETTINGS, data_dir=str(tmp_path))


def test_a_run_is_recorded_saved_and_tested(config, tmp_path, capsys):
    run = session.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for found in (*lines, summary):
        assert found["perplexity"] == pytest.approx(math.exp(found["test_loss"]), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(found["test_loss"] / math.log(2), rel=1e-5)
    assert lines[-1]["test_loss"] < lines[0]["test_loss"] < math.log(len(set(TEXT)))
    assert "bits per byte  " in capsys.readouterr().out
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["characters"] == "".join(sorted(set(TEXT)))
    path = loading.find(tmp_path / "run")
    loaded = loading.load(path, *loading.saved_config(path))
    assert loaded.trainer.evaluate(loaded.state) == run.final
    with pytest.raises(ValueError, match="predictions are written of images alone"):
        loading.write_predictions(loaded, tmp_path / "predictions.csv")
    (tmp_path / "fox.txt").write_text(TEXT.replace("x", "X"))
    with pytest.raises(ValueError, match="but the model was trained on fox, of 30 others; write a text of the same"):
        loading.load(path, *loading.saved_config(path), other_data=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet20"}, "model is resnet20, and dataset text:fox.txt; write a language model"),
        ({"dataset": "digits"}, "model is gpt_nano, and dataset digits; write a text"),
        ({"augment": False}, "augment is False, but text:fox.txt has a text, and no such setting"),
        ({"model": "mlp", "dataset": "digits"}, "tokens is characters, but digits has images"),
    ],
)
def test_settings_of_other_data_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**{**SETTINGS, **settings})


def test_what_was_trained_on_images_is_not_tested_on_text(config):
    images = Inputs("digits", (8, 8, 1), (0.3,), (0.4,), False, ("0", "1"))
    with pytest.raises(ValueError, match="fox is a text, but the model was trained on images of digits"):
        task_of(config, config.load_data(), images)
    task = task_of(config, config.load_data(), None)
    with pytest.raises(ValueError, match="digits has images, but the model was trained on the text fox"):
        task_of(config, Config(dataset="digits", model="mlp").load_data(), task.inputs)
    assert inputs_of(json.loads(json.dumps(vars(task.inputs)))) == task.inputs
    assert in_words(1.5, 0.25, {}) == "test error 25.00 %, test loss 1.5000"
