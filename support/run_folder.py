"""The folder of a run: its files, written whole, read and checked.

settings.json   what defines the run, and what it was started on, one entry a start
history.csv     the losses and accuracies, a row an epoch
model.keras     the network and the optimizer after the last epoch

evaluate.py adds metrics.json, visualize.py the PICTURES, predict.py PREDICTIONS; they go with their network. resume.py
begins a run and goes on with it, record.py adds an epoch.
"""

import contextlib
import csv
import itertools
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import keras

from support.data_file import DATA_FOLDER, data_entry, read_bytes
from support.errors import InputError
from support.files import PART, locked

RUN_FILES = ("settings.json", "history.csv", "model.keras")
SETTINGS, HISTORY, MODEL = RUN_FILES
LOCK = ".lock"  # which a training holds
METRICS = "metrics.json"
PAIRS = "reconstructions/[0-9][0-9].png"
PICTURES = ("model.png", PAIRS, "reconstructions.png", "training.png", "confusion_matrix.png", "mistakes.png")
PREDICTIONS = "predictions.png"
# train.py's flags that define a run, with their types.
RUN_FLAGS = {"epochs": int, "batch_size": int, "seed": int, "limit": int | None, "loss_weights": list, "precision": str}
STAMP = ("batch_size", "seed", "limit", "loss_weights", "precision", "data_sha256")  # what model.keras says of its run
NO_OPTIMIZER = "Skipping variable loading for optimizer"  # how a warning of Keras begins
START_ANEW = "replace it with --overwrite, or choose another --output-dir"


def data_of_run(folder: Path | str) -> Path:
    """Return the path of the data that a run was trained on; raises InputError when they are not what they were."""
    settings = read_settings(folder)
    path = DATA_FOLDER / settings["data"]  # an absolute path stays as it is
    if not path.is_file() or data_entry(path, read_bytes(path))["data_sha256"] != settings["data_sha256"]:
        raise InputError(f"{folder} was trained on {path}, now not there or changed: name the data to use with --data")
    return path


def are_numbers(values):
    """Return whether a list, read from a file, holds nothing but numbers."""
    return all(isinstance(value, int | float) for value in values)


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


def remove_results(folder):
    """Remove what evaluate.py, visualize.py and predict.py wrote, and nothing else."""
    for path in itertools.chain(*map(folder.glob, (METRICS, PREDICTIONS, *PICTURES))):
        if not path.is_dir():  # which is the user's
            path.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        (folder / PAIRS).parent.rmdir()


def make(folder):
    """Make a run's folder if there is none; raises InputError when a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{error.filename} is there and no folder: choose another --output-dir") from None
