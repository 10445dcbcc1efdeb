"""The folder of a run: its files, written whole, read and checked, and the way to go on with a run.

settings.json      what defines the run, and what it was started on, one entry a start
history.csv        the losses and accuracies, a row an epoch
checkpoint.keras   the network and the optimizer after the last epoch, to go on from
model.keras        the network alone after the last epoch, to be measured and drawn

evaluate.py adds metrics.json, visualize.py the PICTURES. Those are removed as soon as the network
they belong to is replaced.
"""

import contextlib
import csv
import hashlib
import importlib
import itertools
import json
import os
import platform
import uuid
import warnings
import zipfile
from pathlib import Path

import numpy as np

from data import DATA, InputError

SETTINGS, HISTORY, CHECKPOINT, MODEL = RUN_FILES = ("settings.json", "history.csv", "checkpoint.keras", "model.keras")
METRICS = "metrics.json"
PAIRS = "reconstructions"  # the folder of 00.png, 01.png, ...
PICTURES = ("model.png", "reconstructions.png", "training.png", "confusion_matrix.png", "mistakes.png")
LOSSES = ("loss", "classification_loss", "autoencoder_loss", "classification_accuracy")
COLUMNS = ("epoch", *LOSSES, *(f"val_{name}" for name in LOSSES), "seconds")  # of the history
WAYS_OUT = "replace it with --overwrite, or choose another --output-dir"


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path; when the block succeeds, the file written there becomes `path` at one stroke."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name != "nt":  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # without it a power cut can undo the rename
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """Write a dict as a JSON file."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def locked(folder, program="train.py"):
    """Make the folder if need be, and keep every other process out of it; the system's lock ends with the process.

    program: what is at work there, for the message. Raises InputError when another one is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            ways = "wait for it, stop it, or choose another --output-dir"
            raise InputError(f"another {program} is at work in {folder}: {ways}") from None
        yield


def sha256(path):
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe_data(path):
    """Return what settings.json says of a data file; a file of this project's data folder goes by its name."""
    place = path.resolve()
    name = place.relative_to(DATA.parent) if place.is_relative_to(DATA.parent) else place
    return {"data": name.as_posix(), "data_sha256": sha256(path)}


def data_of_run(folder):
    """Return the path of the data that a run was trained on; raises InputError when it is no longer what it was."""
    settings = read_settings(folder)
    path = DATA.parent / settings["data"]  # an absolute path stays as it is
    if not path.exists():
        raise InputError(f"{folder} was trained on {settings['data']}, which is not there: give its place with --data")
    if sha256(path) != settings["data_sha256"]:
        reason = f"{path} is not the file that {folder} was trained on, or has changed since"
        raise InputError(f"{reason}: name the one to use with --data")
    return path


def other_data(folder, path):
    """Return what a run was trained on when that is not the file at `path`, else None."""
    if not (folder / SETTINGS).exists():
        return None
    settings = read_settings(folder)
    return settings["data"] if settings["data_sha256"] != sha256(path) else None


def devices():
    """Return the names of the devices that Keras computes on: the accelerators, or else the number of cores."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in found]
    elif backend == "jax":
        import jax

        names = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    else:
        import torch

        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        names += ["Apple GPU"] if torch.backends.mps.is_available() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return names or [f"{cores} core{'s' if cores > 1 else ''} of {processor()}"]


def processor():
    """Return the name of the processor; on Linux with its family and model, for one name can stand for several."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return "{model name}, family{cpu family}, model{model}".format(**found).strip()


def describe_start():
    """Return what a run is started on: the versions, and the devices by name."""
    import keras

    backend = keras.backend.backend()
    found = {"keras": keras.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {**found, backend: importlib.import_module(backend).__version__, "devices": devices()}


def holds_a_run(folder):
    """Return whether the folder holds any file of a run."""
    return any((folder / name).exists() for name in RUN_FILES)


def read_settings(folder):
    """Return what settings.json holds; raises InputError when there is none, or when it is damaged."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.setdefault("precision", "float32")  # the first version's files lack these
        settings.setdefault("run", None)
        settings.setdefault("starts", [settings.pop("versions")] if "versions" in settings else [])
        if not all(type(settings[name]) is str for name in ("data", "data_sha256")):
            raise ValueError
    except FileNotFoundError:
        if holds_a_run(folder):
            raise InputError(f"the run in {folder} has lost its {SETTINGS}: {WAYS_OUT}") from None
        raise InputError(f"there is no run in {folder}: python train.py begins one") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{path}: damaged, not the settings that train.py wrote: {WAYS_OUT}") from None
    return settings


def write_history(path, rows):
    """Write the rows that train() returns as CSV, numbers with six significant digits."""
    with whole_file(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def read_history(path, epochs=None):
    """Read what write_history() wrote, or its first epochs; raises InputError when the file does not hold them."""
    try:
        with open(path, newline="") as file:
            rows = itertools.islice(csv.DictReader(file), epochs)
            rows = [{name: float(row[name]) for name in COLUMNS} for row in rows]
    except FileNotFoundError:
        raise InputError(f"no history {path}: python train.py writes it") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        rows = []
    if not rows or [row["epoch"] for row in rows] != list(range(1, (epochs or len(rows)) + 1)):
        raise InputError(f"{path}: damaged, it does not hold the epochs that train.py wrote: {WAYS_OUT}")
    return rows


def write_keras(path, model, run, epoch):
    """Save a model, with the optimizer if it is compiled, and say in it of which run and after which epoch it is."""
    model.save(path)
    # In the archive's comment, for a file more in it would make Keras unpack it all to disk when it loads it.
    # The optimizer's own count will not do: it leaves out the steps that mixed_float16 skips.
    with zipfile.ZipFile(path, "a") as file:
        file.comment = json.dumps({"run": run, "epoch": epoch}).encode()


def read_stamp(path):
    """Return what write_keras() says in a file: (run, epoch); (None, None) when it says nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            stamp = json.loads(file.comment or "null")
        stamp = {"run": None, "epoch": stamp} if isinstance(stamp, int) else stamp or {}  # the first version: a number
        return stamp.get("run"), stamp.get("epoch")
    except (AttributeError, OSError, ValueError, zipfile.BadZipFile):
        return None, None


def write_model(path, model, run, epoch):
    """Save the network alone, without optimizer state, and computing in float32 whatever it was trained in."""
    from model import prepare_model

    network = prepare_model(dtype="float32")
    network.set_weights(model.get_weights())
    with whole_file(path) as temporary:
        write_keras(temporary, network, run, epoch)


def restore(path, model, steps):
    """Put the weights and the optimizer's state of a checkpoint into a compiled model.

    steps: in an epoch. Returns (run, epoch), of which run it is and how many epochs it has behind it.
    Raises InputError when the file is no checkpoint of such a run.
    """
    run, epoch = read_stamp(path)
    model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of an optimizer without its state
            model.load_weights(path)
    except Exception as error:  # a strange or damaged file can fail in a dozen ways
        raise InputError(f"{path}: not a readable checkpoint of this network ({error})") from None
    if epoch is None:
        raise InputError(f"{path}: not a checkpoint, it does not say of which epoch")
    skipped = epoch * steps - int(model.optimizer.iterations)
    if skipped < 0 or (skipped and model.dtype_policy.name != "mixed_float16"):
        raise InputError(f"{path}: not a checkpoint of this run, it has not its number of steps")
    return run, epoch


def refuse_a_run(folder):
    """Raise InputError when the folder holds a run."""
    if not holds_a_run(folder):
        return
    settings = read_settings(folder)
    done = len(read_history(folder / HISTORY)) if (folder / HISTORY).exists() else 0
    if done and done >= settings["epochs"]:
        more = f"train it further with --resume --epochs {2 * done}"
        raise InputError(f"{folder} holds a finished run of {done} epoch{'s' * (done > 1)}: {more}, {WAYS_OUT}")
    when = f"after epoch {done}" if done else "before its first epoch ended"
    raise InputError(f"{folder} holds a run that stopped {when}: go on with --resume, {WAYS_OUT}")


def remove_results(folder):
    """Remove what evaluate.py and visualize.py wrote, and nothing else."""
    for path in [*(folder / name for name in (METRICS, *PICTURES)), *pairs(folder / PAIRS)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        (folder / PAIRS).rmdir()


def pairs(folder):
    """Return the paths of the pairs that visualize.py wrote to a folder."""
    return [path for path in folder.glob("*.png") if path.stem.isdecimal() and path.stem == f"{int(path.stem):02d}"]


def begin(folder, settings):
    """Begin a run in the folder, in place of the one that is there; returns its settings as they are recorded."""
    remove_results(folder)
    for name in reversed(RUN_FILES):
        (folder / name).unlink(missing_ok=True)
    settings = {"run": uuid.uuid4().hex, **settings, "starts": [{"after_epoch": 0, **describe_start()}]}
    write_json(folder / SETTINGS, settings)
    return settings


def resume(folder, model, settings, steps):
    """Go on with the run in the folder: put its checkpoint into the model, a compiled one.

    settings: what is to be trained now. steps: in an epoch. Returns the settings as they are recorded
    now, and the history so far. Raises InputError when this is another run, or one that cannot be resumed.
    """
    saved = read_settings(folder)
    for name, value in settings.items():
        if name in ("epochs", "data") or saved.get(name) == value or (name == "network" and name not in saved):
            continue
        if name == "data_sha256":
            detail = f"this run was trained on {saved['data']}, not on {settings['data']}"
        elif name == "network":
            keras = saved["starts"][-1].get("keras")
            detail = f"this run has another network (begun with Keras {keras}); has model.py changed since?"
        else:
            detail = f"{name} is {saved.get(name)} in this run, not {value}"
        raise InputError(f"cannot resume: {detail}")

    history, run = [], saved["run"]
    if (folder / CHECKPOINT).exists():
        of_run, done = restore(folder / CHECKPOINT, model, steps)
        if of_run != run:
            raise InputError(f"cannot resume: {CHECKPOINT} and {SETTINGS} in {folder} are of two runs: {WAYS_OUT}")
        if done > settings["epochs"]:
            epochs = settings["epochs"]
            raise InputError(f"cannot resume: this run has {done} epochs, more than --epochs {epochs}")
        history = read_history(folder / HISTORY, done)
        if read_stamp(folder / MODEL) != (run, done):  # killed between the two, or the first version's
            remove_results(folder)
            write_model(folder / MODEL, model, run, done)
    elif (folder / MODEL).exists() or ((folder / HISTORY).exists() and len(read_history(folder / HISTORY)) > 1):
        # One epoch of history alone is right: the run was killed just before its first checkpoint was in place.
        raise InputError(f"cannot resume: {folder / CHECKPOINT} is missing; --overwrite starts this run anew")
    start = {"after_epoch": len(history), **describe_start()}
    settings = {**saved, **settings, "starts": [*saved["starts"], start]}
    write_json(folder / SETTINGS, settings)
    return settings, history


def changes(settings):
    """Return what is no longer as when the run began, versions and devices: "keras 3.15.1, it was 3.15.0"."""
    first, last = settings["starts"][0], settings["starts"][-1]
    names = [name for name in first if name in last and name != "after_epoch" and first[name] != last[name]]
    return [f"{name} {last[name]}, it was {first[name]}" for name in names]


def save_epoch(folder, model, run, history):
    """Put the run on disk as it is after the last epoch of its history.

    Killed at whatever moment, this leaves a complete checkpoint, and a history that holds its epochs
    and perhaps one more, which resume() then drops. The results are those of the network beside them.
    """
    epoch = len(history)
    with whole_file(folder / CHECKPOINT) as temporary:
        write_keras(temporary, model, run, epoch)
        write_history(folder / HISTORY, history)
    remove_results(folder)
    write_model(folder / MODEL, model, run, epoch)


def check_network(folder):
    """Raise InputError when the folder holds no network to be measured or drawn."""
    if (folder / MODEL).exists():
        return
    if holds_a_run(folder):
        command = f"python train.py --resume --output-dir {folder}"
        raise InputError(f"no epoch of the run in {folder} has ended yet: go on with {command}")
    recorded = "python evaluate.py --output-dir outputs/reference"
    raise InputError(f"no trained network in {folder}: run python train.py first, or see the recorded one: {recorded}")


def load_network(folder):
    """Return the network of a run, and (run, epoch), of which run and after which epoch it is, None if unknown."""
    from model import load_model

    run, epoch = read_stamp(folder / MODEL)
    if epoch is None and (folder / HISTORY).exists():  # the first version: written at the end of a run, without a stamp
        epochs = len(read_history(folder / HISTORY))
        epoch = epochs if epochs == read_settings(folder).get("epochs") else None
    return load_model(folder / MODEL), (run, epoch)
