"""A streamed data set: batches that their arguments decide, in bounded memory, with every bad file named."""

import dataclasses
import pathlib
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from jaxdecouple.data import DataError, Preprocess, epoch_batches, image_files, load, num_batches, streamed
from jaxdecouple.data.crops import centre_crop, draw_window

pytest.importorskip("grain")
Image = pytest.importorskip("PIL.Image")
CLASSES = ("n01", "n02", "n03")
SIZE = 8


def write(path: pathlib.Path, width: int, height: int, value: int, mode: str = "RGB") -> None:
    """A noisy image around `value`, in a file of any mode JPEG knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([width, height, value]).integers(-20, 20, (height, width, 3))
    Image.fromarray(np.clip(value + noise, 0, 255).astype(np.uint8)).convert(mode).save(path)


def make(root: pathlib.Path, test: str = "val", number: int = 8) -> pathlib.Path:
    """`number` training and 3 test images for each class, of different sizes and modes, not written in order."""
    for part, count in ((test, 3), ("train", number)):
        for c, name in reversed(list(enumerate(CLASSES))):
            for i in reversed(range(count)):
                mode = ("RGB", "L", "CMYK")[i % 3]
                write(root / part / name / f"{name}_{i}.JPEG", 11 + 3 * i, 9 + 5 * c, 30 + 60 * c + 5 * i, mode)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("imagenet"))


def imagenet(root, **options):
    return load(f"imagenet:{root}", **{"image_size": SIZE, **options})


def train(data, batch_size=5, **options):
    return list(data.train_batches(batch_size, **{"seed": 0, "epoch": 0, **options}))


def assert_same(got, expected):
    assert len(got) == len(expected)
    for (x, y), (x2, y2) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


# What is there


def test_it_says_what_it_holds(root):
    data = imagenet(root)
    assert (data.num_train, data.num_test, data.num_classes, data.class_names) == (24, 9, 3, CLASSES)
    assert data.image_shape == (SIZE, SIZE, 3) and data.name == "imagenet"
    x, y = train(data)[0]
    assert x.shape == (5, SIZE, SIZE, 3) and x.dtype == np.uint8 and y.dtype == np.int32
    assert load(f"imagenet:{root}").image_shape == (224, 224, 3) and load(f"imagenet:{root}").resize == 256


@pytest.mark.parametrize("test", ["test", "val"])
def test_any_folder_of_that_form_is_streamed(tmp_path, test):
    data = load(f"streamed:{make(tmp_path, test, 2)}", image_size=SIZE)
    assert data.name == tmp_path.name and data.test.root == tmp_path / test


def test_imagenets_own_test_files_have_no_labels_and_are_not_taken(tmp_path):
    make(tmp_path, "val", 2)
    write(tmp_path / "test" / "0.JPEG", 9, 9, 0)
    assert imagenet(tmp_path).test.root == tmp_path / "val"


def test_the_test_part_comes_in_order_and_whole(root):
    batches = list(imagenet(root).test_batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 1]
    assert np.concatenate([y for _, y in batches]).tolist() == [0] * 3 + [1] * 3 + [2] * 3
    files = sorted((root / "val").rglob("*.JPEG"))
    expected = [centre_crop(Image.open(file), SIZE, 9) for file in files]  # 9.14 is 8/7 of 8
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), expected)


def test_the_training_order_is_that_of_data_in_memory(root):
    data = imagenet(root)
    labels = np.repeat(np.arange(3), 8)
    order = epoch_batches(labels, labels, 5, seed=3, epoch=2)
    assert_same([(y, y) for _, y in train(data, seed=3, epoch=2)], list(order))


def test_each_image_is_its_own_window_of_its_own_file(root):
    data = imagenet(root)
    x = np.concatenate([x for x, _ in train(data, seed=3, epoch=2)])
    order = np.random.default_rng([3, 2]).permutation(24)
    files = sorted((root / "train").rglob("*.JPEG"))
    for pixels, index in zip(x, order, strict=True):
        image, rng = Image.open(files[index]).convert("RGB"), np.random.default_rng([3, 2, index, 1])
        left, top, w, h = draw_window(rng, *image.size, (0.08, 1), (3 / 4, 4 / 3))
        window = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        expected = np.asarray(window)[:, ::-1] if rng.random() < 0.5 else np.asarray(window)
        np.testing.assert_array_equal(pixels, expected)


def test_without_augmentation_training_images_are_cropped_as_test_images(root):
    data = imagenet(root)
    order = np.random.default_rng([0, 0]).permutation(24)
    files = sorted((root / "train").rglob("*.JPEG"))
    expected = [centre_crop(Image.open(files[index]), SIZE, 9) for index in order]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in train(data, augment=False)]), expected)


# Repeating and resuming


def test_seed_and_epoch_decide_and_nothing_else(root):
    data = imagenet(root)
    assert_same(train(data, seed=1, epoch=1), train(imagenet(root), seed=1, epoch=1))
    firsts = [train(data, seed=s, epoch=e)[0][0].tobytes() for s in (0, 1) for e in (0, 1)]
    assert len(set(firsts)) == 4


def test_an_image_gets_another_window_in_another_epoch(tmp_path):
    data = imagenet(make(tmp_path, number=1))
    batches = [train(data, 3, epoch=epoch)[0] for epoch in range(6)]
    assert len({x[y.tolist().index(1)].tobytes() for x, y in batches}) == 6


@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_gives_the_same_rest(root, drop_last):
    data = imagenet(root)
    whole = train(data, drop_last=drop_last, epoch=1)
    assert [len(y) for _, y in whole] == [5, 5, 5, 5] + [4] * (not drop_last)
    assert len(whole) == num_batches(24, 5, drop_last)
    for start in range(len(whole) + 1):
        assert_same(train(data, drop_last=drop_last, epoch=1, start=start), whole[start:])


def test_the_number_of_threads_does_not_change_the_batches(root, monkeypatch):
    expected, tests = train(imagenet(root, num_threads=1)), list(imagenet(root, num_threads=1).test_batches(4))
    decode, delays = image_files.decode, np.random.default_rng(0)

    def late(kind, path):
        time.sleep(delays.uniform(0, 0.01))  # so that threads overtake one another
        return decode(kind, path)

    monkeypatch.setattr(image_files, "decode", late)
    for threads in (2, 5, 0):
        data = imagenet(root, num_threads=threads)
        assert_same(train(data), expected)
        assert_same(list(data.test_batches(4)), tests)


def test_what_is_skipped_is_not_decoded(root, monkeypatch):
    data, seen, decode = imagenet(root), [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda kind, path: seen.append(path) or decode(kind, path))
    assert len(train(data, start=3)) == 2 and len(seen) == 9


# Memory


def test_few_decoded_images_are_alive_at_once(tmp_path, monkeypatch):
    data = imagenet(make(tmp_path, number=40), num_threads=3)
    alive, most, lock, crop = weakref.WeakSet(), [], threading.Lock(), streamed.random_crop

    class Pixels(np.ndarray):
        """An array that can be counted: equal to itself alone."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def counted(*args, **options):
        pixels = np.array(crop(*args, **options)).view(Pixels)
        with lock:
            alive.add(pixels)
            most.append(len(alive))
        return pixels

    monkeypatch.setattr(streamed, "random_crop", counted)
    size = 4
    for _ in data.train_batches(size, seed=0, epoch=0):
        time.sleep(0.005)  # slower than the threads, which would decode all 120 if they could
    assert len(most) == 120
    assert 2 * size <= max(most) <= 3 * size + 3 + 1  # two batches ahead, one being put together, one for each thread


def test_a_consumer_that_stops_early_leaves_no_work_behind(root, monkeypatch):
    data, seen, decode = imagenet(root, num_threads=1), [], image_files.decode

    def slow(kind, path):
        seen.append(path)
        time.sleep(0.03)
        if len(seen) == 6:
            raise DataError("spoiled")
        return decode(kind, path)

    monkeypatch.setattr(image_files, "decode", slow)
    batches = data.train_batches(4, seed=0, epoch=0)
    next(batches)
    with pytest.raises(DataError, match="spoiled") as info:  # which holds on to everything, as a debugger would
        next(batches)
    started = len(seen)
    time.sleep(0.3)
    assert 6 <= len(seen) <= started + 1 and info.tb  # one may have been about to start; eight were waiting


# With Preprocess


def test_preprocess_only_normalises_with_imagenets_numbers(root):
    data = imagenet(root)
    config = Preprocess.for_dataset(data, augment=True)
    assert (config.pad, config.flip) == (0, False)
    assert config.mean == (0.485, 0.456, 0.406) and config.std == (0.229, 0.224, 0.225)
    x, _ = next(data.test_batches(9))
    np.testing.assert_allclose(config.eval(x), (x / 255 - config.mean) / config.std, atol=1e-5)


# What is refused


def copy_of(tmp_path):
    return make(tmp_path, number=2)


def test_a_damaged_file_is_named_and_what_comes_before_it_is_given_out(tmp_path):
    root = make(tmp_path)
    data = imagenet(root, num_threads=2)
    whole = train(data)
    index = int(np.random.default_rng([0, 0]).permutation(24)[12])  # in the third batch
    path = sorted((root / "train").rglob("*.JPEG"))[index]
    path.write_bytes(path.read_bytes()[:200])
    got = []
    with pytest.raises(DataError, match=rf"{path} cannot be decoded \(.*\); replace the file or remove it"):
        for batch in data.train_batches(5, seed=0, epoch=0):
            got.append(batch)
    assert_same(got, whole[:2])
    path.write_text("no image at all")
    with pytest.raises(DataError, match=rf"{path.name} cannot be decoded"):
        train(data)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} cannot be decoded \(.*No such file"):
        train(data)


def test_a_damaged_test_file_is_named(tmp_path):
    data = imagenet(copy_of(tmp_path))
    (tmp_path / "val" / "n02" / "n02_1.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match=r"val/n02/n02_1\.JPEG cannot be decoded"):
        list(data.test_batches(4))


def test_a_first_file_that_cannot_be_read_is_found_at_once(tmp_path):
    copy_of(tmp_path)
    (tmp_path / "val" / "n01" / "n01_0.JPEG").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"val/n01/n01_0\.JPEG cannot be decoded"):
        imagenet(tmp_path)


def test_missing_and_unequal_directories_are_named(tmp_path):
    copy_of(tmp_path)
    (tmp_path / "train" / "n04").mkdir()
    with pytest.raises(DataError, match=r"imagenet: .*train/n04 holds no \.png, \.jpg, \.jpeg files; add images"):
        imagenet(tmp_path)
    write(tmp_path / "train" / "n04" / "0.JPEG", 9, 9, 9)
    with pytest.raises(DataError, match="has n04 in train but not in val; both need the same"):
        imagenet(tmp_path)
    (tmp_path / "train" / "n04").rename(tmp_path / "val" / "n04")
    with pytest.raises(DataError, match="has n04 in val but not in train"):
        imagenet(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")
    for kind in ("imagenet", "streamed"):
        with pytest.raises(DataError, match="there is no directory .*/val; expected .*/train/CLASS"):
            load(f"{kind}:{tmp_path}")
    with pytest.raises(DataError, match="there is no directory .*/nowhere/train"):
        load(f"imagenet:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": -3}, "image_size is -3; write at least 1"),
        ({"num_threads": -1}, "num_threads is -1; write at least 1, or 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(root, options, message):
    with pytest.raises(DataError, match=message):
        imagenet(root, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 7}, "resize is 7; write at least image_size, 8"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
    ],
)
def test_windows_that_cannot_be_are_refused(root, changes, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(imagenet(root), **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25, "drop_last": True}, "exceeds the 24 examples"),
        ({"epoch": -1}, "epoch is -1"),
        ({"start": 6}, "start is 6, but an epoch has 5 batches; write 0 to 5"),
    ],
)
def test_refusals_come_at_the_call(root, options, message):
    with pytest.raises(DataError, match=message):
        imagenet(root).train_batches(**{"batch_size": 5, "seed": 0, "epoch": 0, **options})


def test_there_are_no_arrays_and_the_error_says_so(root):
    with pytest.raises(DataError, match="imagenet is streamed and has no x_train; use train_batches"):
        _ = imagenet(root).x_train
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = imagenet(root).nothing


@pytest.mark.parametrize(("package", "advice"), [("grain", "pip install grain pillow"), ("PIL", "pip install pillow")])
def test_a_missing_package_is_named(root, monkeypatch, package, advice):
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    monkeypatch.setitem(sys.modules, "PIL.Image", None) if package == "PIL" else None
    with pytest.raises(DataError, match=advice):
        imagenet(root)
