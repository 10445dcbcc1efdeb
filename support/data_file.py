"""A data file: its bytes, its arrays, and what is refused of them. Each message says what to do."""

import hashlib
import io
from pathlib import Path

import numpy as np

from support.errors import InputError

DATA_FOLDER = Path(__file__).resolve().parent.parent / "data"  # its files go by their names


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a data file; raises InputError when there is none."""
    if not Path(path).is_file():
        raise InputError(f"no data file {path}: give --data an .npz file")
    return Path(path).read_bytes()


def data_entry(path, content):
    """Return what settings.json says of a data file, of which content are the bytes: its name and their SHA-256."""
    full = path.resolve()
    name = full.relative_to(DATA_FOLDER) if full.is_relative_to(DATA_FOLDER) else full
    return {"data": name.as_posix(), "data_sha256": hashlib.sha256(content).hexdigest()}


def read_sets(path, content):
    """Return what load_data() does, from the bytes of a data file."""
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
    return (*sets, check_classes(path, {*sets[0][1].tolist(), *sets[1][1].tolist()}, class_names))


def read_class_names(path, file):
    """Return the texts of an open .npz file's class_names; raises InputError when they are none."""
    try:
        names = file["class_names"].astype(str).ravel().tolist()
        "".join(names).encode()
        return names
    except ValueError as error:  # objects, bytes that are no text, or half a letter, which no font and no file can hold
        raise InputError(f"{path}: class_names is no array of texts ({error}): save np.array(['a', 'b'])") from None


def check_images(images, name):
    """Raise InputError unless images, called by a name, are as load_data() gives them."""
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


def check_labels(labels, count, name):
    """Return the labels of `count` images as int64. Raises InputError unless they are the numbers of classes."""
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
    """Return the names of class_num classes: those that are given, and for the others their numbers."""
    return [*class_names, *map(str, range(len(class_names), class_num))]


def check_classes(path, present, class_names):
    """Return the names of the classes, by default their numbers. present: the labels that occur, a set.

    Raises InputError when numbers or names are missing.
    """
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
    return class_names
