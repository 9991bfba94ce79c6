"""A tensorflow-datasets source: a public data set, prepared as ArrayRecord files and read back."""

import os
import pathlib
import re
import urllib.parse
from typing import Any

import numpy as np

from jaxdecouple.data.dataset import Dataset
from jaxdecouple.data.tf_stand_in import tensorflow_stand_in
from jaxdecouple.errors import DataError

_CHUNK = 1024
_PROBE_SECONDS = 10


def known_names() -> list[str]:
    """Names of the data sets that tensorflow-datasets has code for.

    Raises:
        ImportError: tensorflow-datasets, or a package it needs, is not installed.
    """
    import tensorflow_datasets as tfds

    # Community data sets are left out: only to list them needs TensorFlow and the network.
    return tfds.list_builders(with_community_datasets=False)


def find_builder(spec: str, data_dir: str | None = None) -> Any:
    """The tensorflow-datasets builder called `spec`, or None if there is none of that name.

    It comes from the package's code, or else from a data set that stands prepared in `data_dir`.

    Raises:
        ImportError: tensorflow-datasets, or a package it needs, is not installed.
        DataError: the name is known, its configuration or version is not.
    """
    import tensorflow_datasets as tfds

    directory = os.path.expanduser(data_dir) if data_dir else None
    try:
        return tfds.builder(spec, data_dir=directory, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # many types, for a bad configuration, version or form of the name
        if re.split("[:/]", spec)[0] not in known_names():
            return None
        raise DataError(
            f"tensorflow-datasets cannot make {spec!r} ({_cause(error)}); write another "
            "configuration or version, or give another data_dir to prepare the data set anew"
        ) from error


def load_tfds(builder: Any, name: str) -> Dataset:
    """The data set of a tensorflow-datasets builder, named `name`.

    It must have one image of a fixed shape and one class label per example, and a split `train`
    and a split `test` (or, in its absence, `validation`, which then is the test part). On first
    use it is downloaded and stored as ArrayRecord files in the builder's data directory; later
    uses read those and need no network. TensorFlow is not needed.

    Raises:
        DataError: no such features or splits, no network, or a failed preparation. What a failed
            preparation leaves is never taken for the data set by a later call.
    """
    image, label = _features(name, builder.info)
    if not builder.data_path.exists():
        _prepare(name, builder)
    splits = list(builder.info.splits)
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise DataError(f"{name} has splits {splits}; expected train, and test or validation")
    arrays = [*_read(builder, "train", image, label), *_read(builder, test, image, label)]
    return Dataset(name, *arrays, class_names=tuple(builder.info.features[label].names or ()))


def _features(name: str, info: Any) -> tuple[str, str]:
    """Names of the image and the label among the features; checked before a long download."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    image, label = keys if keys and len(keys) == 2 else ("image", "label")
    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    is_image = isinstance(features.get(image), tfds.features.Image)
    is_label = isinstance(features.get(label), tfds.features.ClassLabel)
    if not (is_image and is_label):
        raise DataError(
            f"{name} is no image-classification data set: it has features "
            f"{', '.join(features)}, and an image and a class label are expected"
        )
    shape: Any = features[image].shape
    if None in shape:
        raise DataError(
            f"{name} has images of different sizes (shape {list(shape)}); resize them to one size "
            "and give them as 'folder:PATH' or 'npz:PATH'"
        )
    return image, label


def _prepare(name: str, builder: Any) -> None:
    """Download, and write ArrayRecord files into a temporary directory renamed at the end."""
    where = (
        "To do without, give the images as 'npz:PATH' or 'folder:PATH', or copy a directory "
        f"{builder.name}/ prepared elsewhere as ArrayRecord files into the data_dir, "
        f"{builder.data_dir_root}"
    )
    host = _unreachable_host(builder)
    if host:
        raise DataError(f"{name} cannot be downloaded: no answer from {host}. {where}")
    try:
        with tensorflow_stand_in():
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk or the builder's own code raised
        raise DataError(f"{name} cannot be prepared ({_cause(error)}). {where}") from error


def _unreachable_host(builder: Any) -> str | None:
    """The first host of the data set's downloads, if none of the hosts answers.

    tensorflow-datasets itself tries again for minutes without a network, and for ever behind
    a firewall that drops packets.
    """
    import requests

    downloads = pathlib.Path(builder.data_dir_root) / "downloads"
    if any(downloads.glob(f"{builder.name}/*.INFO")) or any(downloads.glob("manual/*")):
        return None  # downloaded before, or by hand: the network may not be needed
    hosts: dict[str, str] = {}
    for url in builder.url_infos or {}:
        if url.startswith(("http://", "https://")):
            hosts.setdefault(urllib.parse.urlparse(url).netloc, url)
    for url in hosts.values():
        try:
            if requests.head(url, timeout=_PROBE_SECONDS).status_code < 500:
                return None
        except requests.exceptions.RequestException:
            continue
    return next(iter(hosts), None)


def _read(builder: Any, split: str, image: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W, C] and labels [N] of one split, in the order they are stored."""
    feature = builder.info.features[image]
    try:
        source = builder.as_data_source(split=split)
        images = np.empty((len(source), *feature.shape), feature.np_dtype)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            for i, example in zip(rows, source.__getitems__(rows), strict=True):
                images[i], labels[i] = example[image], example[label]
    except Exception as error:  # damaged files, or a data set prepared earlier in another format
        raise DataError(
            f"{builder.name} in {builder.data_path} cannot be read ({_cause(error)}); remove that "
            "directory or give another data_dir, and the data set is prepared again"
        ) from error
    return images, labels


def _cause(error: BaseException) -> str:
    """One short line of an error."""
    lines = re.sub(r"\s*\n\s*", "\n", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]
