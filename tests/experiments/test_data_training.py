"""Training on any data: the trainer sees one interface, and a damaged file in mid-run loses nothing that was done."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from experiments.training import session
from experiments.training.config import Config
from experiments.training.trainer import BrokenData, Trainer
from jaxdecouple.data import DataError, Dataset, ImageData, StreamedDataset, image_files, load
from jaxdecouple.data.crops import centre_crop
from jaxdecouple.data.streamed import IMAGENET_MEAN, IMAGENET_STD

pytest.importorskip("grain")
Image = pytest.importorskip("PIL.Image")
CONFIG = Config(model="mlp", image_size=8, batch_size=4, eval_batch_size=4, epochs=2, learning_rate=0.01)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for part, number in (("train", 8), ("val", 3)):
        for c, name in enumerate(("a", "b")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(100 * c, 100 * c + 100, (12 + i, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
    return tmp_path / "data"


def trainer(root, **changes):
    config = dataclasses.replace(CONFIG, dataset=f"imagenet:{root}", **changes)
    return Trainer(config, config.load_data(), jax.devices()[:2])


def assert_same_weights(state, expected):
    for ours, theirs in zip(state.stages, expected.stages, strict=True):
        jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.opt_state), (theirs.params, theirs.opt_state))


def test_both_kinds_have_the_whole_interface():
    members = {name for name in vars(ImageData) if not name.startswith("_")} | {"name", "class_names"}
    for kind in (Dataset, StreamedDataset):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert members <= fields | set(dir(kind))


def test_streamed_images_are_trained_on_and_all_tested(root):
    run = trainer(root).run(0)
    assert [record.ticks for record in run.records] == [4, 8]
    assert run.final.examples == 6 and np.isfinite(run.final.loss)


def test_without_augmentation_an_epoch_is_the_images_as_they_are_tested(root):
    plain = trainer(root, augment=False)
    order = np.random.default_rng([0, 0]).permutation(16)
    files = sorted((root / "train").rglob("*.png"))
    pixels = np.stack([centre_crop(Image.open(files[i]), 8, 9) for i in order])
    got = np.concatenate([x for x, _ in plain.epoch(0, seed=0)])
    np.testing.assert_allclose(got, (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)


def test_an_epoch_can_be_resumed_at_any_batch(root):
    for which in (
        trainer(root),
        Trainer(dataclasses.replace(CONFIG, batch_size=500), load("digits"), jax.devices()[:2]),
    ):
        whole = list(which.epoch(1, seed=3))
        for start in range(len(whole) + 1):
            rest = list(which.epoch(1, seed=3, start=start))
            assert len(rest) == len(whole) - start
            for (x, y), (x2, y2) in zip(rest, whole[start:], strict=True):
                np.testing.assert_array_equal(x, x2)
                np.testing.assert_array_equal(y, y2)


def test_a_damaged_file_in_mid_run_is_named_and_leaves_what_was_done(root):
    damaged, whole = trainer(root), trainer(root)
    order = np.random.default_rng([5, 1]).permutation(16)
    path = sorted((root / "train").rglob("*.png"))[order[9]]  # in batch 2 of epoch 1
    ticks, epochs, content = [], [], path.read_bytes()

    def on_epoch(record, state):
        epochs.append(record)
        path.write_bytes(content[:60])

    with pytest.raises(
        BrokenData, match=rf"{path} cannot be decoded .*\(training stopped after 6 batches, 1 whole epoc"
    ) as info:
        damaged.run(5, on_tick=ticks.append, on_epoch=on_epoch)
    assert len(ticks) == 6 and info.value.progress.records == epochs and len(epochs) == 1
    assert isinstance(info.value, DataError)  # programs turn it into one line

    # The state is that of six whole ticks, and the run goes on from it to the same end.
    path.write_bytes(content)
    expected, state = whole.init(5), info.value.state
    for epoch in range(2):
        for n, batch in enumerate(whole.epoch(epoch, 5)):
            expected, _ = whole.step(expected, batch)
            if 4 * epoch + n == 5:
                assert_same_weights(state, expected)
    for batch in damaged.epoch(1, 5, start=2):
        state, _ = damaged.step(state, batch)
    assert_same_weights(damaged.pipeline.flush(state), whole.pipeline.flush(expected))


def test_metrics_written_before_a_damaged_file_stay(root, tmp_path, monkeypatch):
    calls, decode = itertools.count(), image_files.decode

    def spoiled(kind, path):
        if next(calls) == 2 + 16 + 6 + 9:  # one of each part when loading, an epoch, its test, and a part of the next
            raise DataError(f"{path} is spoiled")
        return decode(kind, path)

    monkeypatch.setattr(image_files, "decode", spoiled)
    config = dataclasses.replace(CONFIG, dataset=f"imagenet:{root}", data_threads=1)
    with pytest.raises(DataError, match=r"data/train/.*\.png is spoiled .*after 6 batches, 1 whole epochs"):
        session.train(config, tmp_path / "run")
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["ticks"] == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 8


def test_images_in_memory_are_not_resized():
    with pytest.raises(DataError, match="image_size is 9, but the images of digits have 8 x 8 pixels"):
        load("digits", image_size=9)
    assert load("digits", image_size=8).image_shape == (8, 8, 1)
