"""The folder of a run: its files, written whole, read and checked, and the way to go on with a run.

settings.json   what defines the run, and what it was started on, one entry a start
history.csv     the losses and accuracies, a row an epoch
model.keras     the network and the optimizer after the last epoch

evaluate.py adds metrics.json, visualize.py the PICTURES; they go as soon as their network is replaced.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import platform
import re
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from data import DATA, InputError
from files import atomic_write, write_json
from model import INPUT_SHAPE, OUTPUT_SHAPES

RUN_FILES = ("settings.json", "history.csv", "model.keras")
SETTINGS, HISTORY, MODEL = RUN_FILES
METRICS = "metrics.json"
RECONSTRUCTIONS = "reconstructions"  # the folder of 00.png, 01.png, ...
PICTURES = ("model.png", "reconstructions.png", "training.png", "confusion_matrix.png", "mistakes.png")
RUN_FLAGS = ("epochs", "batch_size", "seed", "limit", "loss_weights", "precision")  # train.py's that define a run
STAMP = ("batch_size", "seed", "limit", "loss_weights", "precision", "data_sha256")  # what model.keras says of its run
START_ANEW = "replace it with --overwrite, or choose another --output-dir"


def processor():
    """Return the name of the processor; on Linux with its family and model, for one name can stand for several."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*: (.*)$", text))
    if len(entries) < 3:
        return platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format(**entries)


def environment():
    """Return what a run is started on: the versions, and the device, an accelerator or so many cores."""
    device = str(keras.ops.convert_to_tensor(0.0).device).rpartition("device:")[2]  # TensorFlow has a path before it
    if "cpu" in device.lower():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"{cores} core{'s' if cores > 1 else ''} of {processor()}"
    versions = {name: version(name) for name in ("keras", "numpy", keras.backend.backend())}
    return {**versions, "python": platform.python_version(), "device": device}


def data_entry(path):
    """Return what settings.json says of a data file; a file of this project's data folder goes by its name."""
    full = path.resolve()
    name = full.relative_to(DATA.parent) if full.is_relative_to(DATA.parent) else full
    return {"data": name.as_posix(), "data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def data_of_run(folder):
    """Return the path of the data that a run was trained on; raises InputError when they are not what they were."""
    settings = read_settings(folder)
    path = DATA.parent / settings["data"]  # an absolute path stays as it is
    if not path.exists() or data_entry(path)["data_sha256"] != settings["data_sha256"]:
        reason = f"{folder} was trained on {path}, which is not there, or has changed since"
        raise InputError(f"{reason}: name the data to use with --data")
    return path


def settings_of(model, args):
    """Return what settings.json says of a run: train.py's flags, the compiled model's optimizer, data, backend."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # mixed_float16 wraps it
    config = {name: value for name, value in optimizer.get_config().items() if name != "name"}
    return {
        **{name: getattr(args, name) for name in RUN_FLAGS},
        "optimizer": type(optimizer).__name__,
        **config,
        **data_entry(args.data),
        "backend": keras.backend.backend(),
    }


def read_settings(folder):
    """Return what settings.json holds; raises InputError when there is none, or when it is damaged."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        known = {*RUN_FLAGS} <= {*settings} and settings["starts"]
        if not known or not all(type(settings[name]) is str for name in ("data", "data_sha256")):
            raise ValueError
    except FileNotFoundError:
        recorded = "python train.py begins one, --output-dir outputs/reference has the recorded one"
        raise InputError(f"no run in {folder}, it has no {SETTINGS}: {recorded}") from None
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: damaged, not the settings that train.py wrote: {START_ANEW}") from None
    return settings


def write_history(folder, rows):
    """Write the rows that train() yields as CSV, numbers with six significant digits."""
    with atomic_write(folder / HISTORY) as temporary:
        numbers = [list(row.values()) for row in rows]
        np.savetxt(temporary, numbers, "%.6g", delimiter=",", header=",".join(rows[0]), comments="")


def read_history(folder, epochs=None):
    """Read what write_history() wrote, or its first epochs; raises InputError when the file does not hold them.

    A run whose first epoch has not ended has no such file: [].
    """
    path = folder / HISTORY
    if not path.exists() and not epochs:
        return []
    try:
        with open(path, newline="") as file:
            rows = itertools.islice(csv.DictReader(file), epochs)
            rows = [{name: float(value) for name, value in row.items()} for row in rows]
        if not rows or [row["epoch"] for row in rows] != list(range(1, (epochs or len(rows)) + 1)):
            raise ValueError
    except (KeyError, OSError, TypeError, ValueError, csv.Error):
        raise InputError(f"{path}: damaged, it does not hold the epochs that train.py wrote: {START_ANEW}") from None
    return rows


def save_epoch(folder, model, settings, history):
    """Put the run with these settings on disk as it is after the last epoch of its history.

    Killed at whatever moment, this leaves a whole model.keras, a history that holds its epochs and perhaps
    one more, which resume() then drops, and no result of another network.
    """
    with atomic_write(folder / MODEL) as temporary:
        model.save(temporary)
        # In the archive's comment, for a file more in it would make Keras unpack it all to disk when it loads it.
        # The optimizer's own count will not do: it leaves out the steps that mixed_float16 skips.
        with zipfile.ZipFile(temporary, "a") as file:
            file.comment = json.dumps({"epoch": len(history), **{name: settings[name] for name in STAMP}}).encode()
        write_history(folder, history)
        remove_results(folder)


def load_network(folder, precision="float32"):
    """Return the network of a run, not compiled, and its stamp: after which epoch, of which run.

    precision: what it is to compute in, None for what it was trained in. Raises InputError when no epoch has
    ended yet, and when the file is damaged, holds code (Keras' safe mode stays on), or is not the article's network.
    """
    path = folder / MODEL
    if not path.exists():
        read_settings(folder)  # which says so where there is no run at all
        command = f"python train.py --resume --output-dir {folder}"
        raise InputError(f"no epoch of the run in {folder} has ended yet: go on with {command}")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        inputs = {tensor.name: tensor.shape[1:] for tensor in model.inputs}
        outputs = list(zip(getattr(model, "output_names", []), model.output_shape))
    except Exception as error:  # a strange or damaged file can fail in a dozen ways
        raise InputError(f"{path}: not a readable Keras model ({error})") from None
    if inputs != {"image": INPUT_SHAPE} or outputs != [(name, (None, *shape)) for name, shape in OUTPUT_SHAPES.items()]:
        raise InputError(f"{path}: not the article's network, its input or outputs are others")
    for layer in model.layers:
        layer.dtype_policy = precision or layer.dtype_policy
    with contextlib.suppress(TypeError, ValueError), zipfile.ZipFile(path) as file:
        stamp = json.loads(file.comment)
        if {*stamp} == {"epoch", *STAMP} and type(stamp["epoch"]) is int and stamp["epoch"] > 0:
            return model, stamp
    raise InputError(f"{path}: does not say of which run and epoch it is, so train.py did not write it")


def restore(folder, model, settings):
    """Put the weights and the optimizer's state of a run into a compiled model; returns after which epoch they are.

    Raises InputError when the network is not the model's or not of a run with these settings, or has no optimizer.
    """
    saved, stamp = load_network(folder, precision=None)
    layers, saved_layers = (json.dumps(each.get_config()["layers"], sort_keys=True) for each in (model, saved))
    if layers != saved_layers:
        raise InputError("cannot resume: this run has another network; has model.py changed since?")
    if any(stamp[name] != settings[name] for name in STAMP):
        raise InputError(f"cannot resume: {folder / MODEL} is of another run: {START_ANEW}")
    model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Skipping variable loading for optimizer")
            model.load_weights(folder / MODEL)
    except Exception:
        raise InputError(f"cannot resume: {folder / MODEL} holds no optimizer, it can only be measured") from None
    return stamp["epoch"]


def remove_results(folder):
    """Remove what evaluate.py and visualize.py wrote, and nothing else."""
    for path in [*(folder / name for name in (METRICS, *PICTURES)), *reconstruction_files(folder)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        (folder / RECONSTRUCTIONS).rmdir()


def reconstruction_files(folder):
    """Return the paths of the reconstructions that visualize.py wrote in a run's folder, in their order."""
    paths = (folder / RECONSTRUCTIONS).glob("[0-9][0-9]*.png")
    return sorted((path for path in paths if path.stem.isdecimal()), key=lambda path: int(path.stem))


def begin(folder, settings, overwrite=False):
    """Begin a run in the folder; returns its settings as they are recorded.

    Raises InputError when the folder holds any file of a run, unless that is to be replaced.
    """
    if not overwrite and any((folder / name).exists() for name in RUN_FILES):
        raise InputError(f"{folder} holds a run: go on with --resume, and more --epochs if it is done, {START_ANEW}")
    remove_results(folder)
    for name in reversed(RUN_FILES):
        (folder / name).unlink(missing_ok=True)
    settings = {**settings, "starts": [{"after_epoch": 0, **environment()}]}
    write_json(folder / SETTINGS, settings)
    return settings


def resume(folder, model, settings):
    """Go on with the run in the folder: put its saved state into the model, a compiled one.

    settings: what is to be trained now. Returns the settings as they are recorded now, and the history so
    far. Raises InputError when this is another run, or one that cannot be resumed.
    """
    saved, history = read_settings(folder), []
    if saved["data_sha256"] != settings["data_sha256"]:
        raise InputError(f"cannot resume: this run was trained on {saved['data']}, not on {settings['data']}")
    for name, value in settings.items():
        if name not in ("epochs", "data") and saved.get(name, value) != value:  # another Keras may say more of SGD
            raise InputError(f"cannot resume: {name} is {saved[name]} in this run, not {value}")
    if (folder / MODEL).exists():
        done = restore(folder, model, settings)
        if done > settings["epochs"]:
            raise InputError(f"cannot resume: this run has {done} epochs, more than --epochs {settings['epochs']}")
        history = read_history(folder, done)
    elif len(read_history(folder)) > 1:
        # One epoch of history alone is right: the run was killed just before its first model.keras was in place.
        raise InputError(f"cannot resume: {folder / MODEL} is missing; --overwrite starts this run anew")
    settings = {**saved, **settings, "starts": [*saved["starts"], {"after_epoch": len(history), **environment()}]}
    write_json(folder / SETTINGS, settings)
    return settings, history
