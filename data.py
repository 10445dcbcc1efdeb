"""The data: read and check images and labels, put them in the order of an epoch, and make batches for Keras."""

import math
from pathlib import Path

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

DATA = Path(__file__).resolve().parent / "data" / "mnist.npz"
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"  # of that file
PREDICT_BATCH_SIZE = 500  # where no weights change, any size gives the same result; a large one is quicker


class InputError(ValueError):
    """Something the person at the keyboard can mend; the message says what and how."""


def check_images(images):
    """Return what is wrong with images, in words that say what to do, or None. See load_data()."""
    if images.dtype != np.uint8:
        return f"is {images.dtype}: save whole numbers from 0 to 255, as uint8"
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or len(images) == 0:
        return f"has the shape {images.shape}: save at least one image, as (n, height, width), or (n, height, width, 3)"
    for side in images.shape[1:3]:
        if side % 4 or side < 8:  # two poolings halve it
            nearest = " or ".join(map(str, sorted({max(8, side // 4 * 4), max(8, -(-side // 4) * 4)})))
            return f"has images with a side of {side}, which must be a multiple of 4, at least 8: scale it to {nearest}"
    return None


def check_labels(labels, count):
    """Return what is wrong with the labels of so many images, in words that say what to do, or None."""
    if labels.dtype.kind not in "iu":
        return f"is {labels.dtype}: save the numbers of the classes, from 0, as integers"
    if labels.shape != (count,):
        return f"has the shape {labels.shape}: save one number for each of the {count} images, ({count},)"
    if labels.min() < 0:
        return f"holds {labels.min()}: number the classes from 0"
    return None


def name_classes(class_names, class_num):
    """Return the names of so many classes: those that are given, and for the others their numbers."""
    return [*class_names, *map(str, range(len(class_names), class_num))]


def load_data(path=DATA):
    """Read and check an .npz file with the arrays x_train, y_train, x_test, y_test and perhaps class_names.

    Returns (x_train, y_train), (x_test, y_test), class_names. Images: uint8 (n, height, width) for grey ones or
    (n, height, width, 3), both sides multiples of 4, at least 8; MNIST has 0 for paper, 255 for ink. Labels: int64
    (n,), from 0. class_names: a list of texts, one for each class, by default their numbers. Raises InputError
    when the file cannot be read, or holds something else; the message says what to do.
    """
    if not path.is_file():
        raise InputError(f"no data file {path}: give --data an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
            class_names = file["class_names"].astype(str).ravel().tolist() if "class_names" in file else None
    except Exception as error:  # a damaged file can fail in a dozen ways
        raise InputError(f"{path}: not an .npz file with x_train, y_train, x_test and y_test ({error})") from None

    sets = []
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        for name, wrong in (("x", check_images(images)), ("y", check_labels(labels, len(images)))):
            if wrong:
                raise InputError(f"{path}: {name}_{part} {wrong}")
        images = images[..., 0] if images.shape[3:] == (1,) else images
        sets.append((images, labels.astype(np.int64)))
    sizes = [images.shape[1:] for images, _ in sets]
    if sizes[0] != sizes[1]:
        raise InputError(f"{path}: images of {sizes[0]} for training and {sizes[1]} for testing: make them alike")
    present = {*sets[0][1].tolist(), *sets[1][1].tolist()}
    class_num = max(present) + 1
    if class_names is None:
        if class_num > len(present):
            missing = next(label for label in range(class_num) if label not in present)
            raise InputError(f"{path}: no image has the label {missing}: number the classes without gaps")
        class_names = name_classes([], class_num)
    if len(class_names) < max(class_num, 2) or len({*class_names}) < len(class_names):
        raise InputError(
            f"{path}: {len(class_names)} class names for {class_num} classes: give each its own, at least two"
        )
    return (*sets, class_names)


def preprocess(images):
    """Turn uint8 images, grey or of colours, into float32 (n, height, width, channels), `(255 - x) / 255` [R].

    So MNIST's ink is 0 and its paper is 1.
    """
    return (255 - images.reshape(*images.shape[:3], -1).astype(np.float32)) / 255


def make_targets(x, labels, class_num):
    """Return what each output is to say of preprocessed images: a dict of arrays float32 by the output's name.

    labels: int64 (n,). The one-hot label (n, class_num), and the image itself [R].
    """
    return {
        "classification": np.eye(class_num, dtype=np.float32)[labels],
        "autoencoder": x,
    }


def epoch_order(count, seed, epoch):
    """Return the order of the training images in an epoch, a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(images, labels, batch_size, order=None, outputs=None):
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


def output_shapes(model):
    """Return the shapes of a network's outputs, without the batch, by name and in their order."""
    return {name: tuple(shape[1:]) for name, shape in zip(model.output_names, model.output_shape)}


def check_fit(model, images, labels=None):
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


def keras_batches(model, images, labels, batch_size, order=None):
    """Return the batches of an epoch as Keras' fit and predict take them on the present backend, and their number.

    labels: None for predict(). Raises InputError when the images or labels do not fit the model.
    """
    check_fit(model, images, labels)
    outputs = None if labels is None else output_shapes(model)
    steps = math.ceil(len(images) / batch_size)
    if keras.backend.backend() != "tensorflow":
        return batches(images, labels, batch_size, order, outputs), steps

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype),
        next(batches(images[:1], labels, 1, outputs=outputs)),
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: batches(images, labels, batch_size, order, outputs), output_signature=signature
    ).prefetch(2)
    # Given arrays or a PyDataset, Keras builds a tf.data pipeline with autotuning on. Whenever the iterator of
    # one is destroyed, TensorFlow (seen on 2.18 to 2.21) waits for the autotuner's thread to end its nap: for up
    # to a minute, every few epochs, with idle cores. A pipeline with autotuning off has no such thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options), steps
