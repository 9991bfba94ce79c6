"""An image folder: {train,test}/{class}/ directories of PNG or JPEG files, one file per image."""

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxdecouple.data.dataset import DataError, Dataset

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CHUNK = 256


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
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("'folder:' needs Pillow: pip install pillow") from error
    parts = {part: _class_files(root / part) for part in ("train", "test")}
    classes = _common_classes(root, parts)
    x, y = {}, {}
    for part, files in parts.items():
        paths = [path for name in classes for path in files[name]]
        x[part] = _read_images(paths)
        y[part] = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    if x["train"].shape[-1] != x["test"].shape[-1]:
        x = {part: a if a.shape[-1] == 3 else np.repeat(a, 3, -1) for part, a in x.items()}
    name = root.resolve().name
    return Dataset(name, x["train"], y["train"], x["test"], y["test"], tuple(classes))


def _class_files(part: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Image files of every class directory in `part`, sorted by name."""
    if not part.is_dir():
        raise DataError(
            f"folder: there is no directory {part}; expected {part.parent}/train/CLASS/*.png (or "
            ".jpg, .jpeg) and the same under test/"
        )
    classes = sorted(d for d in part.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not classes:
        raise DataError(f"folder: {part} holds no class directories; expected {part}/CLASS/*.png")
    found = {}
    for directory in classes:
        files = [p for p in directory.iterdir() if p.suffix.lower() in _SUFFIXES]
        found[directory.name] = sorted(p for p in files if not p.name.startswith("."))
        if not found[directory.name]:
            raise DataError(
                f"folder: {directory} holds no {', '.join(_SUFFIXES)} files; add images or remove the directory"
            )
    return found


def _common_classes(root: pathlib.Path, parts: dict[str, dict[str, list]]) -> list[str]:
    for part, other in (("train", "test"), ("test", "train")):
        lacking = sorted(parts[part].keys() - parts[other].keys())
        if lacking:
            raise DataError(
                f"folder: {root} has {', '.join(lacking)} in {part} but not in {other}; both "
                "need the same class directories"
            )
    return sorted(parts["train"])


def _read_images(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Decoded files as uint8 [N, H, W, 3], or [N, H, W, 1] when all of them are grey."""
    first = _decode(paths[0])
    images = np.empty((len(paths), *first.shape[:2], 3), np.uint8)

    def read(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _CHUNK, len(paths))):
            pixels = _decode(paths[i])
            if pixels.shape[:2] != first.shape[:2]:
                raise DataError(
                    f"folder: {paths[i]} is {_size(pixels)}, but {paths[0]} is {_size(first)}; "
                    "all images need one size: resize them first"
                )
            images[i] = pixels
            all_grey = all_grey and pixels.shape[-1] == 1
        return all_grey

    # Pillow decodes outside the GIL, so threads are enough.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        grey = all(list(pool.map(read, range(0, len(paths), _CHUNK))))
    return images[..., :1].copy() if grey else images


def _decode(path: pathlib.Path) -> np.ndarray:
    """Pixels of one file, uint8 [H, W, 1] if it is grey, otherwise RGB [H, W, 3]."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise DataError(f"folder: {path} cannot be decoded ({error}); replace the file or remove it") from error
    return pixels[..., None] if grey else pixels


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
