"""Preprocessing equals a loop over single images, is random per image, and stays on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdecouple.data import DataError, Dataset, Preprocess, augment

KEY = jax.random.key(0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = Preprocess(0, False, MEAN, STD)
BOTH = Preprocess(2, True, MEAN, STD)


def pictures(number=16, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)


def dataset(shape=(6, 5, 3), name="test", dtype=np.uint8):
    x = pictures(40, shape).astype(dtype)
    return Dataset(name, x, np.arange(40) % 4, x[:4], np.arange(4))


def by_loop(config, images, corners, mirrored):
    """One image at a time: mirror, frame in black, cut the window out, normalise."""
    height, width, pad = images.shape[1], images.shape[2], config.pad
    results = []
    for image, (row, column), flip in zip(images, corners, mirrored, strict=True):
        if flip:
            image = image[:, ::-1]
        framed = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), np.float64)
        framed[pad : pad + height, pad : pad + width] = image
        window = framed[row : row + height, column : column + width]
        results.append((window / 255 - np.array(config.mean)) / np.array(config.std))
    return np.stack(results)


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_train_equals_the_loop_with_the_same_draws(x64, pad, flip):
    config = Preprocess(pad, flip, MEAN, STD, jnp.float64)
    images = pictures()
    corners, mirrored = augment.draw(KEY, len(images), pad=pad, flip=flip)
    expected = by_loop(config, images, np.asarray(corners), np.asarray(mirrored))
    np.testing.assert_allclose(config.train(KEY, images), expected, rtol=0, atol=1e-13)


def test_draws_reach_every_corner_and_mirror_half():
    corners, mirrored = map(np.asarray, augment.draw(KEY, 4000, pad=2, flip=True))
    counts = np.zeros((5, 5))
    np.add.at(counts, (corners[:, 0], corners[:, 1]), 1)
    assert counts.min() > 100 and counts.max() < 220  # 160 expected in each of the 25
    assert 1850 < mirrored.sum() < 2150
    assert abs(np.corrcoef(mirrored, corners[:, 0])[0, 1]) < 0.06


def test_eval_and_an_unaugmented_train_only_normalise():
    images = pictures()
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(PLAIN.eval(images), expected, atol=1e-5)
    np.testing.assert_array_equal(PLAIN.train(KEY, images), PLAIN.eval(images))
    np.testing.assert_array_equal(BOTH.eval(images), PLAIN.eval(images))


def test_equal_images_in_a_batch_get_their_own_crops_and_flips():
    images = np.repeat(pictures(1), 64, axis=0)
    for config, most in ((BOTH, 50), (dataclasses.replace(BOTH, pad=0), 2)):
        results = np.asarray(config.train(KEY, images)).reshape(64, -1)
        assert 1 < len(np.unique(results, axis=0)) <= most


def test_an_image_leaves_the_others_alone():
    images = pictures()
    other = images.copy()
    other[3] = 255 - other[3]
    same = (BOTH.train(KEY, images) == BOTH.train(KEY, other)).all(axis=(1, 2, 3))
    assert same.tolist() == [i != 3 for i in range(16)]


def test_the_key_decides():
    images = pictures()
    first = BOTH.train(KEY, images)
    np.testing.assert_array_equal(first, BOTH.train(jax.random.key(0), images))
    assert (first != BOTH.train(jax.random.key(1), images)).any()


def test_the_result_is_committed_to_the_images_device():
    for device in jax.devices()[:2]:
        images = jax.device_put(pictures(), device)
        for result in (BOTH.train(KEY, images), BOTH.eval(images)):
            assert result.committed and result.devices() == {device}
    assert len(jax.devices()) > 1


def test_equal_settings_and_later_batches_are_not_traced_again(monkeypatch):
    traces = []
    draw = augment.draw
    monkeypatch.setattr(augment, "draw", lambda *a, **k: traces.append(a) or draw(*a, **k))
    for seed in range(3):
        config = Preprocess(3, True, [0.125], np.array([0.5]))  # made anew, from lists and arrays
        config.train(jax.random.key(seed), pictures(seed=seed, shape=(7, 7, 1)))
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_results_and_half_precision_is_rounded_once(dtype):
    config = dataclasses.replace(PLAIN, dtype=dtype)
    images = pictures()
    assert config.eval(images).dtype == config.train(KEY, images).dtype == jnp.dtype(dtype)
    exact = (images / 255 - np.array(MEAN)) / np.array(STD)
    error = np.abs(np.asarray(config.eval(images), np.float64) - exact)
    assert (error <= float(jnp.finfo(dtype).eps) / 2 * np.abs(exact) + 2e-6).all()


def test_float64_needs_x64():
    with pytest.raises(DataError, match="jax_enable_x64"):
        dataclasses.replace(PLAIN, dtype=jnp.float64).eval(pictures())


def test_floating_point_images_are_not_rescaled():
    images = (pictures() / 255).astype(np.float32)
    np.testing.assert_allclose(PLAIN.eval(images), PLAIN.eval(pictures()), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 255])
def test_for_dataset_makes_training_images_standard(scale):
    data = dataset(dtype=np.uint8 if scale == 255 else np.float64)
    config = Preprocess.for_dataset(data, augment=False)
    np.testing.assert_allclose(config.mean, data.x_train.mean((0, 1, 2)) / scale, rtol=1e-12)
    np.testing.assert_allclose(config.std, data.x_train.std((0, 1, 2)) / scale, rtol=1e-12)
    standard = np.asarray(config.eval(data.x_train))
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std((0, 1, 2)), 1, atol=1e-5)


def test_statistics_do_not_depend_on_how_images_are_cut_into_chunks(monkeypatch):
    whole = Preprocess.for_dataset(dataset(), augment=False)
    monkeypatch.setattr("jaxdecouple.data.dataset._CHUNK", 7)
    cut = Preprocess.for_dataset(dataset(), augment=False)
    np.testing.assert_allclose(cut.mean + cut.std, whole.mean + whole.std, rtol=1e-14)


@pytest.mark.parametrize(
    ("shape", "name", "pad", "flip"),
    [
        ((32, 32, 3), "cifar10", 4, True),
        ((64, 64, 3), "tiny", 8, True),
        ((32, 32, 3), "svhn_cropped", 4, False),
        ((8, 8, 1), "digits", 1, False),
        ((28, 28, 1), "mnist", 1, False),
    ],
)
def test_for_dataset_flips_photographs_and_never_digits(shape, name, pad, flip):
    data = dataset(shape, name)
    config = Preprocess.for_dataset(data, augment=True)
    assert (config.pad, config.flip) == (pad, flip)
    still = Preprocess.for_dataset(data, augment=False)
    assert still == dataclasses.replace(config, pad=0, flip=False)


def test_fdg_normalises_with_the_constants_of_its_code():
    config = Preprocess.for_dataset(dataset(), augment=False, normalise="fdg")
    assert config.mean == (0.4914, 0.4822, 0.4465) and config.std == (0.2023, 0.1994, 0.2010)
    images = pictures()
    np.testing.assert_allclose(config.eval(images), (images / 255 - config.mean) / config.std, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 255])
def test_each_image_can_be_standardised_by_itself(scale):
    config = Preprocess.for_dataset(dataset(), augment=True, normalise="image")
    images = pictures()
    images[3] = 7  # constant: the deviation is taken as 1 / sqrt(90), and the result is 0
    images[4] = 100
    images[4, 0, 0, 0] = 101  # almost constant: also divided by 1 / sqrt(90)
    levels = images.astype(np.float64)
    centred = levels - levels.mean((1, 2, 3), keepdims=True)
    expected = centred / np.maximum(levels.std((1, 2, 3), keepdims=True), 90**-0.5)
    given = images if scale == 255 else images.astype(np.float32)
    np.testing.assert_allclose(config.eval(given), expected, atol=1e-4)
    corners, mirrored = augment.draw(KEY, len(images), pad=config.pad, flip=config.flip)
    windows = by_loop(Preprocess(config.pad, True, (0, 0, 0), (1 / 255,) * 3), images, corners, mirrored)
    windows -= windows.mean((1, 2, 3), keepdims=True)
    expected = windows / np.maximum(windows.std((1, 2, 3), keepdims=True), 90**-0.5)
    np.testing.assert_allclose(config.train(KEY, given), expected, atol=1e-4)  # each window, after the crop


def test_other_normalisations_are_refused():
    with pytest.raises(DataError, match="normalise is 'batch'; write one of channels, fdg, image"):
        Preprocess.for_dataset(dataset(), augment=False, normalise="batch")
    with pytest.raises(DataError, match="normalise is 'fdg', for colour images, but test has 1 channels"):
        Preprocess.for_dataset(dataset((8, 8, 1)), augment=False, normalise="fdg")


def test_a_constant_channel_does_not_divide_by_zero():
    images = pictures()
    images[..., 1] = 77
    data = Dataset("flat", images, np.zeros(16, int), images, np.zeros(16, int))
    config = Preprocess.for_dataset(data, augment=False)
    assert config.std[1] == 1 and config.std[0] != 1
    np.testing.assert_allclose(np.asarray(config.eval(images))[..., 1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad": -1}, "pad is -1"),
        ({"std": (0.2, 0.0, 0.3)}, "every std above 0"),
        ({"mean": (0.5,)}, "one number per channel"),
        ({"dtype": jnp.int32}, "floating-point type"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(PLAIN, **change)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(shape=(6, 5, 1)), r"\[B, H, W, 3\]"),
        (pictures()[0], r"\[B, H, W, 3\]"),
        (pictures().astype(np.int32), "int32; give uint8"),
    ],
)
def test_bad_images_are_refused(images, message):
    for call in (PLAIN.eval, lambda x: PLAIN.train(KEY, x)):
        with pytest.raises(DataError, match=message):
            call(images)
