"""Files in LIBSVM's format: what is read, and what is said of files that cannot be read."""

import bz2
import gzip
import lzma
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from jaxdecouple.asynchronous import read_libsvm

TEXT = "+1 1:0.5 3:-2\n-1 2:1e-3\n# nothing here\n\n2.5 qid:7 1:4 4:8 # the end\n-1\n"
MATRIX = [[0.5, 0, -2, 0], [0, 1e-3, 0, 0], [4, 0, 0, 8], [0, 0, 0, 0]]
LABELS = [1, -1, 2.5, -1]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda text: text,
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
}


def written(folder: pathlib.Path, text: str, suffix: str = "") -> pathlib.Path:
    path = folder / f"data{suffix}"
    path.write_bytes(PACKERS[suffix](text.encode()))
    return path


@pytest.mark.parametrize("suffix", PACKERS)
def test_plain_and_compressed(tmp_path: pathlib.Path, suffix: str) -> None:
    x, y = read_libsvm(written(tmp_path, TEXT, suffix))
    assert scipy.sparse.issparse(x) and x.format == "csr" and x.nnz == 5
    assert x.dtype == np.float64 and y.dtype == np.float64
    np.testing.assert_array_equal(x.toarray(), MATRIX)
    np.testing.assert_array_equal(y, LABELS)


def test_a_path_may_be_text_and_numbers_single(tmp_path: pathlib.Path) -> None:
    x, y = read_libsvm(str(written(tmp_path, TEXT)), dtype=np.float32)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.toarray(), np.float32(MATRIX))
    np.testing.assert_array_equal(y, LABELS)


def test_columns_that_do_not_occur(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, TEXT)
    x, _ = read_libsvm(path, num_columns=6)
    np.testing.assert_array_equal(x.toarray(), np.pad(MATRIX, ((0, 0), (0, 2))))
    with pytest.raises(ValueError, match="write a larger num_columns") as error:
        read_libsvm(path, num_columns=3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", PACKERS)
def test_equals_scikit_learn(tmp_path: pathlib.Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    x = scipy.sparse.random(40, 12, density=0.3, random_state=1, format="csr")
    plain = tmp_path / "plain"
    dump_svmlight_file(x, rng.choice([-1, 1], 40), str(plain), zero_based=False)
    theirs, labels = load_svmlight_file(str(plain), n_features=12, zero_based=False)
    ours, y = read_libsvm(written(tmp_path, plain.read_text(), suffix), num_columns=12)
    np.testing.assert_array_equal(ours.toarray(), theirs.toarray())
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(ours.toarray(), x.toarray())


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("cat 1:2", "the label is 'cat'"),
        ("1 2147483648:1", "column 2147483648 is beyond 2147483647"),
        ("1:2 2:3", "the label is '1:2'"),
        ("1 1:2 x", "'x' is not column:value"),
        ("1 1:2 3:y", "'3:y' is not column:value"),
        ("1 1:2 z:3", "'z:3' is not column:value"),
        ("1 1:2 -3:3", "'-3:3' is not column:value"),
        ("1 3:1 2:1", "column 2 comes after column 3"),
        ("1 3:1 3:1", "column 3 comes after column 3"),
        ("1 0:1 2:1", "columns count up from 1"),
    ],
)
def test_malformed_lines(tmp_path: pathlib.Path, bad: str, fault: str, suffix: str) -> None:
    """The message has the file, the line, what is wrong with it and what to write."""
    path = written(tmp_path, f"+1 1:2 # fine\n\n-1 2:3 7:1\n{bad}\n1 1:1\n", suffix)
    with pytest.raises(ValueError) as error:
        read_libsvm(path)
    assert f"{path}, line 4: " in str(error.value)
    assert fault in str(error.value)
    assert "write 'label column:value" in str(error.value)


def test_no_file(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="there is no file") as error:
            read_libsvm(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("text", ["", "# a comment alone\n\n"])
def test_no_lines(tmp_path: pathlib.Path, text: str, suffix: str) -> None:
    path = written(tmp_path, text, suffix)
    with pytest.raises(ValueError, match="has no lines") as error:
        read_libsvm(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".bz2", ".gz", ".xz"])
def test_a_file_that_breaks_off(tmp_path: pathlib.Path, suffix: str) -> None:
    path = written(tmp_path, TEXT * 50, suffix)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be decompressed") as error:
        read_libsvm(path)
    assert str(path) in str(error.value) and "fetch it again" in str(error.value)


@pytest.mark.parametrize("suffix", [".bz2", ".gz", ".xz"])
def test_a_file_that_is_not_compressed(tmp_path: pathlib.Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_text(TEXT)
    with pytest.raises(ValueError, match="cannot be decompressed") as error:
        read_libsvm(path)
    assert str(path) in str(error.value)


def test_numbers_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="holds NaN or infinite numbers"):
        read_libsvm(written(tmp_path, "1 1:nan\n"))


def test_what_to_install(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="need scikit-learn: pip install scikit-learn"):
        read_libsvm(written(tmp_path, TEXT))
