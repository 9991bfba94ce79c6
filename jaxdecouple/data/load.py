"""Loading: from a short text that names a data source to a data set, in memory or streamed."""

from __future__ import annotations

import pathlib

import numpy as np

from jaxdecouple.data import image_files
from jaxdecouple.data.dataset import Dataset
from jaxdecouple.data.npz import load_npz
from jaxdecouple.data.streamed import StreamedDataset, load_streamed
from jaxdecouple.data.tfds_source import find_builder, known_names, load_tfds
from jaxdecouple.data.tiny_imagenet import load_tiny_imagenet
from jaxdecouple.errors import DataError, did_you_mean

_NUM_TRAIN = 1437


def load_digits() -> Dataset:
    """The digits as uint8 [N, 8, 8, 1], split 1437 / 360; nothing is downloaded.

    The values 0..16 are scaled to 0..255 and rounded. The split is fixed: the images are put in
    the order `np.random.default_rng(0).permutation(1797)`; the first 1437 are the training part.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled_digits
    except ImportError as error:
        raise DataError("'digits' needs scikit-learn: pip install scikit-learn") from error
    images, labels = bundled_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    return Dataset("digits", pixels[train], labels[train], pixels[test], labels[test])


def load_folder(root: pathlib.Path) -> Dataset:
    """The data set under the directory `root`, named by the directory.

    Both `root/train` and `root/test` hold one directory per class, the same classes in both.
    Classes are numbered by sorted name, and images come sorted by class, then by file name. All
    images have one size. They are uint8 [N, H, W, 1] if every file is 8-bit grey, otherwise every
    one is converted to RGB, [N, H, W, 3]. Hidden files and files of other kinds are passed over.

    Raises:
        DataError: a directory is missing or holds no images, the parts' classes differ, or a file
            cannot be decoded or has another size than the first (the message names the file).
    """
    image_files.need_pillow("folder")
    parts = {part: image_files.class_files("folder", root / part) for part in ("train", "test")}
    classes = image_files.common_classes("folder", root, parts)
    x, y = {}, {}
    for part, files in parts.items():
        paths = [root / part / name / file for name in classes for file in files[name]]
        x[part] = image_files.read_images("folder", paths)
        y[part] = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    if x["train"].shape[-1] != x["test"].shape[-1]:
        x = {part: a if a.shape[-1] == 3 else np.repeat(a, 3, -1) for part, a in x.items()}
    name = root.resolve().name
    return Dataset(name, x["train"], y["train"], x["test"], y["test"], tuple(classes))


_IN_MEMORY = {"npz": load_npz, "folder": load_folder, "tiny_imagenet": load_tiny_imagenet}
_STREAMED = ("imagenet", "streamed")
_KINDS = (*_IN_MEMORY, *_STREAMED)
_PATHS = ", ".join(f"'{kind}:PATH'" for kind in _KINDS)
_FORMS = f"'digits', {_PATHS}, or a tensorflow-datasets name such as 'cifar10'"


def load(
    spec: str, *, data_dir: str | None = None, image_size: int = 0, num_threads: int = 0
) -> Dataset | StreamedDataset:
    """The data set that `spec` names: whole, in memory, or, where said, streamed from its files.

    Args:
        spec: one of
            - `digits`: the 1797 grey 8x8 digits that come with scikit-learn (`load_digits`);
            - `npz:PATH`: a file with x_train, y_train, x_test, y_test (`load_npz`);
            - `folder:PATH`: {train,test}/{class}/*.png, .jpg or .jpeg (`load_folder`);
            - `tiny_imagenet:PATH`: the published folder tiny-imagenet-200 (`load_tiny_imagenet`);
            - `imagenet:PATH`: {train,val}/{class}/*.JPEG, streamed (`load_streamed`);
            - `streamed:PATH`: {train,test}/{class}/ or {train,val}/{class}/ with images of any
              sizes, streamed (`load_streamed`);
            - the name of an image-classification data set of tensorflow-datasets, such as
              `cifar10` or `mnist` (`load_tfds`), downloaded on first use.
        data_dir: where relative PATHs start (default: the working directory), and where
            tensorflow-datasets keeps its files (default: its own, ~/tensorflow_datasets).
        image_size: height and width that streamed images are cut out or resized to; 0: 224. Images
            in memory are as large as they are: 0, or that size.
        num_threads: that decode streamed images; 0: one per core.

    Raises:
        DataError: the name is unknown, the size is another than the images', or the data cannot be
            found, read or downloaded, or are no data set; the message says what to write or to
            install.
    """
    kind, _, path = spec.partition(":")
    if kind in _STREAMED:
        return load_streamed(_place(spec, data_dir), kind=kind, image_size=image_size, num_threads=num_threads)
    dataset = _in_memory(spec, data_dir)
    height, width, _ = dataset.image_shape
    if image_size not in (0, height) or (image_size and width != height):
        raise DataError(
            f"image_size is {image_size}, but the images of {dataset.name} have {height} x {width} pixels and are not "
            "resized; write 0, or give files of any sizes as 'streamed:PATH'"
        )
    return dataset


def _in_memory(spec: str, data_dir: str | None) -> Dataset:
    kind = spec.partition(":")[0]
    if spec == "digits":
        return load_digits()
    if kind in _IN_MEMORY:
        return _IN_MEMORY[kind](_place(spec, data_dir))
    try:
        builder = find_builder(spec, data_dir)
    except ImportError as error:
        raise DataError(
            f"data set {spec!r} is none of 'digits', {_PATHS}; {_hint(spec, [])}the names of "
            "tensorflow-datasets (cifar10, mnist, ...) need: pip install tensorflow-datasets pillow "
            f"importlib_resources ({error})"
        ) from error
    if builder is None:
        raise DataError(f"unknown data set {spec!r}; {_hint(spec, known_names())}expected {_FORMS}")
    return load_tfds(builder, spec)


def _place(spec: str, data_dir: str | None) -> pathlib.Path:
    """Where PATH of 'KIND:PATH' is."""
    kind, _, path = spec.partition(":")
    if not path:
        raise DataError(f"data set {spec!r} names no path; write '{kind}:PATH'")
    return pathlib.Path(data_dir or "").expanduser() / pathlib.Path(path).expanduser()


def _hint(spec: str, known: list[str]) -> str:
    """``"did you mean ...? "`` for the likeliest slip, or nothing."""
    place = pathlib.Path(spec).expanduser()
    if spec and (place.suffix == ".npz" or place.is_dir()):
        return f"did you mean '{_kind_of(place)}:{spec}'? "
    kind, colon, path = spec.partition(":")
    forms = did_you_mean(kind, _KINDS, rest=f":{path}") if colon else ""
    return forms or did_you_mean(spec, ["digits", *known], most=3)


def _kind_of(place: pathlib.Path) -> str:
    """The likeliest kind of what lies there."""
    if not place.is_dir():
        return "npz"
    if (place / "wnids.txt").is_file():
        return "tiny_imagenet"
    return "streamed" if (place / "val").is_dir() else "folder"
