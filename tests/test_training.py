"""Training: does the network learn, and is a run a function of its seed?"""

import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, dropouts

from evaluate import evaluate
from support.backend import run_network
from support.callbacks import ProgressBar, stoppable
from support.errors import give_up
from train import EPOCH_LINE, new_model, train

COLUMNS = {"epoch", "seconds"} | {
    prefix + name
    for prefix in ("", "val_")
    for name in ("loss", "classification_loss", "autoencoder_loss", "classification_accuracy")
}


@pytest.mark.slow  # test_other_images.py shows that the network learns, on smaller images
def test_a_short_training_learns(mnist):
    """Two epochs over 1,200 digits lower both losses and classify unseen digits far above chance (10 %).

    The batches are of 8, not 32, for as many steps as 4,800 digits would take: the first hundred show little.
    """
    (images, labels), (test_images, test_labels) = mnist
    train_set, test_set = (images[:1200], labels[:1200]), (test_images[:200], test_labels[:200])
    model = new_model()
    before = evaluate(model, *test_set)
    history = list(train(model, train_set, test_set, epochs=2, batch_size=8))
    after = evaluate(model, *test_set)

    assert after["classification_loss"] < 0.7 * before["classification_loss"]
    assert after["autoencoder_loss"] < 0.7 * before["autoencoder_loss"]
    assert after["accuracy"] > 0.5
    assert [set(row) for row in history] == [COLUMNS, COLUMNS]
    assert [row["epoch"] for row in history] == [1, 2]
    # What evaluate() measures is what Keras measured after the last epoch.
    assert after["accuracy"] == np.float32(history[-1]["val_classification_accuracy"]).round(6)
    assert abs(after["classification_loss"] - history[-1]["val_classification_loss"]) < 1e-5
    assert abs(after["autoencoder_loss"] - history[-1]["val_autoencoder_loss"]) < 1e-5
    total = 0.9 * after["classification_loss"] + 0.1 * after["autoencoder_loss"]
    assert abs(total - history[-1]["val_loss"]) < 1e-5


def test_losses_are_means_over_the_images(mnist):
    """35 images are a batch of 32 and one of 3, 502 test images one of 500 and one of 2; each image counts once.

    The first 32 images are one and the same, so that the small batch is not like the large one.
    """
    (images, labels), (test_images, test_labels) = mnist
    train_set = np.concatenate((images[:1].repeat(32, axis=0), images[1:4])), np.r_[labels[:1].repeat(32), labels[1:4]]
    test_set = test_images[:502], test_labels[:502]
    model = new_model()
    model.optimizer.learning_rate = 0.0
    for layer in dropouts(model):
        layer.rate = 0.0
    (row,) = train(model, train_set, test_set, epochs=1)
    for prefix, (x, y) in (("", train_set), ("val_", test_set)):
        measured = evaluate(model, x, y)
        for name in ("classification_loss", "autoencoder_loss"):
            assert row[prefix + name] == pytest.approx(measured[name], abs=3e-6), prefix + name
        total = 0.9 * row[prefix + "classification_loss"] + 0.1 * row[prefix + "autoencoder_loss"]
        assert row[prefix + "loss"] == pytest.approx(total, rel=1e-6)


def test_what_is_said_of_the_training_images_is_not_of_the_test_images(mnist):
    """The network's own answers as labels of the one, others as those of the other: 100 % and 0 %."""
    (images, _), (test_images, _) = mnist
    model = new_model()
    model.optimizer.learning_rate = 0.0
    for layer in dropouts(model):
        layer.rate = 0.0
    answers, others = (run_network(model, part[:40])["classification"].argmax(axis=1) for part in (images, test_images))
    started = time.perf_counter()
    rows = list(train(model, (images[:40], answers), (test_images[:40], (others + 1) % 10), epochs=3))
    elapsed = time.perf_counter() - started
    for row in rows:
        assert (row["classification_accuracy"], row["val_classification_accuracy"]) == (1, 0)
    assert 0 < sum(row["seconds"] for row in rows) <= elapsed


def test_the_line_of_an_epoch():
    row = {"loss": 1.0, "classification_accuracy": 0.25, "val_loss": 2.0, "val_classification_accuracy": 0.5}
    line = EPOCH_LINE.format(epoch=3, epochs=20, seconds=61.2, **row)
    assert line == "epoch 3/20: loss 1.0000, accuracy 25.00%; test 2.0000, 50.00%; 61 s"


def test_a_last_step_that_breaks_the_weights_is_noticed(mnist):
    """The loss of the only step is taken before its update, which is far too large."""
    (images, labels), _test_set = mnist
    small = images[:8], labels[:8]
    model = new_model()
    model.optimizer.learning_rate = 1e38
    rows = []
    with pytest.raises(FloatingPointError, match=r"the loss became (inf|nan) in epoch 1"):
        rows.extend(train(model, small, small, epochs=1, batch_size=8))
    assert not rows


def test_a_second_signal_ends_at_once():
    code = """
import signal
from support.callbacks import stoppable
with stoppable():
    signal.raise_signal(signal.SIGINT)
    print("the first is noted", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("the second is not")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "the first is noted\n")


def test_a_signal_waits_for_the_end_of_a_step(mnist):
    (images, labels), _ = mnist
    small = images[:8], labels[:8]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as stop, stoppable() as callback:
        signal.raise_signal(signal.SIGTERM)
        list(train(new_model(), small, small, epochs=1, callbacks=[callback]))
    assert stop.value.args == (signal.SIGTERM,)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_stops_the_measurement_too(mnist):
    (images, labels), _ = mnist
    small = images[:8], labels[:8]
    raise_it = keras.callbacks.LambdaCallback(on_test_begin=lambda logs: signal.raise_signal(signal.SIGINT))
    steps = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: steps.append(epoch))
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        list(train(new_model(), small, small, epochs=1, callbacks=[raise_it, stop, note]))
    assert not steps


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_status_says_which_signal_it_was(number, status, capsys):
    with pytest.raises(SystemExit) as stop:
        give_up(KeyboardInterrupt(number))
    assert stop.value.code == status


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch runs every step as Python")
def test_the_training_step_is_traced_once(mnist):
    """An epoch is a fit() of its own, and yet no epoch after the first builds the training step anew."""
    train_set, test_set = [(images[:8], labels[:8]) for images, labels in mnist]
    model = new_model()
    traces, train_step = [], model.train_step

    def traced_step(*arguments):
        traces.append(arguments)
        return train_step(*arguments)

    model.train_step = traced_step
    traces_after = [len(traces) for _ in train(model, train_set, test_set, epochs=3, batch_size=4)]
    assert traces_after[0] >= 1
    assert traces_after == 3 * traces_after[:1]


def shown(capsys):
    """The lines that a terminal was given one after the other, each of which replaces the one before."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[\d+m|\x08", "", capsys.readouterr().out))


@pytest.mark.parametrize("steps", [99, 1875, 999_999])
def test_the_progress_bar_fits_a_terminal_of_80_columns(steps, capsys, monkeypatch):
    """Its longest lines: hundreds of hours to go, just below a second a step, and both numbers with an exponent."""
    now = 0
    monkeypatch.setattr(time, "time", lambda: now)
    bar = ProgressBar()
    bar.set_params({"steps": steps})
    bar.on_epoch_begin(0)
    for step, after in ((0, 0.999), (1, 0.999), (steps - 2, 0.999 * (steps - 3)), (steps - 1, 0.999)):
        now += after
        bar.on_train_batch_end(step, {"loss": 1.2345e-11, "classification_accuracy": 1.2345e-05})
    lines = [line for line in shown(capsys) if line.strip()]
    assert len(lines) == 4
    assert all(re.search("loss: 1.2345e-11 .* accuracy: 1.2345e-05", line) for line in lines)
    assert max(map(len, lines)) < 80
    bar.on_epoch_end(0)
    assert shown(capsys) == ["", 79 * " ", ""]


def test_the_bar_shows_loss_and_accuracy_of_the_last_step(mnist, capsys):
    small = [(images[:16], labels[:16]) for images, labels in mnist]
    list(train(new_model(), *small, epochs=2, batch_size=8, verbose=1))
    *lines, before_last, last = shown(capsys)
    assert (before_last.strip(), last) == ("", "")
    assert any(re.search(r"^2/2 .* - loss: \S+ - accuracy: \S+", line) for line in lines)


def flat(model):
    return np.concatenate([weights.ravel() for weights in model.get_weights()])


def test_same_seed_same_weights_bit_for_bit(mnist):
    (images, labels), (test_images, test_labels) = mnist
    ends = []
    for _ in range(2):
        model = new_model(seed=1)
        list(train(model, (images[:40], labels[:40]), (test_images[:20], test_labels[:20]), epochs=2, seed=1))
        ends.append(flat(model))
    assert np.array_equal(*ends)
    assert not np.array_equal(ends[0], flat(new_model(seed=1)))
    assert not np.array_equal(flat(new_model(seed=1)), flat(new_model(seed=2)))
