"""The data: read and check MNIST, put its images in the order of an epoch, make batches, feed them to Keras.

    (x_train, y_train), (x_test, y_test) = load_mnist()

[A] is the article, https://qiita.com/maiwa/items/7ea64fa6da1b37ca2a98, and [R] its author's
repository, https://github.com/mim92/mnist, folder CNN_Autoencoder.
"""

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent / "data" / "mnist.npz"
IMAGE_SHAPE = (28, 28)
CLASS_NUM = 10  # [A]
PREDICT_BATCH_SIZE = 500  # where no weights change, any size gives the same result; a large one is quicker
MNIST_TEST_SHA256 = "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"  # of is_mnist_test()'s bytes


class InputError(ValueError):
    """Something the person at the keyboard can mend; the message says what and how."""


def load_mnist(path=DATA):
    """Read and check an .npz file with MNIST's four arrays.

    Returns (x_train, y_train), (x_test, y_test): images uint8 (n, 28, 28), 0 for paper and 255 for
    ink; labels int64 (n,), 0 to 9. Raises InputError when the file cannot be read or holds else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except FileNotFoundError:
        raise InputError(f"no data file {path}: give --data an .npz file") from None
    except Exception as error:  # a damaged zip or array can fail in a dozen ways
        raise InputError(f"{path}: not an .npz file with MNIST's four arrays ({error})") from None

    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8:
            raise InputError(f"{path}: x_{part} must be uint8, it is {images.dtype}")
        if images.shape[1:] != IMAGE_SHAPE or len(images) == 0:
            raise InputError(f"{path}: x_{part} must have the shape (n, 28, 28), n at least 1, not {images.shape}")
        if labels.shape != (len(images),):
            raise InputError(f"{path}: y_{part} must have the shape ({len(images)},), not {labels.shape}")
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASS_NUM:
            raise InputError(f"{path}: y_{part} must hold whole numbers from 0 to {CLASS_NUM - 1}")
        arrays[f"y_{part}"] = labels.astype(np.int64)
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def is_mnist_test(images, labels):
    """Return whether uint8 images (n, 28, 28) and labels (n,) are MNIST's 10,000 test images, all of them."""
    content = np.ascontiguousarray(images).tobytes() + labels.astype(np.uint8).tobytes()
    return hashlib.sha256(content).hexdigest() == MNIST_TEST_SHA256


def preprocess(images):
    """Turn uint8 images (n, 28, 28) into float32 (n, 28, 28, 1), `(255 - x) / 255`: 0 for ink, 1 for paper [R]."""
    return ((255 - images.astype(np.float32)) / 255)[..., np.newaxis]


def epoch_order(count, seed, epoch):
    """Return the order of the training images in an epoch, a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def steps_in_epoch(count, batch_size):
    """Return how many batches `count` images make."""
    return math.ceil(count / batch_size)


def batches(images, labels, batch_size, seed=None, first_epoch=0):
    """Yield batches without end, made from the uint8 arrays; the last one of an epoch may be smaller.

    Without a seed the images keep their order. A batch is (x, targets): x float32 (n, 28, 28, 1);
    targets by output name, the one-hot label float32 (n, 10) and x itself [R]. Without labels it is (x,).
    """
    for epoch in itertools.count(first_epoch):
        order = np.arange(len(images)) if seed is None else epoch_order(len(images), seed, epoch)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            x = preprocess(images[chosen])
            if labels is None:
                yield (x,)
            else:
                yield x, {"classification": np.eye(CLASS_NUM, dtype=np.float32)[labels[chosen]], "autoencoder": x}


def feed(images, labels, batch_size, seed=None, first_epoch=0):
    """Make of batches() what Keras' fit, evaluate and predict take on the present backend.

    Returns (x, steps): steps is the number of batches in an epoch; x has no end, so Keras must be told.
    """
    import keras

    def make_batches():
        return batches(images, labels, batch_size, seed, first_epoch)

    steps = steps_in_epoch(len(images), batch_size)
    if keras.backend.backend() != "tensorflow":
        return make_batches(), steps

    import tensorflow as tf

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), next(make_batches())
    )
    dataset = tf.data.Dataset.from_generator(make_batches, output_signature=signature).prefetch(2)
    # Given arrays or a PyDataset, Keras builds a tf.data pipeline with autotuning on. When such a
    # pipeline's iterator is destroyed, TensorFlow (seen on 2.18 to 2.21) waits for the autotuner's
    # thread to end its nap, and the naps double up to 60 s: every few epochs one takes up to a
    # minute longer, with idle cores. A pipeline with autotuning off has no such thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options), steps
