"""Image files: directories of one class each, found by name and decoded with Pillow."""

import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxdecouple.errors import DataError, DataWarning

if TYPE_CHECKING:
    import PIL.Image

SUFFIXES = (".png", ".jpg", ".jpeg")
_CHUNK = 256


def need_pillow(kind: str) -> None:
    """Raises DataError, naming what to install, where Pillow is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(f"'{kind}:' needs Pillow: pip install pillow") from error


def image_names(directory: pathlib.Path) -> list[str]:
    """Names of the image files in `directory`, sorted. Hidden files and files of other kinds are passed over."""
    try:
        names = [entry.name for entry in os.scandir(directory)]
    except OSError as error:
        raise DataError(f"{directory} cannot be listed ({error}); expected a directory of image files") from error
    images = sorted(name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    others = sorted(name for name in names if not name.lower().endswith(SUFFIXES) and not name.startswith("."))
    if images and others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        kinds = ", ".join(SUFFIXES)
        warnings.warn(f"{directory}: {others[0]}{more} left out: only {kinds} are read", DataWarning, stacklevel=4)
    return images


def class_files(kind: str, part: pathlib.Path) -> dict[str, list[str]]:
    """Names of the image files of every class directory in `part`, both sorted.

    Raises:
        DataError: no such directory, no class directories in it, or one without images.
    """
    if not part.is_dir():
        raise DataError(
            f"{kind}: there is no directory {part}; expected {part.parent}/train/CLASS/*.png (or "
            f".jpg, .jpeg) and the same under {part.name if part.name != 'train' else 'test'}/"
        )
    try:
        classes = sorted(d for d in part.iterdir() if d.is_dir() and not d.name.startswith("."))
    except OSError as error:
        raise DataError(f"{kind}: {part} cannot be listed ({error}); allow this user to read it") from error
    if not classes:
        raise DataError(f"{kind}: {part} holds no class directories; expected {part}/CLASS/*.png")
    found = {directory.name: image_names(directory) for directory in classes}
    for directory in classes:
        if not found[directory.name]:
            raise DataError(
                f"{kind}: {directory} holds no {', '.join(SUFFIXES)} files; add images or remove the directory"
            )
    return found


def common_classes(kind: str, root: pathlib.Path, parts: Mapping[str, Mapping[str, list]]) -> list[str]:
    """The classes of two parts, sorted; both must have the same."""
    (first, _), (second, _) = parts.items()
    for part, other in ((first, second), (second, first)):
        lacking = sorted(parts[part].keys() - parts[other].keys())
        if lacking:
            some = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            raise DataError(
                f"{kind}: {root} has {some} in {part} but not in {other}; both need the same class directories"
            )
    return sorted(parts[first])


def read_images(kind: str, paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Decoded files of one size as uint8 [N, H, W, 3], or [N, H, W, 1] when all of them are grey.

    Raises:
        DataError: a file cannot be decoded, or is of another size than the first; the message names it.
    """
    first = _pixels(kind, paths[0])
    images = np.empty((len(paths), *first.shape[:2], 3), np.uint8)

    def read(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _CHUNK, len(paths))):
            pixels = _pixels(kind, paths[i])
            if pixels.shape[:2] != first.shape[:2]:
                raise DataError(
                    f"{kind}: {paths[i]} is {_size(pixels)}, but {paths[0]} is {_size(first)}; "
                    "all images need one size: resize them first, or give them as 'streamed:PATH'"
                )
            images[i] = pixels
            all_grey = all_grey and pixels.shape[-1] == 1
        return all_grey

    # Pillow decodes outside the GIL, so threads are enough.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        grey = all(list(pool.map(read, range(0, len(paths), _CHUNK))))
    return images[..., :1].copy() if grey else images


def decode(kind: str, path: str | pathlib.Path) -> "PIL.Image.Image":
    """The image in one file, in mode L if it is grey, otherwise RGB.

    It is turned as its EXIF data say. What is transparent is drawn on black.

    Raises:
        DataError: it cannot be read or decoded; the message names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise DataError(
                    f"{kind}: {path} has more than 8 bits per channel (mode {file.mode}); convert it to 8 bits"
                )
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                black = Image.new("RGBA", image.size, (0, 0, 0, 255))
                image = Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{kind}: {path} cannot be read ({error.strerror}); allow this user to read it") from error
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise DataError(f"{kind}: {path} cannot be decoded ({error}); replace the file or remove it") from error


def _pixels(kind: str, path: pathlib.Path) -> np.ndarray:
    pixels = np.asarray(decode(kind, path))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
