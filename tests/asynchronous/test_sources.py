"""Sources give the arrays that their names promise, and say what is wrong with names and files."""

import numpy as np
import pytest

from jaxdecouple.asynchronous import sources


def test_digits():
    digits = sources.load("digits")
    assert digits.name == "digits" and not digits.is_sparse
    assert digits.x.shape == (1437, 64) and digits.x_test.shape == (360, 64)
    assert digits.x.dtype == np.float64 and digits.x.min() == 0 and digits.x.max() == 1
    assert set(digits.y) == set(range(10)) and len(digits.y) == 1437 and len(digits.y_test) == 360


def test_the_first_examples():
    digits = sources.load("digits").first(100, 50)
    assert digits.x.shape == (100, 64) and digits.y.shape == (100,) and digits.x_test.shape == (50, 64)
    assert sources.load("digits").first().x.shape == (1437, 64)
    with pytest.raises(ValueError, match="num_examples is 1438, and digits has 1437 examples; write 1437 or less"):
        sources.load("digits").first(1438)
    with pytest.raises(ValueError, match="num_tests is 5, and made:10x2 has no test part; write 0"):
        sources.load("made:10x2").first(0, 5)


def test_libsvm(tmp_path):
    (tmp_path / "train").write_text("1 1:0.5 3:2\n0 2:1\n")
    (tmp_path / "test").write_text("0 1:4\n")
    source = sources.load(f"libsvm:{tmp_path}/train", test=f"libsvm:{tmp_path}/test", dtype=np.float32)
    assert source.name == "libsvm:train" and source.is_sparse and source.x.dtype == np.float32
    np.testing.assert_array_equal(source.x.toarray(), [[0.5, 0, 2], [0, 1, 0]])
    np.testing.assert_array_equal(source.y, [1, 0])
    np.testing.assert_array_equal(source.x_test.toarray(), [[4, 0, 0]])
    assert sources.load(f"libsvm:{tmp_path}/train").x_test is None
    assert source.first(1).x.shape == (1, 3)


@pytest.mark.parametrize("with_test", [False, True])
def test_npz(tmp_path, with_test):
    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4) * 10
    arrays = {"x_train": images, "y_train": np.array([[3], [1], [0]])}
    if with_test:
        arrays |= {"x_test": images[:1], "y_test": np.array([3])}
    np.savez(tmp_path / "a.npz", **arrays)
    source = sources.load(f"npz:{tmp_path}/a.npz")
    assert source.name == "npz:a.npz"
    np.testing.assert_allclose(source.x, images.reshape(3, 8) / 255)
    np.testing.assert_array_equal(source.y, [3, 1, 0])
    assert (source.x_test is not None) == with_test


def test_npz_keeps_numbers_that_are_no_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.array([[300.0, -2.0]]), y_train=np.array([0.5]))
    np.testing.assert_array_equal(sources.load(f"npz:{tmp_path}/a.npz").x, [[300, -2]])


def test_made_is_the_same_for_the_same_seed():
    one, same, other = (sources.load("made:50x8", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.x, same.x)
    assert not np.array_equal(one.x, other.x)
    np.testing.assert_allclose(np.linalg.norm(one.x, axis=1), 1)


def test_made_has_a_planted_w():
    source = sources.load("made:2000x10", seed=3)
    w, *_ = np.linalg.lstsq(source.x, source.y, rcond=None)
    assert 0.09 < np.std(source.y - source.x @ w) < 0.11 and np.std(source.y) > 0.3


def test_made_sparse_is_never_dense():
    source = sources.load("made:3000x1000000:0.00002", dtype=np.float32)  # 12 GB if it were
    assert source.is_sparse and source.x.format == "csr" and source.x.dtype == np.float32
    assert source.x.shape == (3000, 1000000) and source.x.nnz <= 60000 and source.x.nnz > 59900
    assert source.x.has_sorted_indices and source.x.has_canonical_format
    np.testing.assert_allclose(source.x.multiply(source.x).sum(axis=1), 1, rtol=1e-5)
    assert np.isfinite(source.y).all() and source.y.dtype == np.float64


def test_signs():
    np.testing.assert_array_equal(sources.signs(np.array([0, 1, 1])), [-1, 1, 1])
    np.testing.assert_array_equal(sources.signs(np.array([-1.0, 1.0])), [-1, 1])
    np.testing.assert_array_equal(sources.signs(np.array([1, 2])), [-1, 1])
    np.testing.assert_array_equal(sources.signs(np.array([0, 1, 2, 3])), [-1, 1, -1, 1])
    np.testing.assert_array_equal(sources.signs(np.array([0, 1, 2, 3]), positive=2), [-1, -1, 1, -1])
    np.testing.assert_array_equal(sources.signs(np.array([-0.5, 0.25, 3.0])), [-1, 1, 1])
    with pytest.raises(ValueError, match="no label is 7; write one of 0, 1, 2"):
        sources.signs(np.array([0, 1, 2]), positive=7)
    with pytest.raises(ValueError, match="the labels are 2, 4, 6, of which all become -1"):
        sources.signs(np.array([2, 4, 6]))


def test_classes():
    assert sources.classes(np.array([0.0, 2.0])).dtype == np.int32
    np.testing.assert_array_equal(sources.classes(np.array([-1, 1, -1])), [0, 1, 0])
    with pytest.raises(ValueError, match="classes are whole numbers from 0"):
        sources.classes(np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown source 'digit'; did you mean 'digits'"),
        ("mnist", "unknown source 'mnist'; write 'digits', 'libsvm:PATH'"),
        ("npz:", "without a path; write npz:PATH"),
        ("libsvm", "without a path; write libsvm:PATH"),
        ("npz:nowhere.npz", "there is no file nowhere.npz; write npz:PATH"),
        ("libsvm:nowhere", "there is no file nowhere; write the path"),
        ("made:10", "write made:NxD or made:NxD:DENSITY"),
        ("made:10x5:many", "write made:NxD or made:NxD:DENSITY"),
        ("made:10x5:1.5", "a DENSITY above 0, at most 1"),
        ("made:0x5", "write N and D of at least 1"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        sources.load(name)


def test_files_that_are_no_sources(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(
        ValueError, match="is not a readable npz file .*write npz:PATH of a file that numpy.savez wrote"
    ):
        sources.load(f"npz:{tmp_path}/text.npz")
    np.savez(tmp_path / "half.npz", x_train=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="holds x_train; write a file with x_train and y_train"):
        sources.load(f"npz:{tmp_path}/half.npz")
    np.savez(tmp_path / "odd.npz", x_train=np.zeros((2, 2)), y_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"x_train has shape \(2, 2\) and dtype float64, y_train shape \(3,\)"):
        sources.load(f"npz:{tmp_path}/odd.npz")
    with pytest.raises(ValueError, match="leave it out"):
        sources.load("digits", test="libsvm:test")
    (tmp_path / "train").write_text("1 1:2\n")
    with pytest.raises(ValueError, match="the test part is 'elsewhere'; write libsvm:PATH"):
        sources.load(f"libsvm:{tmp_path}/train", test="elsewhere")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y_train": np.array(["a", "b"])}, "y_train shape .* and dtype <U1; write numbers"),
        ({"x_train": np.array([[1, np.nan], [0, 1]])}, "holds NaN or infinite numbers"),
        ({"y_train": np.array([1, np.inf])}, "holds NaN or infinite numbers"),
    ],
)
def test_arrays_that_are_no_examples(arrays, says, tmp_path):
    np.savez(tmp_path / "a.npz", **{"x_train": np.eye(2), "y_train": np.ones(2), **arrays})
    with pytest.raises(ValueError, match=says):
        sources.load(f"npz:{tmp_path}/a.npz")


def test_a_lone_array_is_no_source(tmp_path):
    with (tmp_path / "lone.npz").open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(ValueError, match="is not a readable npz file .*write npz:PATH of a file"):
        sources.load(f"npz:{tmp_path}/lone.npz")
