"""Keras callbacks of a training: random numbers of an epoch, a progress bar, an end at a signal or without a number."""

import contextlib
import math
import signal

import keras

from support.backend import reseed

LINE = 79  # characters, of a terminal's 80
BESIDE_BAR = 65  # of them at most, without both counts of steps: hundreds of hours to go, losses with an exponent


class Reseed(keras.callbacks.Callback):
    """Calls reseed() in the first step of each epoch.

    Not before fit(): what PyTorch draws from its generator to start a DataLoader would come between.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            reseed(self.model, self.seed, self.epoch)


class StopAtNaN(keras.callbacks.Callback):
    """Raises FloatingPointError when a loss is infinite or no number.

    Keras' TerminateOnNaN ends only the epoch, and the callbacks after it would save what is broken. And it does not see
    a last step that breaks the weights after its own loss was taken: the loss of the test images does.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.check(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self.check(logs["val_loss"])

    def check(self, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {float(loss)} in epoch {self.epoch + 1}")


class ProgressBar(keras.callbacks.Callback):
    """Shows Keras' own bar with the loss and the accuracy alone, and takes it away when the epoch has ended."""

    def on_epoch_begin(self, epoch, logs=None):
        steps = self.params["steps"]
        width = min(10, max(1, LINE - BESIDE_BAR - 2 * len(str(steps))))
        self.bar = keras.utils.Progbar(steps, width, stateful_metrics=["loss", "accuracy"])

    def on_train_batch_end(self, batch, logs=None):
        values = [("loss", logs["loss"]), ("accuracy", logs["classification_accuracy"])]
        self.bar.update(batch + 1, values, finalize=False)

    def on_epoch_end(self, epoch, logs=None):
        print(f"\r{LINE * ' '}\r", end="", flush=True)


class StopAtSignal(keras.callbacks.Callback):
    """Raises KeyboardInterrupt with the number of a signal that was noted, at the end of a step."""

    def __init__(self, signals):
        super().__init__()
        self.signals = signals

    def on_train_batch_end(self, batch, logs=None):
        if self.signals:
            raise KeyboardInterrupt(self.signals[0])

    on_test_batch_end = on_train_batch_end


@contextlib.contextmanager
def stoppable():
    """Within the block, let Ctrl-C and SIGTERM stop a training at the end of a step; a second signal ends at once.

    Yields the callback for Keras that does it.
    """
    signals = []

    def note(number, frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        signals.append(number)

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, note))
        yield StopAtSignal(signals)
