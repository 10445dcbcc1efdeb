"""The record of an epoch: its row of history.csv, the network after it, and a line for the terminal."""

import json
import time
import zipfile

import keras
import numpy as np

from support.files import atomic_write
from support.resume import check_columns
from support.run_folder import HISTORY, MODEL, STAMP, remove_results, writing

EPOCH_LINE = (
    "epoch {epoch}/{epochs}: loss {loss:.4f}, accuracy {classification_accuracy:.2%}; "
    "test {val_loss:.4f}, {val_classification_accuracy:.2%}; {seconds:.0f} s"
)


class Record(keras.callbacks.Callback):
    """Saves a run after each epoch, and prints the line of it.

    history: the rows of the epochs that are done, dicts, to which each new one is added: epoch, what Keras measured,
    seconds without the saving. folder, settings, lock: as for save_epoch(). Raises InputError after the first step when
    a resumed run's history has other columns.
    """

    def __init__(self, folder, settings, history, lock):
        super().__init__()
        self.folder, self.settings, self.history, self.lock = folder, settings, history, lock

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0 and self.history:
            check_columns(self.history[0], logs)

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **logs, "seconds": time.perf_counter() - self.started}
        save_epoch(self.folder, self.model, self.settings, [*self.history, row], self.lock)
        self.history.append(row)
        print(EPOCH_LINE.format(epochs=self.params["epochs"], **row), flush=True)


def save_epoch(folder, model, settings, history, lock=None):
    """Put the run with these settings on disk as it is after the last epoch of its history.

    history: dicts with the names of the first one, in any order. lock: as for writing().
    Killed at any moment, this leaves a whole model.keras, a history that holds its epochs and perhaps
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
