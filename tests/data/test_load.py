"""Loading: each source gives the arrays that went in, and each slip a message that names it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxdecouple.data import DataError, Dataset, image_files, load
from jaxdecouple.errors import DataWarning

RNG = np.random.default_rng(0)
ARRAYS = {
    "x_train": RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8),
    "y_train": np.arange(12, dtype=np.uint8) % 3,
    "x_test": RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
    "y_test": np.arange(6, dtype=np.int64) % 3,
}


def dataset(**changes):
    return Dataset("test", **{**ARRAYS, **changes})


# Dataset


def test_a_dataset_keeps_images_and_makes_labels_int32():
    data = dataset()
    assert data.x_train is ARRAYS["x_train"]
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert (data.num_classes, data.class_names) == (3, ("0", "1", "2"))
    assert data.image_shape == (5, 4, 3)


def test_grey_images_get_a_channel_axis():
    data = dataset(x_train=ARRAYS["x_train"][..., 0], x_test=ARRAYS["x_test"][..., :1])
    assert data.x_train.shape == (12, 5, 4, 1) and data.image_shape == (5, 4, 1)


def test_floating_point_images_are_kept():
    x = {name: ARRAYS[name] / 3 for name in ("x_train", "x_test")}
    data = dataset(**x)
    assert data.x_test is x["x_test"] and data.x_test.dtype == np.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": ARRAYS["x_train"].astype(np.int16)}, "x_train has type int16"),
        ({"x_test": ARRAYS["x_test"][0, 0]}, r"x_test has shape \[4, 3\]"),
        ({"x_train": ARRAYS["x_train"][:0], "y_train": np.zeros(0, int)}, "no axis of length 0"),
        ({"x_test": ARRAYS["x_test"][:, :4]}, r"images differ: uint8\[5, 4, 3\] against"),
        ({"x_test": ARRAYS["x_test"] / 255}, "images differ"),
        ({name: np.full(ARRAYS[name].shape, np.nan) for name in ("x_train", "x_test")}, "NaN"),
        ({"y_train": ARRAYS["y_train"][:-1]}, r"y_train has shape \[11\].*\[12\]"),
        ({"y_test": ARRAYS["y_test"] * 1.0}, "y_test has type float64; labels are integer"),
        ({"y_train": np.arange(12) + 2**40}, "number the classes from 0"),
        ({"y_train": np.arange(12) * 900}, "labels up to 9900, but there are 12 training images; number the classes"),
        (
            {name: RNG.random((12, 3, 8, 8)) for name in ("x_train", "x_test")},
            r"x_train has shape \[12, 3, 8, 8\], channels first, .*np.moveaxis\(images, 1, -1\)",
        ),
        (
            {"x_train": ARRAYS["x_train"] / 255, "x_test": ARRAYS["x_test"] / 1.0},
            "training images reach 1, test images 25., as if on two scales; give both",
        ),
        ({"y_test": ARRAYS["y_test"] - 1}, "y_test has labels from -1 to 1"),
        ({"y_test": ARRAYS["y_test"] + 1}, "labels from 1 to 3, but there are 3 classes"),
        ({"class_names": ("a", "b")}, "y_train has labels from 0 to 2, but there are 2 classes"),
    ],
)
def test_what_makes_no_dataset_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        dataset(**changes)


def test_a_dataset_gives_out_its_batches():
    data = dataset()
    assert (data.num_train, data.num_test, data.crops_itself) == (12, 6, False)
    got, order = list(data.train_batches(5, seed=1, epoch=2, start=1)), np.random.default_rng([1, 2]).permutation(12)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in got]), data.x_train[order[5:]])
    np.testing.assert_array_equal(np.concatenate([y for _, y in got]), data.y_train[order[5:]])
    assert [len(y) for _, y in data.train_batches(5, seed=1, epoch=2, drop_last=True)] == [5, 5]
    tests = list(data.test_batches(4))
    assert [len(y) for _, y in tests] == [4, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in tests]), data.x_test)


def test_arrays_of_another_machines_byte_order_are_turned():
    swapped = {name: ARRAYS[name].astype(">f4") for name in ("x_train", "x_test")}
    data = dataset(**swapped)
    assert data.x_train.dtype.isnative and (data.x_train == ARRAYS["x_train"]).all()


def test_class_names_may_reach_further_than_the_training_labels():
    with pytest.warns(DataWarning, match="test has no training images of class d"):
        data = dataset(y_test=ARRAYS["y_test"] + 1, class_names=tuple("abcd"))
    assert data.num_classes == 4


# digits


def test_digits_are_the_1797_split_as_documented():
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    data = load("digits")
    assert data.x_train.shape == (1437, 8, 8, 1) and data.x_test.shape == (360, 8, 8, 1)
    order = np.random.default_rng(0).permutation(1797)
    together = np.concatenate([data.x_train, data.x_test])[..., 0]
    assert together.dtype == np.uint8 and together.max() == 255
    np.testing.assert_allclose(together * (16 / 255), bundled.images[order], atol=0.5 * 16 / 255)
    labels = np.concatenate([data.y_train, data.y_test])
    np.testing.assert_array_equal(labels, bundled.target[order])


# npz


def test_npz_gives_back_its_arrays(tmp_path):
    arrays = {**ARRAYS, "y_train": ARRAYS["y_train"][:, None], "class_names": np.array(list("abc"))}
    np.savez(tmp_path / "small.npz", **arrays)
    data = load(f"npz:{tmp_path}/small.npz")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(getattr(data, name), array)
    assert (data.name, data.class_names) == ("small", ("a", "b", "c"))


def test_data_dir_is_where_relative_paths_start(tmp_path):
    np.savez(tmp_path / "small.npz", **ARRAYS)
    assert load("npz:small.npz", data_dir=str(tmp_path)).name == "small"


def test_npz_refuses_missing_files_and_arrays(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.npz; write one with"):
        load("npz:nothing.npz", data_dir=str(tmp_path))
    np.savez(tmp_path / "half.npz", x_train=ARRAYS["x_train"], labels=ARRAYS["y_train"])
    with pytest.raises(DataError, match=r"lacks y_train, x_test, y_test; it holds x_train, labels"):
        load("npz:half.npz", data_dir=str(tmp_path))


@pytest.mark.parametrize("kind", ["text", "npy", "cut", "pickled"])
def test_npz_refuses_files_of_another_kind(tmp_path, kind):
    path = tmp_path / "bad.npz"
    if kind == "text":
        path.write_text("not an archive")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, ARRAYS["x_train"])
    elif kind == "cut":
        np.savez(path, **ARRAYS)
        path.write_bytes(path.read_bytes()[:200])
    else:
        np.savez(path, **{**ARRAYS, "y_test": np.array([{}] * 6)})
    with pytest.raises(DataError, match=r"bad\.npz is not a readable npz file"):
        load(f"npz:{path}")


# folder


@pytest.fixture
def folder(tmp_path):
    """Colour PNGs of value 10 * class + number, written in an order that is not the sorted one."""
    image = pytest.importorskip("PIL.Image")
    for part, number in (("train", 3), ("test", 2)):
        for c, name in reversed(list(enumerate(("ant", "bee", "cat")))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in reversed(range(number)):
                pixels = np.full((5, 4, 3), 10 * c + i, np.uint8)
                image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_folder_is_sorted_by_class_and_file_name(folder):
    (folder / "train" / "ant" / "notes.txt").write_text("passed over")
    (folder / "train" / ".hidden").mkdir()
    with pytest.warns(DataWarning, match=r"train/ant: notes\.txt left out: only \.png, \.jpg, \.jpeg are read"):
        data = load(f"folder:{folder}")
    assert data.name == folder.name
    assert data.class_names == ("ant", "bee", "cat") and data.image_shape == (5, 4, 3)
    assert data.x_train[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.x_test[:, 4, 3, 2].tolist() == [0, 1, 10, 11, 20, 21]
    assert data.y_test.tolist() == [0, 0, 1, 1, 2, 2]


def test_folder_decodes_more_files_than_one_threads_share(folder, monkeypatch):
    monkeypatch.setattr("jaxdecouple.data.image_files._CHUNK", 2)
    test_folder_is_sorted_by_class_and_file_name(folder)


def test_folder_reads_jpegs_near_to_what_was_written(tmp_path):
    image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    pixels = np.stack([ramp, ramp.T, 255 - ramp], -1)
    for part, suffix in (("train", "jpg"), ("test", "JPEG")):
        (tmp_path / part / "only").mkdir(parents=True)
        path = tmp_path / part / "only" / f"0.{suffix}"
        image.fromarray(pixels).save(path, quality=100, subsampling=0)
    data = load(f"folder:{tmp_path}")
    assert np.abs(data.x_train[0].astype(int) - pixels).max() < 8
    np.testing.assert_array_equal(data.x_train, data.x_test)


@pytest.mark.parametrize("grey_parts", [("train", "test"), ("train",)])
def test_folder_is_grey_only_if_every_file_is(folder, grey_parts):
    image = pytest.importorskip("PIL.Image")
    for path in folder.rglob("*.png"):
        if path.relative_to(folder).parts[0] in grey_parts:
            image.open(path).convert("L").save(path)
    data = load(f"folder:{folder}")
    assert data.image_shape == (5, 4, 1 if len(grey_parts) == 2 else 3)
    for channel in range(data.image_shape[-1]):
        assert data.x_train[:, 4, 3, channel].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_folder_names_the_file_that_is_damaged_or_of_another_size(folder):
    image = pytest.importorskip("PIL.Image")
    odd = folder / "train" / "bee" / "1.png"
    image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(odd)
    with pytest.raises(DataError, match=r"bee/1\.png is 5x4 pixels, but .*ant/0\.png is 4x5"):
        load(f"folder:{folder}")
    odd.write_bytes((folder / "train" / "bee" / "0.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"bee/1\.png cannot be decoded"):
        load(f"folder:{folder}")
    image.fromarray(np.zeros((5, 4), np.uint16)).save(odd)
    with pytest.raises(DataError, match=r"bee/1\.png has more than 8 bits per channel .*convert it to 8 bits"):
        load(f"folder:{folder}")


def test_images_are_turned_as_their_exif_data_say_and_drawn_on_black(tmp_path):
    image = pytest.importorskip("PIL.Image")
    upright = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    turned = image.Exif()
    turned[0x0112] = 8  # the camera was held a quarter turned
    image.fromarray(np.rot90(upright, -1)).save(tmp_path / "turned.png", exif=turned)
    assert (np.asarray(image_files.decode("folder", tmp_path / "turned.png")) == upright).all()
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    image.fromarray(pixels).save(tmp_path / "alpha.png")
    drawn = np.asarray(image_files.decode("folder", tmp_path / "alpha.png"))
    assert (drawn[0] == 0).all() and (drawn[1] == 200).all() and drawn.shape == (2, 2, 3)


def test_what_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    def forbidden(*args, **settings):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", forbidden)
        with pytest.raises(DataError, match=r"ant/0\.png cannot be read \(Permission denied\); allow this user"):
            load(f"folder:{folder}")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.iterdir", forbidden)
        with pytest.raises(DataError, match=r"train cannot be listed .*Permission denied.*; allow this user"):
            load(f"folder:{folder}")
    np.savez(folder / "a.npz", **ARRAYS)
    with monkeypatch.context() as patch:
        patch.setattr("numpy.load", forbidden)
        with pytest.raises(DataError, match=r"a\.npz cannot be read \(Permission denied\); allow this user"):
            load(f"npz:{folder / 'a.npz'}")


def test_folder_refuses_missing_and_unequal_directories(folder):
    (folder / "test" / "dog").mkdir()
    with pytest.raises(DataError, match=r"test/dog holds no \.png, \.jpg, \.jpeg files"):
        load(f"folder:{folder}")
    (folder / "test" / "dog" / "0.png").write_bytes((folder / "test/ant/0.png").read_bytes())
    with pytest.raises(DataError, match="has dog in test but not in train"):
        load(f"folder:{folder}")
    (folder / "test").rename(folder / "validation")
    with pytest.raises(DataError, match="there is no directory .*/test; expected"):
        load(f"folder:{folder}")
    (folder / "test").mkdir()
    with pytest.raises(DataError, match="test holds no class directories"):
        load(f"folder:{folder}")


# Names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifa10", "did you mean 'cifar10'"),
        ("mnist.npz", "did you mean 'npz:mnist.npz'"),
        ("Folder:/x", "did you mean 'folder:/x'"),
        ("imagnet:/x", "did you mean 'imagenet:/x'"),
        ("tinyimagenet:/x", "did you mean 'tiny_imagenet:/x'"),
        ("npz:", "names no path; write 'npz:PATH'"),
        ("imagenet", "names no path; write 'imagenet:PATH'"),
        ("zzz", "unknown data set 'zzz'; expected 'digits', 'npz:PATH', 'folder:PATH'"),
        ("", "unknown data set ''; expected"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(spec, message):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match=message):
        load(spec)


def test_a_missing_package_is_named(monkeypatch):
    for package in ("tensorflow_datasets", "sklearn.datasets", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    for spec, advice in [
        ("cifar10", "pip install tensorflow-datasets pillow importlib_resources"),
        ("digit", "did you mean 'digits'"),
        ("digits", "pip install scikit-learn"),
        ("folder:.", "pip install pillow"),
        ("tiny_imagenet:.", "pip install pillow"),
    ]:
        with pytest.raises(DataError, match=advice):
            load(spec)


def test_importing_the_package_imports_no_optional_one():
    code = (
        "import sys, jaxdecouple.data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL', 'requests', 'grain'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
