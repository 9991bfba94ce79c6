"""Crops equal a resize written from its definition, lie where they are said to, and are drawn as ImageNet's are."""

import math

import numpy as np
import pytest

from jaxdecouple.data.crops import centre_crop, draw_window, random_crop

Image = pytest.importorskip("PIL.Image")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def filtered(pixels, axis, length):
    """Bilinear with a filter as wide as the shrinking is strong: output i averages inputs near (i + 1/2) / length."""
    n = pixels.shape[axis]
    width = max(1.0, n / length)
    at, inputs = (np.arange(length) + 0.5) * n / length, np.arange(n) + 0.5
    weights = np.maximum(0, 1 - np.abs(inputs - at[:, None]) / width)
    return np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), pixels, (1, axis)), 0, axis)


def resized(pixels, width, height):
    """Across, then down, as float64."""
    return filtered(filtered(pixels.astype(np.float64), 1, width), 0, height)


def assert_near(result, expected):
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() < 1.1  # Pillow rounds after each of the two directions


@pytest.mark.parametrize(
    ("shape", "whole", "top", "left"),
    [((50, 30), (13, 8), 0, 2), ((30, 50), (8, 13), 2, 0), ((9, 9), (8, 8), 0, 0), ((4, 5), (8, 10), 1, 0)],
)
def test_the_centre_is_cut_out_of_the_resized_image(shape, whole, top, left):
    width, height = shape
    pixels = picture(width, height)
    result = centre_crop(Image.fromarray(pixels), 8, 8)
    assert result.shape == (8, 8, 3)
    assert_near(result, resized(pixels, *whole)[top : top + 8, left : left + 8])


def test_the_shorter_side_is_what_is_resized():
    pixels = picture(70, 35)
    assert_near(centre_crop(Image.fromarray(pixels), 14, 20), resized(pixels, 40, 20)[3:17, 13:27])
    assert centre_crop(Image.fromarray(picture(500, 375)), 224, 256).shape == (224, 224, 3)


def test_a_random_crop_is_the_window_resized():
    pixels = picture(40, 60)
    mirrored = 0
    for seed in range(100):
        result = random_crop(
            Image.fromarray(pixels), 12, np.random.default_rng(seed), scale=SCALE, ratio=RATIO, flip=True
        )
        rng = np.random.default_rng(seed)
        left, top, width, height = draw_window(rng, 40, 60, SCALE, RATIO)
        expected = resized(pixels[top : top + height, left : left + width], 12, 12)
        if rng.random() < 0.5:
            expected, mirrored = expected[:, ::-1], mirrored + 1
        assert_near(result, expected)
    assert 35 < mirrored < 65


def test_without_flip_nothing_is_mirrored():
    ramp = np.repeat(np.arange(0, 200, 5, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = random_crop(Image.fromarray(ramp), 8, rng, scale=SCALE, ratio=RATIO, flip=False).astype(int)
        assert (np.diff(crop, axis=1) >= 0).all() and crop[0, -1, 0] > crop[0, 0, 0]


def test_windows_have_the_areas_ratios_and_places_that_are_asked_for():
    rng, width, height = np.random.default_rng(0), 640, 480
    left, top, w, h = np.array([draw_window(rng, width, height, SCALE, RATIO) for _ in range(4000)]).T
    assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()
    area, ratio = w * h / (width * height), w / h
    assert 0.075 < area.min() < 0.1 and area.max() <= 1
    assert 0.73 < ratio.min() < 0.76 and 1.31 < ratio.max() < 1.36
    small = area < 0.4  # these always fit, so nothing was drawn again
    assert area[small].mean() == pytest.approx(0.24, abs=0.01)
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=0.02)
    for place, room in ((left, width - w), (top, height - h)):
        part = place[small] / room[small]
        assert part.mean() == pytest.approx(0.5, abs=0.03) and part.min() < 0.01 and part.max() > 0.99


@pytest.mark.parametrize(("shape", "window"), [((300, 2), (148, 0, 3, 2)), ((2, 300), (0, 148, 2, 3))])
def test_of_a_very_long_image_the_centre_is_taken(shape, window):
    assert draw_window(np.random.default_rng(0), *shape, (0.9, 1.0), RATIO) == window
    assert draw_window(np.random.default_rng(0), 1, 1, SCALE, RATIO) == (0, 0, 1, 1)


def test_grey_images_become_colour():
    grey = Image.fromarray(picture(20, 20)[..., 0])
    for crop in (
        centre_crop(grey, 8, 9),
        random_crop(grey, 8, np.random.default_rng(0), scale=SCALE, ratio=RATIO, flip=0),
    ):
        assert crop.shape == (8, 8, 3) and (crop == crop[..., :1]).all()


def test_the_windows_are_those_of_the_published_recipe():
    """The recipe of Szegedy et al., as torchvision writes it, on the same random numbers."""
    for seed in range(50):
        ours, rng = np.random.default_rng(seed), np.random.default_rng(seed)
        area, aspect = rng.uniform(0.08, 1.0) * 90 * 60, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= 90 and h <= 60:
            expected = (int(rng.integers(0, 90 - w + 1)), int(rng.integers(0, 60 - h + 1)), w, h)
            assert draw_window(ours, 90, 60, SCALE, RATIO) == expected
