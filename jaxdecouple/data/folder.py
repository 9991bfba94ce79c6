"""An image folder: {train,test}/{class}/ directories of PNG or JPEG files, one file per image."""

import pathlib

import numpy as np

from jaxdecouple.data import image_files
from jaxdecouple.data.dataset import Dataset


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
