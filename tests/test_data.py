"""The data: is it MNIST, and do the batches hold what they should?"""

import hashlib
import struct

import keras
import numpy as np
import pytest

from data import batches, epoch_order, even_batches, load_data, preprocess, to_images
from support.backend import feed
from support.data_file import check_images
from support.errors import InputError

OUTPUTS = {"classification": (10,), "autoencoder": (28, 28, 1)}

IDX_MD5 = {  # of the four files as first published, unpacked
    "train images": "6bbc9ace898e44ae57da46a324031adb",
    "train labels": "a25bea736e30d166cdddb491f175f624",
    "test images": "2646ac647ad5339dbf082846283269ea",
    "test labels": "27ae3e4e09519cfbb04c329615203637",
}


def idx(array):
    """An array of bytes as an IDX file: two zeros, type 8 (uint8), the rank, the big-endian sizes, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_arrays_are_the_canonical_files(mnist):
    for part, (images, labels) in zip(("train", "test"), mnist):
        assert hashlib.md5(idx(images)).hexdigest() == IDX_MD5[f"{part} images"]
        assert hashlib.md5(idx(labels)).hexdigest() == IDX_MD5[f"{part} labels"]


def test_preprocess_makes_ink_0_and_paper_1():
    x = preprocess(np.array([0, 51, 255], np.uint8).repeat(784).reshape(3, 28, 28))
    assert x.dtype == np.float32
    assert x.shape == (3, 28, 28, 1)
    assert x[:, 0, 0, 0].tolist() == [1, np.float32(0.8), 0]


def test_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(1000, seed=3, epoch=7)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, epoch_order(1000, seed=3, epoch=7))
    assert not np.array_equal(order, epoch_order(1000, seed=3, epoch=8))
    assert not np.array_equal(order, epoch_order(1000, seed=4, epoch=7))


def test_batches_go_through_an_epoch_in_its_order(mnist):
    images, labels = mnist[0][0][:100], mnist[0][1][:100]
    for epoch in (2, 3):
        order = epoch_order(100, 5, epoch)
        x, targets = zip(*batches(images, labels, 32, order, OUTPUTS))
        assert [len(batch) for batch in x] == [32, 32, 32, 4]
        assert np.array_equal(np.concatenate(x), preprocess(images[order]))
        assert np.array_equal(np.concatenate([drawing for _, drawing in targets]), preprocess(images[order]))
        one_hot = np.concatenate([label for label, _ in targets])
        assert one_hot.dtype == np.float32
        assert np.array_equal(one_hot, np.arange(10) == labels[order, None])


def test_keras_is_fed_the_same_batches_without_autotuning(mnist):
    images, labels = mnist[1][0][:50], mnist[1][1][:50]
    order = epoch_order(50, 1, 0)
    made = feed(lambda: batches(images, labels, 32, order, OUTPUTS), 2)
    pairs = [
        pair for _ in range(2) for pair in zip(made, batches(images, labels, 32, order, OUTPUTS), strict=True)
    ]  # once more from the first on, as the test images are needed after every epoch
    assert len(pairs) == 4
    for (x, targets), (expected_x, expected) in pairs:
        assert np.array_equal(x, expected_x)
        assert len(targets) == len(expected) == 2
        assert all(np.array_equal(*pair) for pair in zip(targets, expected))
    if keras.backend.backend() == "tensorflow":
        assert made.options().autotune.enabled is False


def test_what_is_measured_is_cut_into_batches_of_almost_one_size():
    for count, expected in {1: (1, 1), 500: (500, 1), 600: (300, 2), 1234: (412, 3), 10_000: (500, 20)}.items():
        assert even_batches(count) == expected
    for count in range(1, 5000):
        size, steps = even_batches(count)
        assert size <= 500 and size * (steps - 1) < count <= size * steps
        assert size * steps - count < steps  # as many as the last batch is smaller


def test_to_images_is_the_inverse_of_preprocess():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for images in (grey, np.stack([grey, 255 - grey, grey], axis=-1)):
        assert np.array_equal(to_images(preprocess(images)), images)


LABELS = {  # as they are saved, and what is said of them
    "-1 in uint64": (np.array([1, 2**64 - 1], np.uint64), "holds 18446744073709551615: number the classes from 0"),
    "2**63": (np.array([1, 2**63], np.uint64), "holds 9223372036854775808: number the classes from 0"),
    "a single number": (np.array(1), r"has the shape \(\): save one number for each of the 2 images"),
    "none": (np.array([], np.int64), r"has the shape \(0,\): save one number"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_checked_as_they_are_used(name, tmp_path):
    labels, said = LABELS[name]
    images = np.zeros((2, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=[0, 1], x_test=images, y_test=labels)
    with pytest.raises(InputError, match=said):
        load_data(tmp_path / "data.npz")


@pytest.mark.parametrize("images", [np.zeros((0, 28, 28), np.uint8), np.array(5, np.uint8)], ids=["none", "a number"])
def test_images_are_checked_before_their_labels(images, tmp_path):
    some = np.zeros((2, 28, 28), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=some, y_train=[0, 1], x_test=images, y_test=np.array([], np.int64))
    with pytest.raises(InputError, match=r"x_test has the shape .*: save at least one image"):
        load_data(str(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    "class_names", [[b"caf\xe9", b"b"], [{}, None], ["\ud800", "b"]], ids=["bytes", "objects", "half a letter"]
)
def test_class_names_that_are_no_texts_are_named(class_names, tmp_path):
    images = np.zeros((2, 28, 28), np.uint8)
    arrays = {"x_train": images, "y_train": [0, 1], "x_test": images, "y_test": [0, 1]}
    np.savez(tmp_path / "data.npz", **arrays, class_names=np.array(class_names))
    with pytest.raises(InputError, match="class_names is no array of texts"):
        load_data(tmp_path / "data.npz")


def test_classes_without_names_go_by_their_numbers():
    assert load_data()[2] == list("0123456789")


def test_class_names_keep_their_order_and_may_be_more_than_the_classes(tmp_path):
    images, names = np.zeros((2, 28, 28), np.uint8), ["zebra", "ape", "cow"]
    np.savez(tmp_path / "data.npz", x_train=images, y_train=[0, 1], x_test=images, y_test=[0, 1], class_names=names)
    assert load_data(tmp_path / "data.npz")[2] == names


def test_the_smallest_side_is_8():
    check_images(np.zeros((1, 8, 12, 3), np.uint8), "x")
    for side, scaled in ((4, "8"), (6, "8"), (9, "8 or 12")):
        with pytest.raises(InputError, match=f"side of {side}, .*: scale it to {scaled}$"):
            check_images(np.zeros((1, 8, side), np.uint8), "x")


def test_preprocess_keeps_the_order_of_the_colours():
    image = np.array([[[[255, 102, 0]]]], np.uint8)
    assert preprocess(image)[0, 0, 0].tolist() == pytest.approx([0, 0.6, 1])
