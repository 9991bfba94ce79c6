"""tensorflow-datasets as a source: its own builders run without TensorFlow, and fail cleanly."""

import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
requests = pytest.importorskip("requests")
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf  # noqa: E402

from jaxdecouple.data import DataError, load  # noqa: E402
from jaxdecouple.data.tf_stand_in import tensorflow_stand_in  # noqa: E402

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(60, dtype=np.uint8) % 10


class Answer:
    status_code = 200


@pytest.fixture
def network(monkeypatch):
    """A network on which every host answers; nothing is really sent."""
    asked = []
    monkeypatch.setattr(requests, "head", lambda url, **_: asked.append(url) or Answer)
    return asked


def write_cifar(directory: pathlib.Path) -> None:
    """The files of CIFAR-10's binary version, with ten images in each of the six."""
    inside = directory / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    (inside / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for i, name in enumerate(files):
        rows = slice(10 * i, 10 * (i + 1))
        planes = IMAGES[rows].transpose(0, 3, 1, 2).reshape(10, -1)
        (inside / name).write_bytes(np.concatenate([LABELS[rows, None], planes], 1).tobytes())


@pytest.fixture
def cifar(tmp_path, monkeypatch, network):
    """CIFAR-10's archive, as if it had been downloaded; tensorflow-datasets unpacks it."""
    write_cifar(tmp_path / "made")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    extract = tfds.download.DownloadManager.extract
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: extract(self, archive),
    )
    return str(tmp_path / "data")


def pairs(images, labels):
    return {(label, image.tobytes()) for image, label in zip(images, labels.tolist(), strict=True)}


def test_cifar10_is_prepared_once_without_tensorflow(cifar, monkeypatch):
    data = load("cifar10", data_dir=cifar)
    assert data.class_names == tuple(NAMES)
    assert data.x_train.shape == (50, 32, 32, 3) and data.y_train.dtype == np.int32
    assert pairs(data.x_train, data.y_train) == pairs(IMAGES[:50], LABELS[:50])
    assert pairs(data.x_test, data.y_test) == pairs(IMAGES[50:], LABELS[50:])
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", None)
    monkeypatch.setattr(requests, "head", None)  # neither is needed any more
    again = load("cifar10", data_dir=cifar)
    np.testing.assert_array_equal(again.x_train, data.x_train)
    np.testing.assert_array_equal(again.y_test, data.y_test)


def test_the_stand_in_leaves_no_trace():
    if "tensorflow" in sys.modules:
        pytest.skip("TensorFlow is there, and nothing stands in for it")
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature

    with pytest.raises(ZeroDivisionError), tensorflow_stand_in():
        assert extractor.tf.io.gfile.GFile is open
        assert "tensorflow" not in sys.modules
        with pytest.raises(ModuleNotFoundError, match=r"tf\.io\.parse_single_example is called"):
            _ = extractor.tf.io.parse_single_example
        _ = 1 / 0
    assert extractor.tf is tf
    assert image_feature._ImageEncoder._encode_image.__module__ == image_feature.__name__


def test_no_network_is_told_at_once_and_leaves_nothing(tmp_path, monkeypatch):
    def no_network(url, **_):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", no_network)
    message = r"cifar10 cannot be downloaded: no answer from www\.cs\.toronto\.edu\..*npz:PATH"
    with pytest.raises(DataError, match=message):
        load("cifar10", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_does_not_spoil_the_next(cifar, monkeypatch):
    whole = tfds.download.DownloadManager.download_and_extract

    def cut(self, url):
        raise tfds.download.DownloadError(f"Failed to get url {url}. HTTP code: 403.")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", cut)
    with pytest.raises(DataError, match=r"cannot be prepared .*HTTP code: 403.*folder:PATH"):
        load("cifar10", data_dir=cifar)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", whole)
    assert len(load("cifar10", data_dir=cifar).x_train) == 50


def test_archives_downloaded_before_need_no_network(cifar, monkeypatch):
    downloads = pathlib.Path(cifar) / "downloads" / "cifar10"
    downloads.mkdir(parents=True)
    (downloads / "archive.INFO").write_text("{}")
    monkeypatch.setattr(requests, "head", None)
    assert len(load("cifar10", data_dir=cifar).x_train) == 50


class GreyWithoutTest(tfds.core.GeneratorBasedBuilder):
    """Grey images in the splits `train` and `validation`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(6, 5, 1))
        features = {"image": image, "label": tfds.features.ClassLabel(names=["no", "yes"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(8), "validation": self._generate_examples(2)}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, {"image": np.full((6, 5, 1), i, np.uint8), "label": i % 2}


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
    data = load("grey_without_test", data_dir=str(tmp_path))
    assert data.image_shape == (6, 5, 1) and data.class_names == ("no", "yes")
    assert len(data.x_train) == 8 and len(data.x_test) == 2
    np.testing.assert_array_equal(data.x_train[:, 0, 0, 0] % 2, data.y_train)


def test_a_prepared_data_set_needs_no_code_of_its_own(tmp_path):
    load("grey_without_test", data_dir=str(tmp_path))
    code = (
        "from jaxdecouple.data import load\n"
        f"data = load('grey_without_test', data_dir={str(tmp_path)!r})\n"
        "assert data.x_train.shape == (8, 6, 5, 1) and data.class_names == ('no', 'yes')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_damaged_files_are_named(tmp_path):
    load("grey_without_test", data_dir=str(tmp_path))
    (record,) = tmp_path.rglob("*train.array_record*")
    record.write_bytes(record.read_bytes()[:40])
    with pytest.raises(DataError, match=r"grey_without_test/1\.0\.0 cannot be read .*remove that"):
        load("grey_without_test", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ag_news_subset", "no image-classification data set: it has features label, title"),
        ("imagenet2012", r"images of different sizes \(shape \[None, None, 3\]\)"),
        ("cifar10:0.0.1", "cannot make 'cifar10:0.0.1'.*another configuration or version"),
    ],
)
def test_unfit_data_sets_are_refused_before_any_download(tmp_path, network, spec, message):
    with pytest.raises(DataError, match=message):
        load(spec, data_dir=str(tmp_path))
    assert not network and not list(tmp_path.iterdir())
