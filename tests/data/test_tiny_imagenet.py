"""Tiny-ImageNet: the published folder's labels go with its images, and each thing that may lack is named."""

import numpy as np
import pytest

from jaxdecouple.data import DataError, Preprocess, load

Image = pytest.importorskip("PIL.Image")
WNIDS = ("n03", "n01", "n02")  # as in the published file, not sorted


@pytest.fixture
def root(tmp_path):
    """Three classes of 64x64; image i of class c is of value 60 c + i, and every third one is stored as grey."""
    folder = tmp_path / "tiny-imagenet-200"

    def write(path, value, grey):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((64, 64, 3), value, np.uint8)
        Image.fromarray(pixels[..., 0] if grey else pixels).save(path, quality=95)

    for c, wnid in enumerate(sorted(WNIDS)):
        for i in range(4):
            write(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 60 * c + i, grey=i == 2)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    lines = []
    for i, wnid in enumerate(("n02", "n03", "n01", "n02")):
        write(folder / "val" / "images" / f"val_{i}.JPEG", 60 * sorted(WNIDS).index(wnid) + 10 + i, grey=i == 1)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tbullfrog\n")
    return folder


def test_images_have_the_labels_of_their_directories_and_annotations(root):
    data = load(f"tiny_imagenet:{root}")
    assert data.name == "tiny_imagenet" and data.image_shape == (64, 64, 3)
    assert data.class_names == ("goldfish", "bullfrog", "n03")  # words.txt lacks n03
    assert data.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.y_test.tolist() == [1, 2, 0, 1]
    np.testing.assert_array_equal(data.x_train[:, 5, 5, 1], [60 * c + i for c in range(3) for i in range(4)])
    np.testing.assert_array_equal(data.x_test[:, 5, 5, 2], [70, 131, 12, 73])
    assert (data.x_train == data.x_train[..., :1]).all()  # grey files as three equal channels


def test_preprocessing_pads_and_flips(root):
    config = Preprocess.for_dataset(load(f"tiny_imagenet:{root}"), augment=True)
    assert (config.pad, config.flip) == (8, True)


def test_the_path_alone_suggests_the_kind(root):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="did you mean 'tiny_imagenet:"):
        load(str(root))


def lines(root, change):
    path = root / "val" / "val_annotations.txt"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "wnids.txt").unlink(), r"wnids\.txt cannot be read .*No such file.*expected the unpacked"),
        (lambda r: (r / "wnids.txt").write_text("n01\nn01\nn02"), "names no class, or one twice"),
        (lambda r: (r / "wnids.txt").write_text("n01\nn02"), r"wnids\.txt does not name n03, which .*train holds"),
        (
            lambda r: (r / "wnids.txt").write_text("n01\nn02\nn03\nn04"),
            "no directory .*train/n04/images, and wnids.txt",
        ),
        (lambda r: (r / "words.txt").unlink(), r"words\.txt cannot be read"),
        (lambda r: (r / "train").rename(r / "training"), "there is no directory .*/train; expected"),
        (lambda r: [p.unlink() for p in (r / "train/n02/images").iterdir()], "train/n02/images holds no images; add"),
        (lambda r: (r / "val/images").rename(r / "val/pictures"), "there is no directory .*val/images; expected"),
        (lambda r: (r / "val/val_annotations.txt").unlink(), r"val_annotations\.txt cannot be read"),
        (lambda r: lines(r, lambda t: ""), r"val_annotations\.txt has no line for val_0\.JPEG"),
        (lambda r: lines(r, lambda t: t[t.index("val_1") :]), r"has no line for val_0\.JPEG"),
        (
            lambda r: lines(r, lambda t: t.replace("n03", "n99")),
            r"line 2 of .*gives val_1\.JPEG the class n99, which wni",
        ),
        (
            lambda r: lines(r, lambda t: t.replace("val_2.J", "val_7.J")),
            r"line 3 of .* names val_7\.JPEG, but .*no such",
        ),
        (
            lambda r: lines(r, lambda t: t.replace("val_2.J", "val_1.J")),
            r"line 3 of .* names val_1\.JPEG a second time",
        ),
        (lambda r: lines(r, lambda t: t.replace("\t", " ")), r"line 1 of .* is 'val_0\.JPEG n02 .*expected FILE, WNID"),
        (lambda r: (r / "val/images/val_3.JPEG").write_bytes(b"x"), r"val/images/val_3\.JPEG cannot be decoded"),
        (
            lambda r: Image.new("RGB", (32, 32)).save(r / "train/n01/images/n01_3.JPEG"),
            r"n01_3\.JPEG is 32x32 pixels, but .*n01_0\.JPEG is 64x64 pixels; all images need one size",
        ),
    ],
)
def test_what_is_wrong_is_named(root, damage, message):
    damage(root)
    with pytest.raises(DataError, match=message):
        load(f"tiny_imagenet:{root}")
