"""Training: does the network learn, and is a run a function of its seed?"""

import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas
import pytest
from conftest import ROOT, dropouts, rows_of

from evaluate import evaluate, run_network
from support.callbacks import ProgressBar, stoppable
from support.errors import give_up
from support.record import EPOCH_LINE
from train import new_model, train

COLUMNS = {
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
    history = train(model, train_set, test_set, epochs=2, batch_size=8)
    after = evaluate(model, *test_set)

    assert after["classification_loss"] < 0.7 * before["classification_loss"]
    assert after["autoencoder_loss"] < 0.7 * before["autoencoder_loss"]
    assert after["accuracy"] > 0.5
    assert (set(history.history), history.epoch) == (COLUMNS, [0, 1])
    # What evaluate() measures is what Keras measured after the last epoch.
    last = rows_of(history)[-1]
    assert after["accuracy"] == np.float32(last["val_classification_accuracy"]).round(6)
    for name in ("classification_loss", "autoencoder_loss"):
        assert after[name] == pytest.approx(last[f"val_{name}"], abs=1e-5)
    total = 0.9 * after["classification_loss"] + 0.1 * after["autoencoder_loss"]
    assert total == pytest.approx(last["val_loss"], abs=1e-5)


@pytest.mark.parametrize("count", [502, 600, 1234])
def test_losses_of_the_test_images_are_means_over_them(count, mnist):
    """They are cut into batches of almost one size, so what Keras measures is what evaluate() does, to four digits."""
    train_set, test_set = ([part[:n] for part in one] for one, n in zip(mnist, (8, count)))
    model = new_model()
    (last,) = rows_of(train(model, train_set, test_set, epochs=1, batch_size=4))
    measured = evaluate(model, *test_set)
    assert measured["accuracy"] == pytest.approx(last["val_classification_accuracy"], abs=1e-6)
    for name in ("classification_loss", "autoencoder_loss"):
        assert last[f"val_{name}"] == pytest.approx(measured[name], rel=5e-5), name
    total = 0.9 * last["val_classification_loss"] + 0.1 * last["val_autoencoder_loss"]
    assert last["val_loss"] == pytest.approx(total, rel=5e-5)


def test_what_is_said_of_the_training_images_is_not_of_the_test_images(mnist):
    """The network's own answers as labels of the one, others as those of the other: 100 % and 0 %."""
    (images, _), (test_images, _) = mnist
    model = new_model()
    model.optimizer.learning_rate = 0.0
    for layer in dropouts(model):
        layer.rate = 0.0
    answers, others = (run_network(model, part[:40])["classification"].argmax(axis=1) for part in (images, test_images))
    history = train(model, (images[:40], answers), (test_images[:40], (others + 1) % 10), epochs=2).history
    assert (history["classification_accuracy"], history["val_classification_accuracy"]) == ([1, 1], [0, 0])


def test_the_line_of_an_epoch():
    row = {"loss": 1.0, "classification_accuracy": 0.25, "val_loss": 2.0, "val_classification_accuracy": 0.5}
    line = EPOCH_LINE.format(epoch=3, epochs=20, seconds=61.2, **row)
    assert line == "epoch 3/20: loss 1.0000, accuracy 25.00%; test 2.0000, 50.00%; 61 s"


def test_a_last_step_that_breaks_the_weights_is_noticed(mnist, tmp_path):
    """The loss of the only step is taken before its update, which is far too large; and no callback saves that."""
    (images, labels), _test_set = mnist
    small = images[:8], labels[:8]
    model = new_model()
    model.optimizer.learning_rate = 1e38
    save = keras.callbacks.ModelCheckpoint(tmp_path / "kept.keras")
    with pytest.raises(FloatingPointError, match=r"the loss became (inf|nan) in epoch 1"):
        train(model, small, small, epochs=1, batch_size=8, callbacks=[save])
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_training_at_once(mnist):
    """In the step after the one that broke the weights; neither another step nor the test images follow."""
    (images, labels), _test_set = mnist
    small, seen = (images[:8], labels[:8]), []
    model = new_model()
    model.optimizer.learning_rate = 1e38
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda step, logs: seen.append(step), on_test_begin=lambda logs: seen.append("test")
    )
    with pytest.raises(FloatingPointError, match=r"the loss became (inf|nan) in epoch 1"):
        train(model, small, small, epochs=1, batch_size=2, callbacks=[note])
    assert seen == [0, 1]


def test_every_callback_of_keras_works(mnist, tmp_path):
    """In three epochs in which nothing gets better, as the learning rate is next to 0 and Dropout is off."""
    train_set, test_set = [(images[:8], labels[:8]) for images, labels in mnist]
    model, names = new_model(), []
    for layer in dropouts(model):
        layer.rate = 0.0
    model.optimizer.learning_rate = 1e-30
    callbacks = keras.callbacks
    history = train(
        model,
        train_set,
        test_set,
        epochs=3,
        batch_size=4,
        callbacks=[
            callbacks.EarlyStopping("val_loss", patience=2, min_delta=1e-3),
            callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=1e-3, min_lr=0),
            callbacks.CSVLogger(tmp_path / "log.csv"),
            callbacks.ModelCheckpoint(tmp_path / "after{epoch}.keras"),
            callbacks.LambdaCallback(on_train_begin=lambda logs: names.append("begin")),
            callbacks.LambdaCallback(on_train_end=lambda logs: names.append("end")),
        ],
    )
    assert isinstance(history, callbacks.History)
    assert (history.epoch, names) == ([0, 1, 2], ["begin", "end"])
    assert history.history["learning_rate"] == pytest.approx([1e-30, 1e-30, 1e-31], rel=1e-3)
    table = pandas.read_csv(tmp_path / "log.csv")
    assert table["val_loss"].tolist() == pytest.approx(history.history["val_loss"])
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == [f"after{epoch}.keras" for epoch in (1, 2, 3)]


def test_early_stopping_stops(mnist):
    """After the first epoch whose loss is no lower, of a hundred."""
    train_set, test_set = [(images[:8], labels[:8]) for images, labels in mnist]
    model = new_model()
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=10)
    assert train(model, train_set, test_set, epochs=100, batch_size=8, callbacks=[stop]).epoch == [0, 1]


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
        train(new_model(), small, small, epochs=1, callbacks=[callback])
    assert stop.value.args == (signal.SIGTERM,)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_stops_the_measurement_too(mnist):
    (images, labels), _ = mnist
    small = images[:8], labels[:8]
    raise_it = keras.callbacks.LambdaCallback(on_test_begin=lambda logs: signal.raise_signal(signal.SIGINT))
    steps = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: steps.append(epoch))
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        train(new_model(), small, small, epochs=1, callbacks=[raise_it, stop, note])
    assert not steps


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_status_says_which_signal_it_was(number, status, capsys):
    with pytest.raises(SystemExit) as stop:
        give_up(KeyboardInterrupt(number))
    assert stop.value.code == status


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
    train(new_model(), *small, epochs=2, batch_size=8, verbose=1)
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
        train(model, (images[:40], labels[:40]), (test_images[:20], test_labels[:20]), epochs=2, seed=1)
        ends.append(flat(model))
    assert np.array_equal(*ends)
    assert not np.array_equal(ends[0], flat(new_model(seed=1)))
    assert not np.array_equal(flat(new_model(seed=1)), flat(new_model(seed=2)))
