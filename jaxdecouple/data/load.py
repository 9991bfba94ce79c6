"""Loading: from a short text that names a data source to a `Dataset`."""

import difflib
import pathlib

from jaxdecouple.data.dataset import DataError, Dataset
from jaxdecouple.data.digits import load_digits
from jaxdecouple.data.folder import load_folder
from jaxdecouple.data.npz import load_npz
from jaxdecouple.data.tfds_source import find_builder, known_names, load_tfds

_FORMS = "'digits', 'npz:PATH', 'folder:PATH', or a tensorflow-datasets name such as 'cifar10'"


def load(spec: str, *, data_dir: str | None = None) -> Dataset:
    """The data set that `spec` names, whole, in memory.

    Args:
        spec: one of
            - `digits`: the 1797 grey 8x8 digits that come with scikit-learn (`load_digits`);
            - `npz:PATH`: a file with x_train, y_train, x_test, y_test (`load_npz`);
            - `folder:PATH`: {train,test}/{class}/*.png, .jpg or .jpeg (`load_folder`);
            - the name of an image-classification data set of tensorflow-datasets, such as
              `cifar10` or `mnist` (`load_tfds`), downloaded on first use.
        data_dir: where relative PATHs start (default: the working directory), and where
            tensorflow-datasets keeps its files (default: its own, ~/tensorflow_datasets).

    Raises:
        DataError: the name is unknown, or the data cannot be found, read or downloaded, or are
            not a `Dataset`; the message says what to write or to install.
    """
    kind, _, path = spec.partition(":")
    if spec == "digits":
        return load_digits()
    if kind in ("npz", "folder"):
        if not path:
            raise DataError(f"data set {spec!r} names no path; write '{kind}:PATH'")
        place = pathlib.Path(data_dir or "").expanduser() / pathlib.Path(path).expanduser()
        return (load_npz if kind == "npz" else load_folder)(place)
    try:
        builder = find_builder(spec, data_dir)
    except ImportError as error:
        raise DataError(
            f"data set {spec!r} is none of digits, npz:PATH, folder:PATH{_nearest(spec, [])}; the "
            "names of tensorflow-datasets (cifar10, mnist, ...) need: pip install "
            f"tensorflow-datasets pillow importlib_resources ({error})"
        ) from error
    if builder is None:
        near = _nearest(spec, known_names())
        raise DataError(f"unknown data set {spec!r}{near}; expected {_FORMS}")
    return load_tfds(builder, spec)


def _nearest(spec: str, known: list[str]) -> str:
    """', did you mean ...?' for the likeliest slip, or nothing."""
    place = pathlib.Path(spec).expanduser()
    if spec and (place.suffix == ".npz" or place.is_dir()):
        near = [f"{'folder' if place.is_dir() else 'npz'}:{spec}"]
    else:
        near = difflib.get_close_matches(spec.lower(), ["digits", *known], n=3)
        kind, colon, path = spec.partition(":")
        if colon:
            prefixes = difflib.get_close_matches(kind.lower(), ["npz", "folder"], n=1)
            near = [f"{prefix}:{path}" for prefix in prefixes] or near
    return f", did you mean {' or '.join(map(repr, near))}?" if near else ""
