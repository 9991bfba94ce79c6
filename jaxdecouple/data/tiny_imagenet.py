"""Tiny-ImageNet: 200 classes of ImageNet at 64x64 pixels, as its published folder holds them, read into memory."""

import pathlib

import numpy as np

from jaxdecouple.data import image_files
from jaxdecouple.data.dataset import Dataset
from jaxdecouple.errors import DataError

_KIND = "tiny_imagenet"
_EXPECTED = (
    "expected the unpacked tiny-imagenet-200, with wnids.txt, words.txt, train/WNID/images/*.JPEG, val/images/*.JPEG "
    "and val/val_annotations.txt"
)


def load_tiny_imagenet(root: pathlib.Path) -> Dataset:
    """The data set under `root`: `train` to train on, `val` as the test part, since labels of `test` are not public.

    Classes are those of wnids.txt, numbered by sorted WordNet identifier, as torchvision's ImageFolder numbers them,
    and named by the first word that words.txt has for them (by the identifier where it has none). Training images come
    sorted by class, then by file name; test images in the order of val_annotations.txt. Grey files become RGB.

    Raises:
        DataError: a file or directory is missing, a class holds no images, an annotation is not understood or names an
            unknown class or a missing image, or an image cannot be decoded or has another size than the first.
    """
    image_files.need_pillow(_KIND)
    classes = sorted(_lines(root / "wnids.txt"))
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{_KIND}: {root / 'wnids.txt'} names no class, or one twice; write one identifier per line")
    paths, labels = _train_files(root, classes)
    test_paths, test_labels = _test_files(root / "val", classes)
    x, x_test = (_rgb(image_files.read_images(_KIND, files)) for files in (paths, test_paths))
    return Dataset(_KIND, x, np.array(labels), x_test, np.array(test_labels), _class_names(root, classes))


def _train_files(root: pathlib.Path, classes: list[str]) -> tuple[list[pathlib.Path], list[int]]:
    train, paths, labels = root / "train", [], []
    if not train.is_dir():
        raise DataError(f"{_KIND}: there is no directory {train}; {_EXPECTED}")
    unknown = sorted({d.name for d in train.iterdir() if d.is_dir() and not d.name.startswith(".")} - set(classes))
    if unknown:
        raise DataError(f"{_KIND}: wnids.txt does not name {unknown[0]}, which {train} holds; add it or remove it")
    for label, wnid in enumerate(classes):
        directory = train / wnid / "images"
        if not directory.is_dir():
            raise DataError(f"{_KIND}: there is no directory {directory}, and wnids.txt names {wnid}; {_EXPECTED}")
        names = image_files.image_names(directory)
        if not names:
            raise DataError(f"{_KIND}: {directory} holds no images; add some, or take {wnid} out of wnids.txt")
        paths += [directory / name for name in names]
        labels += [label] * len(names)
    return paths, labels


def _test_files(val: pathlib.Path, classes: list[str]) -> tuple[list[pathlib.Path], list[int]]:
    annotations, number = val / "val_annotations.txt", {wnid: label for label, wnid in enumerate(classes)}
    if not (val / "images").is_dir():
        raise DataError(f"{_KIND}: there is no directory {val / 'images'}; {_EXPECTED}")
    there, labels = set(image_files.image_names(val / "images")), {}
    for i, line in enumerate(_lines(annotations), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        where = f"{_KIND}: line {i} of {annotations}"
        if not wnid:
            raise DataError(f"{where} is {line!r}; expected FILE, WNID and a box, with tabs between them")
        if wnid not in number:
            raise DataError(f"{where} gives {name} the class {wnid}, which wnids.txt does not name")
        if name not in there:
            raise DataError(f"{where} names {name}, but {val / 'images'} holds no such image; restore the file")
        if name in labels:
            raise DataError(f"{where} names {name} a second time; leave one line for each image")
        labels[name] = number[wnid]
    without = sorted(there - labels.keys())
    if without or not labels:
        raise DataError(f"{_KIND}: {annotations} has no line for {without[0] if without else 'any image'}; {_EXPECTED}")
    return [val / "images" / name for name in labels], list(labels.values())


def _class_names(root: pathlib.Path, classes: list[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in classes)


def _lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{_KIND}: {path} cannot be read ({error}); {_EXPECTED}") from error


def _rgb(images: np.ndarray) -> np.ndarray:
    return images if images.shape[-1] == 3 else np.repeat(images, 3, -1)
