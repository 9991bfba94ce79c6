"""A stand-in for TensorFlow: the few of its functions that preparing an image data set calls.

tensorflow-datasets writes and reads ArrayRecord files without TensorFlow. But to unpack an archive
and to compress an image (CIFAR and MNIST included) it calls TensorFlow's file functions and its
PNG encoder, up to release 4.9.10, the newest. Here these are the standard library's and Pillow's.
"""

import contextlib
import glob
import importlib.util
import io
import os
import shutil
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np


class _Needed:
    """A namespace that answers every name it lacks with what to do."""

    def __init__(self, path: str, **members: Any) -> None:
        self._path = path
        vars(self).update(members)

    def __getattr__(self, name: str) -> Any:
        raise ModuleNotFoundError(
            f"{self._path}.{name} is called; prepare this data set once where TensorFlow is "
            "installed, in the ArrayRecord format, and copy the result here"
        )


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Inside the context, tensorflow-datasets uses the stand-in; with TensorFlow, nothing changes.

    Only the name `tf` of modules that hold tensorflow-datasets' own lazy import is replaced, so
    that no other package can take the stand-in for TensorFlow.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils

    lazy = lazy_imports_utils.tensorflow
    loaded: list[Any] = [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
    modules = [m for m in loaded if vars(m).get("tf") is lazy]
    encoder: Any = image_feature._ImageEncoder
    encode = encoder._encode_image
    try:
        for module in modules:
            module.tf = _stand_in()
        encoder._encode_image = _encode_image
        yield
    finally:
        for module in modules:
            module.tf = lazy
        encoder._encode_image = encode


def _stand_in() -> _Needed:
    gfile = types.SimpleNamespace(
        GFile=open,
        copy=lambda source, target, overwrite=False: shutil.copyfile(source, target),
        exists=os.path.exists,
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        isdir=os.path.isdir,
        listdir=os.listdir,
        makedirs=lambda path: os.makedirs(path, exist_ok=True),
        remove=os.remove,
        walk=os.walk,
    )
    compat = _Needed("tf.compat", as_bytes=os.fsencode, as_text=os.fsdecode)
    return _Needed("tf", io=_Needed("tf.io", gfile=gfile), compat=compat)


def _encode_image(self: Any, image: np.ndarray) -> bytes:
    """What replaces tensorflow-datasets' encoder of arrays [H, W, C]: the same, by Pillow."""
    from PIL import Image

    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    pixels.save(buffer, self.encoding_format, quality=95)  # TensorFlow's for JPEG; PNG has none
    return buffer.getvalue()
