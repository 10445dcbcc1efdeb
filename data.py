"""The data: read and check MNIST, put its images in the order of an epoch, and make batches for Keras."""

import math
from pathlib import Path

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

DATA = Path(__file__).resolve().parent / "data" / "mnist.npz"
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"  # of that file
IMAGE_SHAPE = (28, 28)
CLASS_NUM = 10  # [A]
PREDICT_BATCH_SIZE = 500  # where no weights change, any size gives the same result; a large one is quicker


class InputError(ValueError):
    """Something the person at the keyboard can mend; the message says what and how."""


def load_mnist(path=DATA):
    """Read and check an .npz file with MNIST's four arrays.

    Returns (x_train, y_train), (x_test, y_test): images uint8 (n, 28, 28), 0 for paper and 255 for
    ink; labels int64 (n,), 0 to 9. Raises InputError when the file cannot be read, or is of another kind.
    """
    if not path.is_file():
        raise InputError(f"no data file {path}: give --data an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except Exception as error:  # a damaged file can fail in a dozen ways
        raise InputError(f"{path}: not an .npz file with MNIST's four arrays ({error})") from None

    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or len(images) == 0:
            kind = f"{images.dtype} {images.shape}"
            raise InputError(f"{path}: x_{part} must be uint8 (n, 28, 28), n at least 1, not {kind}")
        whole = labels.shape == (len(images),) and labels.dtype.kind in "iu"
        if not whole or labels.min() < 0 or labels.max() >= CLASS_NUM:
            raise InputError(f"{path}: y_{part} must be {len(images)} whole numbers from 0 to {CLASS_NUM - 1}")
        arrays[f"y_{part}"] = labels.astype(np.int64)
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def preprocess(images):
    """Turn uint8 images (n, 28, 28) into float32 (n, 28, 28, 1), `(255 - x) / 255`: 0 for ink, 1 for paper [R]."""
    return ((255 - images.astype(np.float32)) / 255)[..., np.newaxis]


def epoch_order(count, seed, epoch):
    """Return the order of the training images in an epoch, a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(images, labels, batch_size, order=None):
    """Yield the batches of an epoch, made from the uint8 arrays; the last one may be smaller.

    order: indices of the images, by default as they stand. A batch is (x, targets): x float32 (n, 28, 28, 1);
    targets by output name, the one-hot label float32 (n, 10) and x itself [R]. Without labels it is (x,).
    """
    order = np.arange(len(images)) if order is None else order
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        x = preprocess(images[chosen])
        if labels is None:
            yield (x,)
        else:
            yield x, {"classification": np.eye(CLASS_NUM, dtype=np.float32)[labels[chosen]], "autoencoder": x}


def keras_batches(images, labels, batch_size, order=None):
    """Return the batches of an epoch as Keras' fit and predict take them on the present backend, and their number."""
    steps = math.ceil(len(images) / batch_size)
    if keras.backend.backend() != "tensorflow":
        return batches(images, labels, batch_size, order), steps

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), next(batches(images[:1], labels, 1))
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: batches(images, labels, batch_size, order), output_signature=signature
    ).prefetch(2)
    # Given arrays or a PyDataset, Keras builds a tf.data pipeline with autotuning on. Whenever the iterator of
    # one is destroyed, TensorFlow (seen on 2.18 to 2.21) waits for the autotuner's thread to end its nap: for up
    # to a minute, every few epochs, with idle cores. A pipeline with autotuning off has no such thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options), steps
