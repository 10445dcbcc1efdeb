"""The data: load images and labels, prepare them, and put them in the order of an epoch."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from support.data_file import DATA_FOLDER, read_bytes, read_sets
from support.errors import InputError

DATA = DATA_FOLDER / "mnist.npz"
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"  # of that file
TEST_BATCH_SIZE = 500  # at most; where no weights change, any size gives the same result, and a large one is quicker


def load_data(path: Path | str = DATA, content: bytes | None = None) -> tuple[tuple, tuple, list[str]]:
    """Read and check an .npz file with the arrays x_train, y_train, x_test, y_test and perhaps class_names.

    content: the bytes of the file, if its caller has read them. Returns (x_train, y_train), (x_test, y_test),
    class_names. Images: uint8 (n, height, width) for grey ones or (n, height, width, 3), both sides multiples of 4, at
    least 8; MNIST has 0 for paper, 255 for ink. Labels: int64 (n,), from 0. class_names: a list of texts, one for each
    class, by default their numbers. Raises InputError when the file cannot be read, or holds something else; the
    message says what to do.
    """
    return read_sets(path, content or read_bytes(path))


def preprocess(images: np.ndarray) -> np.ndarray:
    """Turn uint8 images, grey or of colours, into float32 (n, height, width, channels), `(255 - x) / 255` [R].

    So MNIST's ink is 0 and its paper is 1.
    """
    return (255 - images.reshape(*images.shape[:3], -1).astype(np.float32)) / 255


def to_images(reconstructions: np.ndarray) -> np.ndarray:
    """Turn what the network draws back into uint8 images as load_data() gives them: the inverse of preprocess().

    [R] has (255 - y) * 255 here, in float32; its cast to uint8 overflows and draws full ink black.
    """
    images = np.rint(255 * (1 - reconstructions)).clip(0, 255).astype(np.uint8)
    return images[..., 0] if images.shape[-1] == 1 else images


def make_targets(x: np.ndarray, labels: np.ndarray, class_num: int) -> dict[str, np.ndarray]:
    """Return what each output is to say of preprocessed images: a dict of arrays float32 by the output's name.

    labels: int64 (n,). The one-hot label (n, class_num), and the image itself [R].
    """
    return {
        "classification": np.eye(class_num, dtype=np.float32)[labels],
        "autoencoder": x,
    }


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the training images in an epoch, a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(images, labels, batch_size, order=None, outputs=None) -> Iterator[tuple]:
    """Yield the batches of an epoch, made from the uint8 arrays; the last one may be smaller.

    order: indices of the images, by default as they stand. outputs: the sizes of a network's outputs, by name. A batch
    is (x, targets): x as preprocess() makes it, targets a tuple in the outputs' order, which is the only form that
    every Keras 3 gives to the right outputs. Without outputs it is (x,).
    """
    order = np.arange(len(images)) if order is None else order
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        x = preprocess(images[chosen])
        if outputs is None:
            yield (x,)
        else:
            targets = make_targets(x, labels[chosen], outputs["classification"][-1])
            yield x, tuple(targets[name] for name in outputs)


def even_batches(count: int) -> tuple[int, int]:
    """Return the size and the number of the batches in which to measure `count` images.

    They are of almost one size, so that a mean over them, as Keras takes it on TensorFlow, is one over the images.
    """
    steps = math.ceil(count / TEST_BATCH_SIZE)
    return math.ceil(count / steps), steps


def output_shapes(model) -> dict[str, tuple]:
    """Return the shapes of a network's outputs, without the batch, by name and in their order."""
    return {name: tuple(shape[1:]) for name, shape in zip(model.output_names, model.output_shape)}


def check_fit(model, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Raise InputError unless a network takes these images, and its outputs are what make_targets() makes of them."""
    x, takes = preprocess(images[:1]), tuple(model.input_shape[1:])
    if x.shape[1:] != takes:
        raise InputError(f"the network takes images of {takes}, and these are {x.shape[1:]}: it was trained on others")
    if labels is None:
        return
    outputs = output_shapes(model)
    class_num = outputs["classification"][-1]
    if labels.max() >= class_num:
        raise InputError(f"the network knows {class_num} classes, and these labels go up to {labels.max()}")
    targets = {name: target.shape[1:] for name, target in make_targets(x, labels[:1], class_num).items()}
    if targets != outputs:
        raise InputError(
            f"the network's outputs are {outputs}, and their targets in data.py {targets}: make them alike"
        )
