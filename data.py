"""The data: read and check images and labels, prepare them, and put them in the order of an epoch."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from support.errors import InputError

DATA = Path(__file__).resolve().parent / "data" / "mnist.npz"
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"  # of that file


def check_images(images: np.ndarray, name: str) -> None:
    """Raise InputError unless images, called by a name, are as load_data() gives them; the message says what to do."""
    if images.dtype != np.uint8:
        raise InputError(f"{name} is {images.dtype}: save whole numbers from 0 to 255, as uint8")
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or len(images) == 0:
        form = "save at least one image, as (n, height, width), or (n, height, width, 3)"
        raise InputError(f"{name} has the shape {images.shape}: {form}")
    for side in images.shape[1:3]:
        if side % 4 or side < 8:  # two poolings halve it
            nearest = " or ".join(map(str, sorted({max(8, side // 4 * 4), max(8, -(-side // 4) * 4)})))
            must = "which must be a multiple of 4, at least 8"
            raise InputError(f"{name} has images with a side of {side}, {must}: scale it to {nearest}")


def check_labels(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Return the labels of so many images as int64; raises InputError, which says what to do, unless they are such."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name} is {labels.dtype}: save the numbers of the classes, from 0, as integers")
    if labels.shape != (count,):
        each = f"save one number for each of the {count} images, ({count},)"
        raise InputError(f"{name} has the shape {labels.shape}: {each}")
    used = labels.astype(np.int64)  # a large uint64 becomes negative
    if used.min() < 0:
        raise InputError(f"{name} holds {labels[used.argmin()]}: number the classes from 0")
    return used


def name_classes(class_names: list[str], class_num: int) -> list[str]:
    """Return the names of so many classes: those that are given, and for the others their numbers."""
    return [*class_names, *map(str, range(len(class_names), class_num))]


def read_class_names(path: Path, file: np.lib.npyio.NpzFile) -> list[str]:
    """Return the texts of an open .npz file's class_names; raises InputError when they are none."""
    try:
        names = file["class_names"].astype(str).ravel().tolist()
        "".join(names).encode()
        return names
    except ValueError as error:  # objects, bytes that are no text, or half a letter, which no font and no file can hold
        raise InputError(f"{path}: class_names is no array of texts ({error}): save np.array(['a', 'b'])") from None


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a data file; raises InputError when there is none."""
    if not Path(path).is_file():
        raise InputError(f"no data file {path}: give --data an .npz file")
    return Path(path).read_bytes()


def load_data(path: Path | str = DATA, content: bytes | None = None) -> tuple[tuple, tuple, list[str]]:
    """Read and check an .npz file with the arrays x_train, y_train, x_test, y_test and perhaps class_names.

    content: what read_bytes() gave, for whoever needs the bytes, too; so the file is not read twice.
    Returns (x_train, y_train), (x_test, y_test), class_names. Images: uint8 (n, height, width) for grey ones or
    (n, height, width, 3), both sides multiples of 4, at least 8; MNIST has 0 for paper, 255 for ink. Labels: int64
    (n,), from 0. class_names: a list of texts, one for each class, by default their numbers. Raises InputError
    when the file cannot be read, or holds something else; the message says what to do.
    """
    content = content or read_bytes(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
            class_names = read_class_names(path, file) if "class_names" in file else None
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail in a dozen ways
        raise InputError(f"{path}: not an .npz file with x_train, y_train, x_test and y_test ({error})") from None

    sets = []
    for part in ("train", "test"):
        images = arrays[f"x_{part}"]
        check_images(images, f"{path}: x_{part}")
        labels = check_labels(arrays[f"y_{part}"], len(images), f"{path}: y_{part}")
        sets.append((images[..., 0] if images.shape[3:] == (1,) else images, labels))
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


def preprocess(images: np.ndarray) -> np.ndarray:
    """Turn uint8 images, grey or of colours, into float32 (n, height, width, channels), `(255 - x) / 255` [R].

    So MNIST's ink is 0 and its paper is 1.
    """
    return (255 - images.reshape(*images.shape[:3], -1).astype(np.float32)) / 255


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
