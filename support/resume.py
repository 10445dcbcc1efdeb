"""How a run begins and goes on: its settings, its saved state, and what a resume refuses."""

import contextlib
import io
import json
import warnings
import zipfile

import h5py
import keras

from support import run_folder
from support.environment import environment
from support.errors import InputError
from support.files import write_json
from support.run_folder import MODEL, NO_OPTIMIZER, SETTINGS, START_ANEW


def settings_of(model, args, data):
    """Return what settings.json says of a run: train.py's flags, the compiled model's optimizer, data, backend.

    data: what data_entry() says of them.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # mixed_float16 wraps it
    settings = {name: getattr(args, name) for name in run_folder.RUN_FLAGS} | {"optimizer": type(optimizer).__name__}
    settings |= {name: value for name, value in optimizer.get_config().items() if name != "name"}
    return settings | data | {"backend": keras.backend.backend()}


def in_words(value):
    """Return the value of a setting as a message has it."""
    return "not set" if value is None else value


def has_optimizer(path):
    """Return whether a model.keras holds an optimizer, without which it cannot be trained further; True of no file."""
    with contextlib.suppress(Exception):  # a damaged file can fail in a dozen ways, and is another matter
        with zipfile.ZipFile(path) as file, h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights:
            return "optimizer" in weights
    return True


def begin(folder, settings, overwrite=False):
    """Begin a run in the folder; returns its settings as they are recorded.

    Raises InputError when the folder holds any file of a run, unless that is to be replaced.
    """
    if not overwrite and any((folder / name).exists() for name in run_folder.RUN_FILES):
        go_on = "go on with --resume, and more --epochs if it is done, " if has_optimizer(folder / MODEL) else ""
        raise InputError(f"{folder} holds a run: {go_on}{START_ANEW}")
    settings = {**settings, "starts": [{"after_epoch": 0, **environment()}]}
    with run_folder.writing(folder):
        run_folder.remove_results(folder)
        for name in reversed(run_folder.RUN_FILES):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / SETTINGS, settings)
    return settings


def restore(folder, model, settings):
    """Put the weights and the optimizer's state of a run into a compiled model; returns after which epoch they are.

    Raises InputError when the network is not the model's or not of a run with these settings, or has no optimizer.
    """
    saved, stamp = run_folder.load_network(folder, precision=None)
    layers, saved_layers = (json.dumps(each.get_config()["layers"], sort_keys=True) for each in (model, saved))
    if layers != saved_layers:
        raise InputError("cannot resume: this run has another network; has model.py changed since?")
    if not run_folder.is_of_run(stamp, settings):
        raise InputError(f"cannot resume: {folder / MODEL} is of another run: {START_ANEW}")
    model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=NO_OPTIMIZER)
            model.load_weights(folder / MODEL)
    except Exception:
        raise InputError(f"cannot resume: {folder / MODEL} holds no optimizer, it can only be measured") from None
    return stamp["epoch"]


def resume(folder, model, settings):
    """Go on with the run in the folder: put its saved state into the model, a compiled one.

    settings: what is to be trained now. Returns the settings as they are recorded now, and the history so
    far. Raises InputError when this is another run, or one that cannot be resumed.
    """
    saved, history = run_folder.read_settings(folder), []
    if saved["data_sha256"] != settings["data_sha256"]:
        raise InputError(f"cannot resume: this run was trained on {saved['data']}, not on {settings['data']}")
    for name, value in settings.items():
        if name not in ("epochs", "data") and saved.get(name, value) != value:  # another Keras may say more of SGD
            raise InputError(f"cannot resume: {name} is {in_words(saved[name])} in this run, not {in_words(value)}")
    if (folder / MODEL).exists():
        done = restore(folder, model, settings)
        if done > settings["epochs"]:
            raise InputError(f"cannot resume: this run has {done} epochs, more than --epochs {settings['epochs']}")
        history = run_folder.read_history(folder, done)
    elif len(run_folder.read_history(folder)) > 1:
        # One epoch of history alone is right: the run was killed just before its first model.keras was in place.
        raise InputError(f"cannot resume: {folder / MODEL} is missing; --overwrite starts this run anew")
    settings = {**saved, **settings, "starts": [*saved["starts"], {"after_epoch": len(history), **environment()}]}
    with run_folder.writing(folder):
        write_json(folder / SETTINGS, settings)
    return settings, history


def what_differs(settings):
    """Return what the last start of a run was on, and the first one was not: "keras 3.15.1, not 3.16.0"."""
    first, last = settings["starts"][0], settings["starts"][-1]
    names = [name for name in first if name != "after_epoch" and last.get(name, first[name]) != first[name]]
    return [f"{name} {in_words(first[name])}, not {in_words(last[name])}" for name in names]


def check_columns(row, measured):
    """Raise InputError unless what a step measured, a dict, belongs to the columns of a row of the run's history."""
    names = [f"{prefix}{name}" for prefix in ("", "val_") for name in measured]
    if other := sorted(row.keys() ^ {"epoch", "seconds", *names}):
        refusal = f"only one of both has {', '.join(other)}: replace it with --overwrite"
        raise InputError(f"cannot resume: this run's history.csv has other columns than train.py, {refusal}")
