"""A crop: the window of a stored image that becomes one input of fixed size, by Pillow, on the host.

For photographs of many sizes, as ImageNet's: in training a random window, resized (Szegedy et al. 2015, as torchvision
draws it); in testing the centre, after resizing the whole.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

_TRIALS = 10


def random_crop(
    image: "PIL.Image.Image",
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
) -> np.ndarray:
    """A random window of the image, resized to uint8 [size, size, 3] by the bilinear filter.

    Args:
        image: in any mode that converts to RGB.
        size: height and width of the result.
        rng: decides the window, then the mirroring.
        scale: least and greatest area of the window, as a part of the image's.
        ratio: least and greatest width / height of the window.
        flip: whether the window is mirrored left to right with probability 1/2.
    """
    left, top, width, height = draw_window(rng, image.width, image.height, scale, ratio)
    # Cropped first: given a box, Pillow's resize would let pixels outside it into the window's margin.
    window = image.crop((left, top, left + width, top + height))
    pixels = _resized(window, size, size)
    return pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels


def centre_crop(image: "PIL.Image.Image", size: int, resize: int) -> np.ndarray:
    """The image with its shorter side resized to `resize`, then the window of uint8 [size, size, 3] in its centre."""
    shorter = min(image.size)
    width, height = (resize * side // shorter for side in image.size)
    pixels = _resized(image, width, height)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def draw_window(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random window: its area uniform, its ratio log-uniform, its place uniform.

    A window that does not fit is drawn again, ten times at most; then it is the largest one in the centre whose ratio
    is allowed, which very long images need.
    """
    for _ in range(_TRIALS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), w, h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(image: "PIL.Image.Image", width: int, height: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
