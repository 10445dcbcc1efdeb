"""The folder of a run: its files, written whole, read and checked, and the way to go on with a run.

settings.json   what defines the run, and what it was started on, one entry a start
history.csv     the losses and accuracies, a row an epoch
model.keras     the network and the optimizer after the last epoch

evaluate.py adds metrics.json, visualize.py the PICTURES, predict.py PREDICTIONS; they go with their network.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from data import DATA, load_data, read_bytes
from support.errors import InputError
from support.files import PART, atomic_write, locked, write_json

RUN_FILES = ("settings.json", "history.csv", "model.keras")
SETTINGS, HISTORY, MODEL = RUN_FILES
LOCK = ".lock"  # which a training holds
METRICS = "metrics.json"
PAIRS = "reconstructions/[0-9][0-9].png"
PICTURES = ("model.png", PAIRS, "reconstructions.png", "training.png", "confusion_matrix.png", "mistakes.png")
PREDICTIONS = "predictions.png"
# train.py's flags that define a run, with their types.
RUN_FLAGS = {"epochs": int, "batch_size": int, "seed": int, "limit": int | None, "loss_weights": list, "precision": str}
# What else decides how numbers are rounded, where its user sets it: oneDNN's switch and instruction set, how float32 is
# multiplied, the counts of threads, and what XLA is told. On TensorFlow, JAX and PyTorch each has its own.
ROUNDING = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
ROUNDING += ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS")
STAMP = ("batch_size", "seed", "limit", "loss_weights", "precision", "data_sha256")  # what model.keras says of its run
NO_OPTIMIZER = "Skipping variable loading for optimizer"  # how a warning of Keras begins
START_ANEW = "replace it with --overwrite, or choose another --output-dir"


def processor():
    """Return the name of the processor; on Linux with its family and model, for one name can stand for several."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = dict(re.findall(r"(?m)^(model name|cpu family|model)\s*: (.*)$", text))
    if len(entries) < 3:
        return entries.get("model name") or platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format(**entries)


def environment():
    """Return what a run is started on: versions, the device, which may be a number of cores, and ROUNDING's values."""
    device = str(keras.ops.convert_to_tensor(0.0).device).rpartition("device:")[2]  # TensorFlow has a path before it
    if "cpu" in device.lower():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"{cores} core{'s' if cores > 1 else ''} of {processor()}"
    versions = {name: sys.modules[name].__version__ for name in ("keras", "numpy", keras.backend.backend())}
    rounding = {name: os.environ.get(name) for name in ROUNDING}
    return {**versions, "python": platform.python_version(), "device": device, **rounding}


def data_entry(path, content=None):
    """Return what settings.json says of a data file; a file of this project's data folder goes by its name.

    content: the bytes that were read of it, by default those that it holds now.
    """
    full = path.resolve()
    name = full.relative_to(DATA.parent) if full.is_relative_to(DATA.parent) else full
    return {"data": name.as_posix(), "data_sha256": hashlib.sha256(content or path.read_bytes()).hexdigest()}


def load_with_entry(path):
    """Return what load_data() makes of a file, and what settings.json says of the very bytes that it was made of."""
    content = read_bytes(path)
    return load_data(path, content), data_entry(path, content)


def data_of_run(folder: Path | str) -> Path:
    """Return the path of the data that a run was trained on; raises InputError when they are not what they were."""
    settings = read_settings(folder)
    path = DATA.parent / settings["data"]  # an absolute path stays as it is
    if not path.is_file() or data_entry(path)["data_sha256"] != settings["data_sha256"]:
        raise InputError(f"{folder} was trained on {path}, now not there or changed: name the data to use with --data")
    return path


def settings_of(model, args, data=None):
    """Return what settings.json says of a run: train.py's flags, the compiled model's optimizer, data, backend.

    data: what data_entry() said of args.data when it was read, by default what it says now.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # mixed_float16 wraps it
    settings = {name: getattr(args, name) for name in RUN_FLAGS} | {"optimizer": type(optimizer).__name__}
    settings |= {name: value for name, value in optimizer.get_config().items() if name != "name"}
    return settings | (data or data_entry(args.data)) | {"backend": keras.backend.backend()}


def are_numbers(values):
    """Return whether a list, read from a file, holds nothing but numbers."""
    return all(isinstance(value, int | float) for value in values)


def in_words(value):
    """Return the value of a setting as a message has it."""
    return "not set" if value is None else value


def read_settings(folder: Path | str) -> dict:
    """Return what settings.json holds; raises InputError when there is none, or when it is damaged."""
    folder = Path(folder)
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        recorded = "python train.py begins one, --output-dir outputs/reference has the recorded one"
        raise InputError(f"no run in {folder}, it has no {SETTINGS}: {recorded}") from None
    except (RecursionError, ValueError):
        settings = None
    match settings:
        case {"data": str(), "data_sha256": _, "loss_weights": [*weights], "starts": [{}, *_]} if are_numbers(weights):
            if all(isinstance(settings.get(name), kind) for name, kind in RUN_FLAGS.items()):
                counts = [settings[name] for name in ("epochs", "batch_size", "limit") if settings[name] is not None]
                if min(counts) > 0 and 0 <= settings["seed"] < 2**32 and min(weights, default=-1) >= 0:
                    return settings
    raise InputError(f"{path}: damaged, not the settings that train.py wrote: {START_ANEW}")


def read_history(folder: Path | str, epochs: int | None = None, outputs=()) -> list[dict]:
    """Read what save_epoch() wrote, or its first epochs; raises InputError when the file does not hold them.

    outputs: names of outputs whose losses must be among the columns. A run whose first epoch has not ended has no
    such file: [].
    """
    path = Path(folder) / HISTORY
    if not path.exists() and not epochs:
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = itertools.islice(csv.DictReader(file), epochs)
            rows = [{name: float(value) for name, value in row.items()} for row in rows]
        whole = [row["epoch"] for row in rows] == list(range(1, (epochs or len(rows)) + 1))
        losses = {f"{prefix}{name}_loss" for name in outputs for prefix in ("", "val_")}
        if not whole or not losses | {"val_classification_accuracy"} <= rows[0].keys():
            raise ValueError
    except (IndexError, OSError, KeyError, TypeError, ValueError, csv.Error):
        raise InputError(f"{path}: damaged, it does not hold the epochs that train.py wrote: {START_ANEW}") from None
    return rows


@contextlib.contextmanager
def writing(folder, stamp=None, lock=None):
    """Within the block, a short one, nobody else writes in a run's folder; what killed writers left there is removed.

    stamp: of the network that results are written of. Raises InputError when it has been replaced. lock: the open file
    of the lock that a training holds. Raises InputError when the folder has another one, so is another folder.
    """
    with locked(folder / ".writing"):
        if lock and not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
            moved = f"nothing was written, for {folder} is not the folder in which this training began"
            raise InputError(f"{moved}: find it under its new name, and go on there with --resume")
        for left in folder.glob(f"{PART}*"):
            shutil.rmtree(left, ignore_errors=True)
        if stamp and read_stamp(folder / MODEL) != stamp:
            raise InputError(f"nothing was written, for the network in {folder} has been replaced: measure it again")
        yield


def save_epoch(folder, model, settings, history, lock=None):
    """Put the run with these settings on disk as it is after the last epoch of its history.

    history: dicts with the names of the first one, in whatever order. lock: as for writing().
    Killed at whatever moment, this leaves a whole model.keras, a history that holds its epochs and perhaps
    one more, which resume() then drops, and no result of another network.
    """
    stamp = {"epoch": len(history), **{name: settings[name] for name in STAMP}}
    numbers = [[row[name] for name in history[0]] for row in history]
    with writing(folder, lock=lock), atomic_write(folder / MODEL) as temporary:
        model.save(temporary)
        # In the archive's comment, for a file more in it would make Keras unpack it all to disk when it loads it.
        # The optimizer's own count will not do: it leaves out the steps that mixed_float16 skips.
        with zipfile.ZipFile(temporary, "a") as file:
            file.comment = json.dumps(stamp).encode()
        # 1. The history, which then is an epoch ahead of the network.
        with atomic_write(folder / HISTORY) as table:
            np.savetxt(table, numbers, "%.6g", delimiter=",", header=",".join(history[0]), comments="")
        # 2. Away with the results of the old network.
        remove_results(folder)
        # 3. The network: at the end of this block it gets its name.


def read_stamp(path):
    """Return what a model.keras says of its epoch and run, and the checksum of its weights; {} if it says nothing."""
    with contextlib.suppress(Exception):  # a damaged file can fail in a dozen ways
        with zipfile.ZipFile(path) as file:
            stamp, weights = json.loads(file.comment), file.getinfo("model.weights.h5")
        match stamp:
            case {"epoch": int(epoch), "loss_weights": [*numbers]} if epoch > 0 and are_numbers(numbers):
                return {**{name: stamp[name] for name in ("epoch", *STAMP)}, "weights": weights.CRC}
    return {}


def load_network(
    folder: Path | str, precision: str | None = "float32", compiled: bool = False
) -> tuple[keras.Model, dict]:
    """Return the network of a run and its stamp; only writing() says that both are of the same epoch.

    precision: what it is to compute in, None for what it was trained in. compiled: whether as it was saved. Raises
    InputError when no epoch has ended yet, and when the file is damaged, holds code (Keras' safe mode stays on), or
    lacks the article's outputs.
    """
    folder = Path(folder)
    path = folder / MODEL
    if not path.exists():
        read_settings(folder)  # which says so where there is no run at all
        raise InputError(f"no epoch of the run in {folder} has ended yet: go on with train.py --resume")
    stamp = read_stamp(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NO_OPTIMIZER)
            model = keras.saving.load_model(path, compile=compiled, safe_mode=True)
        ours = len(model.inputs) == 1 and {"classification", "autoencoder"} <= {*getattr(model, "output_names", [])}
    except MemoryError:
        raise
    except Exception as error:  # a strange or damaged file can fail in a dozen ways
        raise InputError(f"{path}: not a readable Keras model ({error})") from None
    if not ours:
        raise InputError(f"{path}: not a network of this project, its input or outputs are others")
    if not stamp:
        raise InputError(f"{path}: does not say of which run and epoch it is, so train.py did not write it")
    for layer in model.layers:
        layer.dtype_policy = precision or layer.dtype_policy
    return model, stamp


def is_of_run(stamp, settings):
    """Return whether a network, by what its stamp says, is of the run with these settings."""
    return all(stamp[name] == settings[name] for name in STAMP)


def check_same_run(folder, stamp):
    """Raise InputError when a network, by what its stamp says, is not of the run in the folder."""
    if not is_of_run(stamp, read_settings(folder)):
        raise InputError(f"{folder / MODEL} is of another run than {SETTINGS} and {HISTORY}: {START_ANEW}")


def restore(folder, model, settings):
    """Put the weights and the optimizer's state of a run into a compiled model; returns after which epoch they are.

    Raises InputError when the network is not the model's or not of a run with these settings, or has no optimizer.
    """
    saved, stamp = load_network(folder, precision=None)
    layers, saved_layers = (json.dumps(each.get_config()["layers"], sort_keys=True) for each in (model, saved))
    if layers != saved_layers:
        raise InputError("cannot resume: this run has another network; has model.py changed since?")
    if not is_of_run(stamp, settings):
        raise InputError(f"cannot resume: {folder / MODEL} is of another run: {START_ANEW}")
    model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=NO_OPTIMIZER)
            model.load_weights(folder / MODEL)
    except Exception:
        raise InputError(f"cannot resume: {folder / MODEL} holds no optimizer, it can only be measured") from None
    return stamp["epoch"]


def remove_results(folder):
    """Remove what evaluate.py, visualize.py and predict.py wrote, and nothing else."""
    for path in itertools.chain(*map(folder.glob, (METRICS, PREDICTIONS, *PICTURES))):
        if not path.is_dir():  # which is the user's
            path.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        (folder / PAIRS).parent.rmdir()


def make(folder):
    """Make a run's folder, if it is not there; raises InputError when something else has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{error.filename} is there and no folder: choose another --output-dir") from None


def has_optimizer(path):
    """Return whether a model.keras holds an optimizer, without which it cannot be trained further; or is not there."""
    with contextlib.suppress(Exception):  # a damaged file can fail in a dozen ways, and is another matter
        with zipfile.ZipFile(path) as file, h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights:
            return "optimizer" in weights
    return True


def begin(folder, settings, overwrite=False):
    """Begin a run in the folder; returns its settings as they are recorded.

    Raises InputError when the folder holds any file of a run, unless that is to be replaced.
    """
    if not overwrite and any((folder / name).exists() for name in RUN_FILES):
        go_on = "go on with --resume, and more --epochs if it is done, " if has_optimizer(folder / MODEL) else ""
        raise InputError(f"{folder} holds a run: {go_on}{START_ANEW}")
    settings = {**settings, "starts": [{"after_epoch": 0, **environment()}]}
    with writing(folder):
        remove_results(folder)
        for name in reversed(RUN_FILES):
            (folder / name).unlink(missing_ok=True)
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
            raise InputError(f"cannot resume: {name} is {in_words(saved[name])} in this run, not {in_words(value)}")
    if (folder / MODEL).exists():
        done = restore(folder, model, settings)
        if done > settings["epochs"]:
            raise InputError(f"cannot resume: this run has {done} epochs, more than --epochs {settings['epochs']}")
        history = read_history(folder, done)
    elif len(read_history(folder)) > 1:
        # One epoch of history alone is right: the run was killed just before its first model.keras was in place.
        raise InputError(f"cannot resume: {folder / MODEL} is missing; --overwrite starts this run anew")
    settings = {**saved, **settings, "starts": [*saved["starts"], {"after_epoch": len(history), **environment()}]}
    with writing(folder):
        write_json(folder / SETTINGS, settings)
    return settings, history
