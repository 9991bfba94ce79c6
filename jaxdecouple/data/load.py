"""Loading: from a short text that names a data source to a data set, in memory or streamed."""

import pathlib

from jaxdecouple.data.dataset import Dataset
from jaxdecouple.data.digits import load_digits
from jaxdecouple.data.folder import load_folder
from jaxdecouple.data.npz import load_npz
from jaxdecouple.data.streamed import StreamedDataset, load_streamed
from jaxdecouple.data.tfds_source import find_builder, known_names, load_tfds
from jaxdecouple.data.tiny_imagenet import load_tiny_imagenet
from jaxdecouple.errors import DataError, did_you_mean

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
